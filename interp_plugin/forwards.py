"""What a model's forward runs under: uncompiled, with a graph of all it does, and left early without a trace."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class StateRead(BaseException):
    """Raised by a hook to leave the model's forward: what comes after the state is not needed."""


class KeepGraph(TorchFunctionMode):
    """Lets the graph be recorded where the forward itself switches gradients off (``torch.no_grad``).

    It costs some microseconds an operation, so it is left out where a first forward shows no need.

    Attributes:
        needed: whether the forward has switched gradients on or off.
        refuses: inference mode, which cannot be undone.
    """

    needed = False

    def __init__(self, refuses: bool = True) -> None:
        super().__init__()
        self.refuses = refuses

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            self.needed = True
            return None
        if self.refuses and torch.is_inference_mode_enabled():
            refuse_inference_mode()
        return func(*args, **(kwargs or {}))


def refuse_inference_mode() -> None:
    """The error of a forward that no gradient can be had of."""
    raise ValueError(
        "the model's forward runs under torch.inference_mode, in which nothing has a gradient; replace it by "
        "torch.no_grad there (which may stay), or leave it out"
    )


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Gradients on, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients on, also where the code that runs inside switches them off with ``torch.no_grad()``.

    ``torch.inference_mode()`` cannot be undone so: its tensors never carry a gradient (``is_inference()``).

    Examples::
        >>> x = torch.ones(2, requires_grad=True)
        >>> with gradients_on(), torch.no_grad():
        ...     y = 2 * x
        >>> y.requires_grad
        True
    """
    with torch.enable_grad(), KeepGraph(refuses=False):
        yield


@contextlib.contextmanager
def no_fastpath() -> Iterator[None]:
    """Without gradients torch's fast path for attention zeroes padded positions; with them it does not."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def rnn_backward(forward: Any) -> contextlib.AbstractContextManager[Any]:
    """cuDNN's recurrent kernels have no backward in eval mode: switch cuDNN off where they may run."""
    if not torch.cuda.is_available():
        return contextlib.nullcontext()
    module = getattr(forward, "module", None)
    if isinstance(module, nn.Module) and not any(isinstance(m, nn.RNNBase) for m in module.modules()):
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=False)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules as they were written: their compiled code was made without our hooks and skips them.

    The switch is the process's: it is set for one forward at a time.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and loading it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def left_early() -> Iterator[None]:
    """A forward that ends where a hook raises :class:`StateRead`."""
    try:
        yield
    except StateRead as stop:
        _offload_again(stop.__traceback__)


def _offload_again(traceback: TracebackType | None) -> None:
    """Let accelerate put away the weights of the modules that were left before their end.

    Its hooks load a module's own weights before its forward and put them away after it, but not when it raises.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        # of these alone: reading f_locals of left_early's own frame would tie the error, and all it holds, in a cycle
        if frame.f_code.co_name == "new_forward":
            module = frame.f_locals.get("module")
            hook = getattr(module, "_hf_hook", None)
            if hook is not None:
                hook.post_forward(module, None)
        traceback = traceback.tb_next


def weight_of(table: nn.Embedding) -> Tensor:
    """An embedding's table, (entries, K), also where accelerate keeps it elsewhere (``cpu_offload``)."""
    if not table.weight.is_meta:
        return table.weight.detach()
    with torch.no_grad():  # its own forward loads the table; some multiply what they look up
        looked_up: Tensor = table(torch.arange(table.num_embeddings))
    return looked_up / float(getattr(table, "embed_scale", 1.0))


def device_of(module: nn.Module) -> torch.device:
    """Where a module with parameters computes: their device, or where accelerate loads them to (``cpu_offload``)."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several in a row
    found = [at for at in (getattr(one, "execution_device", None) for one in hooks) if at is not None]
    return torch.device(found[0]) if found else device
