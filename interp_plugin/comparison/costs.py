"""Costs of a method: time, forward and backward passes through the model, memory."""

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

from interp_plugin.comparison.interface import Inputs
from interp_plugin.method.perturbation import in_this_thread
from interp_plugin.text.batch import give_back
from interp_plugin.text.models import TextModel

_PROCESS = Path("/proc/self")
_MIB = 2**20


@dataclass(frozen=True)
class StudyColumn:
    """A metric or cost as a column of a study's tables.

    Attributes:
        name: its name in tables.
        higher_is_better: the direction of its numbers.
        source: paper and equation, or how it is measured.
    """

    name: str
    higher_is_better: bool
    source: str


COSTS = (
    StudyColumn("seconds", False, "wall time of one call, after one to warm up"),
    StudyColumn("forward passes", False, "rows through the model"),
    StudyColumn("backward passes", False, "rows that a gradient came back through"),
    StudyColumn("peak MiB", False, "most memory in use above that before the call"),
)
"""The cost columns of a study's tables."""


@dataclass
class Cost:
    """The costs of a block of code, complete when the block has ended.

    Attributes:
        seconds: wall time.
        forward: forward passes: rows that entered the model and reached its first layer.
        backward: backward passes: rows through which a gradient was computed.
        peak_mib: peak memory above that in use before the block, in MiB: GPU memory if the model is on a
            GPU, else memory of the process (Linux only).  None where it cannot be measured.
    """

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    peak_mib: float | None = None


@contextmanager
def measured(model: TextModel) -> Iterator[Cost]:
    """Measure the costs of the block.

    A lookup of embeddings is not a pass.  A forward pass that stops early, once the state is read, counts as one, and
    so does each gradient through a graph that is used again.  Memory of other threads of the process is included.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison.interface import Inputs
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
        memory = PeakMemory(device)
        _Passes(model, cost, stack)
        start = time.perf_counter()
        try:
            yield cost
        finally:
            memory.wait()
            cost.seconds = time.perf_counter() - start
            cost.peak_mib = memory.mib()


class PeakMemory:
    """The peak of the memory in use, from the creation of this object on.

    Args:
        device: of a GPU its allocated memory is measured, of the CPU the resident memory of the process (Linux
            only, where its peak can be reset: ``getrusage`` and psutil know only that of the process's whole life).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start: int | None = None
        if device.type == "cuda":
            self.wait()
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        elif device.type == "cpu" and (_PROCESS / "clear_refs").exists():
            give_back()  # or a computation that uses freed memory again would seem to need none
            try:  # resets the peak: proc(5)
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
            except OSError:  # forbidden in some containers: then the peak is not known
                return
            self.start = self._kib("VmRSS")

    def wait(self) -> None:
        """Wait until the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mib(self) -> float | None:
        """The peak above the memory in use at the start, in MiB; None where it cannot be measured."""
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / _MIB
        return max(self._kib("VmHWM") - self.start, 0) / 1024

    @staticmethod
    def _kib(name: str) -> int:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class _Passes:
    """Count rows with hooks on the model; the stack removes the hooks.

    A forward pass begins when a module that contains the embedding is called and is not inside the module called
    before it: a classifier's head may run without the model below it.  The pass is counted once it has passed the
    embedding: at a layer, or at the end of such a module.
    """

    def __init__(self, model: TextModel, cost: Cost, stack: ExitStack) -> None:
        self.cost, self.stack = cost, stack
        self.rows, self.depth, self.entered = 0, 2**31, True  # no module has been called yet
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

    def _enter(self, values: Any) -> None:
        if not self.entered:
            self.cost.forward += self.rows
            self.entered = True
        tracked = next((x for x in _tensors(values) if x.is_floating_point() and x.requires_grad), None)
        if tracked is not None:
            self._hook(tracked.register_hook(self._count_backward(self.calls, self.returns, self.rows)))
            self.calls += 1

    def _count_backward(self, call: int, returns: Counter[int], rows: int) -> Any:
        """Count a gradient that passes several hooks of one forward once: use the hook with the most calls."""

        def hook(gradient: Tensor) -> None:
            most = max(returns.values(), default=0)
            returns[call] += 1
            if returns[call] > most:
                self.cost.backward += rows

        return hook


def _around(module: nn.Module, embedding: nn.Module) -> list[nn.Module]:
    """Return the modules that contain the embedding, outermost first."""
    path = next(name for name, part in module.named_modules() if part is embedding)
    names = path.split(".")[:-1]
    return [module.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


_TIMED_ROWS = 16


def seconds_per_pass(inputs: Inputs) -> float:
    """Measure the time of one forward or backward pass of a text, in a batch of 16 rows."""
    points = inputs.embeddings.expand(_TIMED_ROWS, -1, -1).clone().requires_grad_()
    noisy = inputs.noisy(inputs.model.embedding, None)
    rows = torch.zeros(_TIMED_ROWS, dtype=torch.long)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.enable_grad():
            torch.autograd.grad(noisy.perturb((points,), rows).float().sum(), points)
        times.append(time.perf_counter() - start)
    return min(times) / (2 * _TIMED_ROWS)
