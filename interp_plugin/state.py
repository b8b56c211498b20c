"""Where noise enters the model and where its state is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Selector = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
Forward = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Runs the model on input rows; the second argument, (R,), says which example each row is of."""


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer that runs several times in a forward (a shared embedding, ALBERT's one block).

    Attributes:
        layer: the module.
        call: which of its runs, from 0.
        side: its output, or what it is given (first argument): attention heads are last seen apart there.
    """

    layer: nn.Module
    call: int = 0
    side: Literal["output", "input"] = "output"


Site = nn.Module | LayerCall
"""Where noise enters or the state is read; a bare module must run exactly once in a forward."""


def module_of(site: Site | None) -> nn.Module | None:
    """The module of a site."""
    return site.layer if isinstance(site, LayerCall) else site


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
def at_site(site: Site | None, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``hook`` see, and replace if it returns something, what passes at ``site``."""
    if site is None:
        yield
        return
    where = site if isinstance(site, LayerCall) else None
    runs = 0

    def watch(passing: Any) -> Any:
        nonlocal runs
        runs += 1
        return hook(passing) if where is None or runs - 1 == where.call else None

    module = where.layer if where else site
    assert isinstance(module, nn.Module)
    if where and where.side == "input":
        handle = module.register_forward_pre_hook(lambda module, args: watch(args))
    else:
        handle = module.register_forward_hook(lambda module, args, output: watch(output))
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Recorder:
    """Keeps what passes at a site and counts how often."""

    name: str
    site: Site | None
    fired: int = 0
    value: Any = None

    def __call__(self, passing: Any) -> None:
        self.fired += 1
        value = first_tensor(passing)
        self.value = value.clone() if isinstance(value, Tensor) else value  # work in place may follow

    def take(self, rows: int) -> Tensor:
        """The value, if it passed exactly once with the batch dimension first."""
        if not self.fired and isinstance(self.site, LayerCall):
            raise ValueError(
                f"the {self.name} {type(self.site.layer).__name__} has no run {self.site.call} in one forward (counted "
                "from 0); leave that layer out, or give one that runs"
            )
        if self.fired != 1:
            raise ValueError(
                f"the {self.name} fired {self.fired} times in one forward, and exactly once is needed; pick a module "
                "that runs once (of a module used several times, its container or a LayerCall)"
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
        noise_layer: the site that receives the noise; None: the inputs themselves do.
        state_layer: the site of the state; None: the forward's output is the state.
        selector: which part of the state to keep.
        max_rows: most rows in one forward.

    ``read()`` or ``clean()`` must run before ``perturb()``.
    """

    forward: Forward
    inputs: tuple[Tensor, ...]
    noise_layer: Site | None = None
    state_layer: Site | None = None
    selector: Selector | None = None
    max_rows: int | None = None
    origin: tuple[Tensor, ...] = field(default=(), init=False)

    @property
    def batch(self) -> int:
        return len(self.inputs[0])

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[rows.to(x.device)] for x in self.inputs)

    def at(self, state_layer: Site | None) -> NoisyModel:
        """The same model and noise with the state read at another site."""
        other = replace(self, state_layer=state_layer)
        other.origin = self.origin
        return other

    def shorter(self, length: int) -> NoisyModel:
        """The same model and noise on the first positions of each row, dimension 1 of inputs and ``origin``."""
        other = replace(self, inputs=tuple(x[:, :length] for x in self.inputs))
        other.origin = tuple(x[:, :length] for x in self.origin)
        return other

    def clean(self) -> tuple[Tensor, Tensor]:
        """The state without noise, before and after selection, each (B, ...); sets ``origin``."""
        [whole] = self.read([self.state_layer])
        return whole, self.selected(whole)

    def selected(self, whole: Tensor) -> Tensor:
        """The part of a clean state that the selector keeps."""
        return checked(select(whole, self.selector), self.batch, "selected state")

    @torch.no_grad()
    def read(self, sites: Sequence[Site | None]) -> list[Tensor]:
        """Run the whole model once without noise; what passes at each site, (B, ...).

        ``origin`` is set to what noise is added to, each (B, ...).
        """
        origins, states = [], []
        for rows in torch.arange(self.batch).split(self.max_rows or self.batch):
            noise_at = _Recorder("noise layer", self.noise_layer)
            states_at = [_Recorder("state layer", site) for site in sites]
            inputs = self._rows(rows)
            with contextlib.ExitStack() as stack:
                for recorder in (noise_at, *states_at):
                    stack.enter_context(at_site(recorder.site, recorder))
                stack.enter_context(rnn_backward(self.forward))
                stack.enter_context(no_fastpath())
                output = self.forward(inputs, rows)
            # the model may have worked in place on what it was given
            origins.append((noise_at.take(len(rows)),) if self.noise_layer else self._rows(rows))
            states.append(
                [
                    (at.take(len(rows)) if at.site else checked(output, len(rows), "model's output")).detach()
                    for at in states_at
                ]
            )
        self.origin = tuple(torch.cat(parts) for parts in zip(*origins))
        return [torch.cat(parts) for parts in zip(*states)]

    def perturb(self, points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """The state at ``points`` (each (R, ...), row r being of example ``rows[r]``), with its graph; (R, ...).

        The forward is left as soon as the state is read.
        """
        [state] = self.perturbed(points, rows, [self.state_layer])
        return select(state, self.selector)

    def perturbed(
        self, points: tuple[Tensor, ...], rows: Tensor, sites: Sequence[Site | None]
    ) -> list[Tensor]:
        """As :meth:`perturb`, for several sites in one forward and without selection."""
        copies = tuple(point.clone() for point in points)  # the model may work in place, which leaves may not
        inputs = self._rows(rows) if self.noise_layer else copies
        read: dict[int, Tensor] = {}

        def reader(index: int) -> Callable[[Any], None]:
            def hook(passing: Any) -> None:
                value = first_tensor(passing)
                read[index] = value.clone() if len(sites) > 1 else value  # work in place may follow
                if len(read) == len(sites):
                    raise _StateRead

            return hook

        with contextlib.ExitStack() as stack:
            stack.enter_context(at_site(self.noise_layer, lambda passing: _replace_first(passing, copies[0])))
            for index, site in enumerate(sites):
                stack.enter_context(at_site(site, reader(index)))
            stack.enter_context(rnn_backward(self.forward))
            with contextlib.suppress(_StateRead):
                output = self.forward(inputs, rows)
                read.update({index: output for index, site in enumerate(sites) if site is None})
        return [checked(read[index], len(rows), "state of noisy inputs") for index in range(len(sites))]


@contextlib.contextmanager
def no_fastpath() -> Iterator[None]:
    """Without gradients torch's fast path for attention zeroes padded positions; with them it does not."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _KeepGradients(TorchFunctionMode):
    """Lets no one switch gradients off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not (args or tuple((kwargs or {}).values()))[0]:
            return None
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def gradients_on() -> Iterator[None]:
    """Switch gradients on, also where the code that runs inside switches them off with ``torch.no_grad()``.

    ``torch.inference_mode()`` cannot be undone so: its tensors never carry a gradient (``is_inference()``).

    Examples::
        >>> x = torch.ones(2, requires_grad=True)
        >>> with gradients_on(), torch.no_grad():
        ...     y = 2 * x
        >>> y.requires_grad
        True
    """
    with torch.enable_grad(), _KeepGradients():
        yield


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

    def of_all_elements(self) -> float | None:
        """The standard deviation of all elements of all samples together, to five digits; None where it is 0."""
        if self._mean is None or self._squares is None:
            return None
        variance = self._squares.mean() / self.count + self._mean.var(unbiased=False)
        return float(f"{float(variance.sqrt()):.5g}") or None

    def mean(self) -> Tensor:
        """Mean of the samples, float32."""
        return self._known(self._mean).float()

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Population standard deviation of the samples."""
        return self._known(self._squares).div(max(self.count, 1)).sqrt().to(dtype)

    @staticmethod
    def _known(value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("no state was seen yet; call update() with at least one sample first")
        return value
