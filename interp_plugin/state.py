"""Where noise enters the model and where its state is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from interp_plugin.forwards import (
    ForwardMode,
    StateRead,
    left_early,
    modules_behind,
    on_one_device,
    uncompiled,
)
from interp_plugin.forwards import RecordedOnce as RecordedOnce
from interp_plugin.forwards import gradients_on as gradients_on
from interp_plugin.forwards import in_this_thread as in_this_thread
from interp_plugin.forwards import no_fastpath as no_fastpath
from interp_plugin.outputs import Layout, is_plain, layout_of, replace_first
from interp_plugin.outputs import first_tensor as first_tensor
from interp_plugin.sites import LayerCall as LayerCall
from interp_plugin.sites import Recorder, checked, note_fast_paths
from interp_plugin.sites import Site as Site
from interp_plugin.sites import at_site as at_site
from interp_plugin.sites import module_of as module_of

Selector = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
Forward = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Runs the model on input rows; the second argument, (R,), says which example each row is of."""


class SelectorError(AssertionError, ValueError):
    """A selector that does not fit the state: an AssertionError where it is one of Captum's."""


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
        raise SelectorError(
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
    _layouts: dict[Site, Layout] = field(default_factory=dict, init=False, repr=False)
    _needs_mode: bool = field(default=True, init=False, repr=False)

    @property
    def batch(self) -> int:
        return len(self.inputs[0])

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[rows.to(x.device)] for x in self.inputs)

    def at(self, state_layer: Site | None) -> NoisyModel:
        """The same model and noise with the state read at another site."""
        other = replace(self, state_layer=state_layer)
        other.origin = self.origin
        return other.learned_from(self)

    def shorter(self, length: int) -> NoisyModel:
        """The same model and noise on the first positions of each row, dimension 1 of inputs and ``origin``."""
        other = replace(self, inputs=tuple(x[:, :length] for x in self.inputs))
        other.origin = tuple(x[:, :length] for x in self.origin)
        return other.learned_from(self)

    def learned_from(self, other: NoisyModel) -> NoisyModel:
        """This one, with what was learned of the forward by the other."""
        self._layouts, self._needs_mode = other._layouts, other._needs_mode
        return self

    def clean(self) -> tuple[Tensor, Tensor]:
        """The state without noise, before and after selection, each (B, ...); sets ``origin``."""
        [whole] = self.read([self.state_layer])
        return whole, self.selected(whole)

    def selected(self, whole: Tensor) -> Tensor:
        """The part of a clean state that the selector keeps."""
        return checked(select(whole, self.selector), self.batch, "selected state")

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, sites: Sequence[Site | None]) -> list[Tensor]:
        """Run the whole model once without noise; what passes at each site, (B, ...), examples first.

        ``origin`` is set to what noise is added to, each (B, ...).
        """
        chunks = torch.arange(self.batch).split(self.max_rows or self.batch)
        outputs, recorders = zip(*(self._recorded(sites, rows) for rows in chunks))
        self._find_layouts(recorders, sites, chunks[0])
        # the model may have worked in place on what it was given
        origins = [
            (self._taken(noise_at, rows),) if self.noise_layer else self._rows(rows)
            for (noise_at, *_), rows in zip(recorders, chunks)
        ]
        states = [
            [
                (self._taken(at, rows) if at.site else checked(output, len(rows), "model's output")).detach()
                for at in states_at
            ]
            for output, (_, *states_at), rows in zip(outputs, recorders, chunks)
        ]
        self.origin = tuple(torch.cat(parts) for parts in zip(*origins))
        return [torch.cat(parts) for parts in zip(*states)]

    def _recorded(self, sites: Sequence[Site | None], rows: Tensor) -> tuple[Any, list[Recorder]]:
        """The forward's output, where it is a state, and what passed at the noise layer and at each site."""
        recorders = [Recorder("noise layer", self.noise_layer)]
        recorders += [Recorder("state layer", site) for site in sites]
        inputs = self._rows(rows)
        note_fast_paths(modules_behind(getattr(self.forward, "module", None)))
        with contextlib.ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(at_site(recorder.site, recorder))
            stack.enter_context(uncompiled())
            mode = stack.enter_context(ForwardMode())
            output = self._in_this_thread()(inputs, rows)
        self._needs_mode = mode.needed
        return output if None in sites else None, recorders

    def _in_this_thread(self) -> Forward:
        """The forward, without the threads of DataParallel, in which no hook and no mode acts."""
        forward: Any = self.forward
        if not is_dataclass(forward) or not hasattr(forward, "module"):
            return self.forward
        alone: Forward = replace(cast(Any, forward), module=on_one_device(forward.module))
        return alone

    def _taken(self, recorder: Recorder, rows: Tensor) -> Tensor:
        return recorder.take(len(rows), self._layout(recorder.site))

    def _find_layouts(
        self, recorders: Sequence[list[Recorder]], sites: Sequence[Site | None], rows: Tensor
    ) -> None:
        """How examples lie at each site; where that is unclear, seen by one more forward, of the first example."""
        for chunks in zip(*recorders):
            if chunks[0].packed:
                self._layouts[chunks[0].site] = Layout(length=max(at.once().shape[1] for at in chunks))
        unclear = [
            index
            for index, at in enumerate(recorders[0])
            if at.site and not at.packed and not is_plain(at.once(), len(rows))
        ]
        if not unclear:
            return
        fewer = rows.new_zeros(1 if len(rows) > 1 else 2)
        try:
            _, others = self._recorded(sites, fewer)
        except Exception:  # whatever a model raises that runs with one number of examples only
            return
        for index in unclear:
            at, other = recorders[0][index], others[index]
            layout = layout_of(at.value, len(rows), other.value, len(fewer))
            if at.site and layout:
                self._layouts[at.site] = layout

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
        read: dict[int, Any] = {}
        written = 0
        recorded = RecordedOnce()

        def leave_if_done() -> None:
            if len(read) == len(sites) and (written or not self.noise_layer):
                raise StateRead

        def write(passing: Any) -> Any:
            nonlocal written
            written += 1
            leave_if_done()  # the state lies before the noise
            recorded.check("noise", module_of(self.noise_layer))
            return replace_first(passing, self._layout(self.noise_layer).joined(copies[0]))

        def reader(index: int) -> Callable[[Any], None]:
            def hook(passing: Any) -> None:
                recorded.check("state", module_of(sites[index]), is_replaced=False)
                value = first_tensor(passing)
                read[index] = value.clone() if len(sites) > 1 else value  # work in place may follow
                leave_if_done()

            return hook

        with contextlib.ExitStack() as stack:
            stack.enter_context(at_site(self.noise_layer, write))
            for index, site in enumerate(sites):
                stack.enter_context(at_site(site, reader(index)))
            for context in (uncompiled(), left_early()):
                stack.enter_context(context)
            if self._needs_mode:
                stack.enter_context(ForwardMode())
            watched = self._needs_mode or any(site is not None for site in (self.noise_layer, *sites))
            forward = self._in_this_thread() if watched else self.forward
            output = forward(inputs, rows)
            read.update({index: output for index, site in enumerate(sites) if site is None})
        if (self.noise_layer and written != 1) or len(read) < len(sites):
            self._refuse_unseen(written, [site for index, site in enumerate(sites) if index not in read])
        return [
            checked(self._layout(site).apart(read[index]), len(rows), "state of noisy inputs")
            for index, site in enumerate(sites)
        ]

    def _layout(self, site: Site | None) -> Layout:
        return Layout() if site is None else self._layouts.get(site, Layout())

    def _refuse_unseen(self, written: int, unread: Sequence[Site | None]) -> None:
        """The error of a forward with noise that did not pass where the one without noise did."""
        if self.noise_layer and written != 1:
            name, module, times = "noise", module_of(self.noise_layer), written
        else:
            name, module, times = "state", module_of(unread[0]), 0
        raise ValueError(
            f"the {name} layer {type(module).__name__} ran once without noise and {times} times with it; give "
            "a layer that runs in every forward, and a model that is not compiled, scripted or exported (those may run "
            "no hooks)"
        )


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
        values = values.detach()
        values = (values.cpu() if values.device.type == "mps" else values).to(torch.float64)  # MPS has none
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
