"""What a computation costs: seconds, sample passes through the model, memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin.memory import give_back
from interp_plugin.method.perturbation import in_this_thread
from interp_plugin.text.models import TextModel

_PROCESS = Path("/proc/self")
_MIB = 2**20


@dataclass
class Cost:
    """What was spent; complete when the block is over.

    Attributes:
        seconds: of wall time.
        forward: sample passes: rows that entered the model and came as far as its first layer.
        backward: sample passes that a gradient came back through.
        peak_mib: most memory in use at a time above what was in use before, in MiB: that of the GPU where the
            model is on one, else that of the process (Linux only).  None where it cannot be measured.
    """

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    peak_mib: float | None = None


@contextmanager
def measured(model: TextModel) -> Iterator[Cost]:
    """Count what the block spends on the model.

    Looking up embeddings is no pass; a forward that is left early, once the state is read, is a whole
    one, and so is each gradient through a graph that is used again.  Memory is the process's: what
    other threads do meanwhile counts too.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison.inputs import Inputs
        >>> from interp_plugin.comparison.methods import METHODS
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> with measured(model) as cost:
        ...     scores = METHODS["saliency (L2)"](Inputs(model, model.encode("a good film")), 1, None)
        >>> cost.forward, cost.backward
        (1, 1)
    """
    device = next(model.embedding.layer.parameters()).device
    cost = Cost()
    with ExitStack() as stack:
        memory = _Memory(device)
        _Passes(model, cost, stack)
        start = time.perf_counter()
        try:
            yield cost
        finally:
            memory.wait()
            cost.seconds = time.perf_counter() - start
            cost.peak_mib = memory.peak()


class _Passes:
    """Counts rows by hooks on the model, which the stack takes off.

    A forward begins when one of the modules around the embedding is called that is not inside the one
    called before it: a classifier's head may be run apart from the model below it.  It counts once it
    has come past the embedding: to a layer, or to the end of such a module.
    """

    def __init__(self, model: TextModel, cost: Cost, stack: ExitStack) -> None:
        self.cost, self.stack = cost, stack
        self.rows, self.depth, self.entered = 0, 2**31, True  # no module was called before
        self.returns: Counter[int] = Counter()
        self.calls = 0
        for depth, module in enumerate(_around(model.module, model.embedding.layer)):
            begin = in_this_thread(self._begin(depth))
            end = in_this_thread(lambda module, args, output: self._enter(output))
            self._hook(module.register_forward_pre_hook(begin, with_kwargs=True))
            self._hook(module.register_forward_hook(end))
        enter = in_this_thread(lambda module, args, kwargs: self._enter((args, kwargs)))
        for layer in {site.layer for site in model.layers.values()}:
            self._hook(layer.register_forward_pre_hook(enter, with_kwargs=True))

    def _hook(self, handle: Any) -> None:
        self.stack.callback(handle.remove)

    def _begin(self, depth: int) -> Any:
        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if depth <= self.depth:
                self.rows = next((len(x) for x in _tensors((args, kwargs)) if x.ndim), 0)
                self.entered, self.returns, self.calls = False, Counter(), 0
            self.depth = depth

        return begin

    def _enter(self, passing: Any) -> None:
        if not self.entered:
            self.cost.forward += self.rows
            self.entered = True
        flowing = next((x for x in _tensors(passing) if x.is_floating_point() and x.requires_grad), None)
        if flowing is not None:
            self._hook(flowing.register_hook(self._coming_back(self.calls, self.returns, self.rows)))
            self.calls += 1

    def _coming_back(self, place: int, returns: Counter[int], rows: int) -> Any:
        """A gradient that passes several places of one forward is one: the place it passes most often counts."""

        def hook(gradient: Tensor) -> None:
            most = max(returns.values(), default=0)
            returns[place] += 1
            if returns[place] > most:
                self.cost.backward += rows

        return hook


def _around(module: nn.Module, embedding: nn.Module) -> list[nn.Module]:
    """The modules that contain the embedding, outermost first."""
    path = next(name for name, part in module.named_modules() if part is embedding)
    names = path.split(".")[:-1]
    return [module.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


class _Memory:
    """The most memory in use since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start: int | None = None
        if device.type == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and (_PROCESS / "clear_refs").exists():
            give_back()  # or a computation that fills freed memory again would seem to need none
            try:  # the peak is as much as now: proc(5)
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
            except OSError:  # a container may forbid it: then the peak is not known
                return
            self.start = self._kib("VmRSS")

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self) -> float | None:
        """In MiB above the start."""
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / _MIB
        return max(self._kib("VmHWM") - self.start, 0) / 1024

    @staticmethod
    def _kib(name: str) -> int:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
