"""What a model's forward runs under: uncompiled, with a graph of all it does, and left early without a trace."""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.utils._pytree import tree_map


class StateRead(BaseException):
    """Raised by a hook to leave the model's forward: what comes after the state is not needed."""


# torch.nn.MultiheadAttention without its fast path, and what torch.nn.LSTM, GRU and RNN call
_ATTENTION = torch.nn.functional.multi_head_attention_forward
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


class ForwardMode(TorchFunctionMode):
    """How the forwards of a model that is explained differ from others, in this thread alone.

    * The graph is recorded also where the forward itself switches gradients off (``torch.no_grad``).
    * torch's fast path for attention, which without gradients zeroes padded positions, is off: it is wherever a
      mode is on.
    * cuDNN's recurrent kernels, which have no backward in eval mode, run as in training, without dropout.
    * Recurrent kernels of a CPU in half precision run in single precision: torch has several, which round the steps
      of one example alone otherwise than those of a batch.

    It costs some microseconds an operation, so it is left out where a first forward shows no need.

    Attributes:
        needed: whether the forward has done something that is different here.
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
        if func is _ATTENTION:
            self.needed = True
        elif func in _RECURRENT:
            if args[0].is_cuda:
                self.needed = True
                args = _as_in_training(args)
            elif args[0].element_size() < 4:
                self.needed = True
                return _in_single_precision(func, args)
        return func(*args, **(kwargs or {}))


def _in_single_precision(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A recurrent kernel of half precision tensors, which rounds its result alone."""
    half = args[0].dtype
    return tree_map(
        lambda x: _cast(x, torch.float32, half),
        func(*tree_map(lambda x: _cast(x, half, torch.float32), args)),
    )


def _cast(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    """``value`` in another type, if it is a tensor of that before."""
    return value.to(after) if isinstance(value, Tensor) and value.dtype == before else value


def _as_in_training(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of a recurrent kernel (..., dropout, training, ...): in eval mode, of training without dropout."""
    is_packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()  # data and batch sizes
    dropout = 6 if is_packed else 5
    return args if args[dropout + 1] else (*args[:dropout], 0.0, True, *args[dropout + 2 :])


def refuse_inference_mode() -> None:
    """The error of a forward that no gradient can be had of."""
    raise ValueError(
        "the model's forward runs under torch.inference_mode, in which nothing has a gradient; replace it by "
        "torch.no_grad there (which may stay), or leave it out"
    )


class RecordedOnce:
    """Refuses layers that run once more, without our hooks, when gradients are taken; made before the forward."""

    def __init__(self) -> None:
        self._with_gradients, self._had_hooks = torch.is_grad_enabled(), _has_saving_hooks()

    def check(self, kind: str, module: nn.Module | None, is_replaced: bool = True) -> None:
        """Called where the layer runs.

        Args:
            kind: "noise", "state" or the like.
            module: the layer.
            is_replaced: whether what it gives is replaced; what is only read may run once more.

        Raises:
            ValueError: it runs inside ``torch.utils.checkpoint``.
        """
        if not self._with_gradients or torch.is_inference_mode_enabled():
            return
        has_hooks = is_replaced and _has_saving_hooks() and not self._had_hooks
        if has_hooks or not torch.is_grad_enabled():
            raise ValueError(
                f"the {kind} layer {type(module).__name__} runs inside torch.utils.checkpoint (or an "
                "autograd.Function, or other hooks on saved tensors), which computes it again for the gradient, "
                "without the noise; switch that off, as by model.gradient_checkpointing_disable() or model.eval(), or "
                "choose a layer outside"
            )


def _has_saving_hooks() -> bool:
    """Whether tensors saved for the gradient go through hooks, as they do inside ``torch.utils.checkpoint``."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("there are hooks"):  # an error if there are
            return False
    except RuntimeError:
        return True


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
    with torch.enable_grad(), ForwardMode(refuses=False):
        yield


def no_fastpath() -> contextlib.AbstractContextManager[Any]:
    """Without gradients torch's fast path for attention zeroes padded positions; with them it does not.

    Any mode keeps it off; ``torch.backends.mha`` would switch it off in all threads.
    """
    mode: contextlib.AbstractContextManager[Any] = BaseTorchFunctionMode()
    return mode


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A module's hook that does nothing in other threads: they may run the same model, and must not feel it."""
    owner = threading.get_ident()

    def hook_of_one_thread(*given: Any) -> Any:
        return hook(*given) if threading.get_ident() == owner else None

    if "torch._dynamo" in sys.modules:  # compiled models of other threads would compile it
        from torch._dynamo.decorators import skip

        skip(hook_of_one_thread)
    return hook_of_one_thread


def on_one_device(module: Any) -> Any:
    """A DataParallel that does not divide its rows: its replicas run in threads that feel neither hooks nor modes."""
    if not isinstance(module, nn.DataParallel) or len(module.device_ids) < 2:
        return module
    alone = copy.copy(module)
    alone.device_ids = module.device_ids[:1]
    return alone


class _Uncompiled:
    """The threads inside :func:`uncompiled`, and the stance of ``torch.compile`` meanwhile, which is the process's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for no more than setting the stance
        self._here = threading.local()
        self._threads = 0
        self._switch: Any = None

    @property
    def depth(self) -> int:
        """How often this thread is inside."""
        return int(getattr(self._here, "depth", 0))

    def enter(self) -> None:
        with self._lock:
            if not self._threads:
                switch: Any = torch.compiler.set_stance(_Stance("default"))
                stance = switch.stance.stance
                stance.before = switch.prev.stance
                vars(switch.stance).update({**vars(switch.prev), "stance": stance})  # its other settings stay
                self._switch = switch
            self._threads += 1
        self._here.depth = self.depth + 1

    def leave(self) -> None:
        self._here.depth = self.depth - 1
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._switch.__exit__(None, None, None)


_UNCOMPILED = _Uncompiled()


class _Stance(str):
    """A stance that is "force_eager" in threads inside :func:`uncompiled`, and in all others what it was."""

    before = "default"

    def __eq__(self, other: object) -> bool:
        return ("force_eager" if _UNCOMPILED.depth else self.before) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules as they were written, in this thread: their code skips hooks that were made after it."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and loading it takes a second
        yield
        return
    _UNCOMPILED.enter()
    try:
        yield
    finally:
        _UNCOMPILED.leave()


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


def modules_behind(given: Any) -> list[nn.Module]:
    """A module itself; of a plain function, the modules that it calls by name."""
    if not inspect.isfunction(given):
        return [given] if isinstance(given, nn.Module) else []
    try:
        named = inspect.getclosurevars(given)
    except ValueError:  # a name of the function around it has no value yet
        return []
    return [
        value
        for value in (*named.nonlocals.values(), *named.globals.values())
        if isinstance(value, nn.Module)
    ]


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
