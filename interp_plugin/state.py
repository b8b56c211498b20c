"""Where noise enters the model and where its state is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Selector = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
Forward = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Runs the model on input rows; the second argument, (R,), says which example each row is of."""


class _StateRead(BaseException):
    """Raised by a hook to leave the model's forward: what comes after the state is not needed."""


def first_tensor(output: Any) -> Any:
    """A module's output, or the first of several: transformers' layers return either."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _replace_first(output: Any, value: Tensor) -> Any:
    if isinstance(output, (tuple, list)):
        return type(output)([value, *output[1:]])
    return value


@contextlib.contextmanager
def on_output(layer: nn.Module | None, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``hook`` see, and replace if it returns something, what ``layer`` returns."""
    if layer is None:
        yield
        return
    handle = layer.register_forward_hook(lambda module, args, output: hook(output))
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Recorder:
    """Keeps a layer's output and counts how often it fires."""

    name: str
    fired: int = 0
    value: Any = None

    def __call__(self, output: Any) -> None:
        self.fired += 1
        value = first_tensor(output)
        self.value = value.clone() if isinstance(value, Tensor) else value  # work in place may follow

    def take(self, rows: int) -> Tensor:
        """The value, if the layer fired exactly once with the batch dimension first."""
        if self.fired != 1:
            raise ValueError(
                f"the {self.name} fired {self.fired} times in one forward, and exactly once is needed; pick a module "
                "that runs once (of a module used several times, its container)"
            )
        return checked(self.value, rows, f"output of the {self.name}")


def checked(value: Any, rows: int, name: str) -> Tensor:
    """``value`` if it is a floating tensor whose first dimension is the batch."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the {name} is a {type(value).__name__}, and a tensor (or a tuple that begins with one) is needed"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"the {name} is of type {value.dtype}, and floating point numbers are needed to measure distortion"
        )
    if value.ndim == 0 or len(value) != rows:
        raise ValueError(
            f"the {name} has shape {tuple(value.shape)} for {rows} examples; its first dimension must be the batch"
        )
    return value


def select(state: Tensor, selector: Selector | None) -> Tensor:
    """Part of a state, (B, ...): ``selector`` indexes the dimensions after the batch, or is called.

    Examples::
        >>> select(torch.zeros(2, 5, 7), (slice(1, 3), 0)).shape
        torch.Size([2, 2])
    """
    if selector is None:
        return state
    if callable(selector):
        return selector(state)
    index = selector if isinstance(selector, tuple) else (selector,)
    try:
        return state[(slice(None), *index)]
    except IndexError as error:
        raise ValueError(
            f"neuron_selector {selector!r} does not index a state of shape {tuple(state.shape)} (after the batch "
            "dimension); give an int, a tuple of ints and slices, or a callable"
        ) from error


@dataclass
class NoisyModel:
    """The model as a function from where noise enters to the state: ``s = Phi(x)``.

    Args:
        forward: runs the model on rows of inputs.
        inputs: the model's own inputs, each (B, ...).
        noise_layer: the module whose output receives the noise; None: the inputs themselves do.
        state_layer: the module whose output is the state; None: the forward's output is.
        selector: which part of the state to keep.
        max_rows: most rows in one forward.

    ``clean()`` must run before ``perturb()``.
    """

    forward: Forward
    inputs: tuple[Tensor, ...]
    noise_layer: nn.Module | None = None
    state_layer: nn.Module | None = None
    selector: Selector | None = None
    max_rows: int | None = None
    origin: tuple[Tensor, ...] = field(default=(), init=False)

    @property
    def batch(self) -> int:
        return len(self.inputs[0])

    @torch.no_grad()
    def clean(self) -> tuple[Tensor, Tensor]:
        """Run the whole model once without noise.

        Returns:
            The state before and after selection, each (B, ...).  ``origin`` is set to what noise is
            added to, each (B, ...).
        """
        origins, wholes = [], []
        for rows in torch.arange(self.batch).split(self.max_rows or self.batch):
            noise_at, state_at = _Recorder("noise layer"), _Recorder("state layer")
            inputs = tuple(x[rows.to(x.device)] for x in self.inputs)
            with (
                on_output(self.noise_layer, noise_at),
                on_output(self.state_layer, state_at),
                rnn_backward(self.forward),
                _no_fastpath(),
            ):
                output = self.forward(inputs, rows)
            origins.append(
                (noise_at.take(len(rows)).detach(),)
                if self.noise_layer
                else tuple(x[rows.to(x.device)] for x in self.inputs)
            )
            whole = (
                state_at.take(len(rows)) if self.state_layer else checked(output, len(rows), "model's output")
            )
            wholes.append(whole.detach())
        self.origin = tuple(torch.cat(parts) for parts in zip(*origins))
        whole = torch.cat(wholes)
        return whole, checked(select(whole, self.selector), self.batch, "selected state")

    def perturb(self, points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """The state at ``points`` (each (R, ...), row r being of example ``rows[r]``), with its graph; (R, ...).

        The forward is left as soon as the state is read.
        """
        copies = tuple(point.clone() for point in points)  # the model may work in place, which leaves may not
        inputs = tuple(x[rows.to(x.device)] for x in self.inputs) if self.noise_layer else copies
        read: list[Tensor] = []

        def leave(output: Any) -> None:
            read.append(first_tensor(output))
            raise _StateRead

        with (
            on_output(self.noise_layer, lambda output: _replace_first(output, copies[0])),
            on_output(self.state_layer, leave),
            rnn_backward(self.forward),
        ):
            try:
                output = self.forward(inputs, rows)
            except _StateRead:
                output = read[0]
        return select(output, self.selector)


@contextlib.contextmanager
def _no_fastpath() -> Iterator[None]:
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


class RunningStd:
    """Mean and standard deviation of states over a corpus, one pass, constant memory (Welford; Chan et al., 1979).

    Examples::
        >>> running = RunningStd()
        >>> running.update(torch.tensor([[1.0], [3.0]]))
        >>> running.update(torch.tensor([[5.0]]))
        >>> running.std()
        tensor([1.6330])
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Take in samples.

        Args:
            values: (N, ...), one sample a row; with ``mask``, (B, T, ...).
            mask: (B, T), true where a position is a sample; its positions become rows.
        """
        if mask is not None:
            values = values[mask.to(values.device).bool()]
        if not len(values):
            return
        values = values.detach().to(torch.float64)
        if not values.isfinite().all():
            raise ValueError("a state has NaN or infinite values; state_std over it would be meaningless")
        mean, squares = values.mean(0), values.var(0, unbiased=False) * len(values)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = len(values), mean, squares
            return
        if mean.shape != self._mean.shape:
            raise ValueError(
                f"states of shape {tuple(mean.shape)} after states of shape {tuple(self._mean.shape)}; for texts of "
                "different lengths give a mask, so that every position is a sample"
            )
        total = self.count + len(values)
        gap = mean - self._mean
        self._mean = self._mean + gap * (len(values) / total)
        self._squares = self._squares + squares + gap.square() * (self.count * len(values) / total)
        self.count = total

    def mean(self) -> Tensor:
        """Mean of the samples, float32."""
        return self._known(self._mean).float()

    def std(self) -> Tensor:
        """Population standard deviation of the samples, float32."""
        return self._known(self._squares).div(max(self.count, 1)).sqrt().float()

    @staticmethod
    def _known(value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("no state was seen yet; call update() with at least one sample first")
        return value


@dataclass(frozen=True)
class LayerCall:
    """The ``call``-th time (from 0) that ``layer`` runs in one forward: shared embeddings (T5), ALBERT's one block."""

    layer: nn.Module
    call: int = 0
