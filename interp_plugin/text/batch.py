"""Padded batches of texts, and the fits of model states on them."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp_plugin.method.erasure import Way
from interp_plugin.method.objective import default_rows
from interp_plugin.method.perturbation import FULL, ExampleError, NoisyModel, Selector, Site, alike
from interp_plugin.method.problem import Problem, Terms, fit_together, pose
from interp_plugin.method.solver import NoiseFit, Solver
from interp_plugin.text.models import OUTPUT, Encoding, Function, TextModel, shown, watched
from interp_plugin.text.states import State

MAX_TOKENS = 2048  # tokens in a batch, padding included
MAX_GRADIENTS = 2**31  # bytes that a forward of a language model stores for its backward
# activations that each layer stores for its backward, in units of a token's width (inputs and outputs of attention
# and of the feed-forward layers)
KEPT_WIDTHS = 24
MAX_SCORES = 2**24  # elements of a language model's output, (rows, places, vocabulary)


def batches(encodings: Sequence[Encoding], size: int, pads: bool) -> list[list[int]]:
    """Group texts into batches of similar length, longest first, to save padding; return their indices.

    Args:
        size: largest number of texts in a batch.
        pads: whether lengths may differ within a batch.

    Examples::
        >>> texts = [Encoding("", None, ("a",) * n, (None,) * n, (0,) * n) for n in (2, 9, 10, 3)]
        >>> batches(texts, 2, pads=True), batches(texts, 2, pads=False)
        ([[2, 1], [3], [0]], [[2], [1], [3], [0]])
    """
    # noise samples belong to columns, and padding for another text's choices would shift the columns
    kinds: dict[tuple[int, ...], list[int]] = {}
    for index, encoding in enumerate(encodings):
        kinds.setdefault(encoding.extra.get("choice", ()), []).append(index)
    full = FULL if pads else 1.0
    return [
        [own[i] for i in some]
        for own in kinds.values()
        for some in alike([len(encodings[i].ids) for i in own], full, size, MAX_TOKENS)
    ]


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc).

    Batches of ever new lengths fragment its heap: over 5,000 sentences the resident memory of a study grew from
    720 to 1,040 MiB without one object more, and fell to 520 after this call.  It takes milliseconds.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class Batch:
    """A batch of texts; creating it runs the model once without noise.

    Args:
        model: the model.
        encodings: the texts; with a target if the output of a language model is a state.
        noise_layer: module to whose output noise is added.
        sites: where states will be read; None is the output.
        max_rows: largest number of rows in the clean forward; None: all, or fewer for a language model.
        function: function of a language model's target that is the state.
        tick: called with the number of rows before each forward.
    """

    def __init__(
        self,
        model: TextModel,
        encodings: Sequence[Encoding],
        noise_layer: Site,
        sites: Sequence[Site | None],
        max_rows: int | None = None,
        function: Function = "log_probability",
        tick: Callable[[int], None] | None = None,
    ) -> None:
        arguments, self.token_mask = model.collate(encodings)
        self._model, self._function, self._tick = model, function, tick
        self.encodings = list(encodings)
        self.targets = (
            _Targets.of(encodings, self.token_mask.device) if any(e.target for e in encodings) else None
        )
        if max_rows is None and model.vocabulary:
            max_rows = self._rows_of_scores
        self._units = _units(encodings, self.token_mask)
        self._decoder_mask = _decoder_mask(encodings).to(self.token_mask.device)
        self._noisy = NoisyModel(self._forward(self.targets), arguments, noise_layer, max_rows=max_rows)
        self._sites = list(sites)
        self._wholes = self._noisy.read(sites)
        origin = self.origin
        if origin.ndim != 3 or origin.shape[:2] != self.token_mask.shape:
            raise ValueError(
                f"the noise layer's output has shape {tuple(origin.shape)}, and (texts, tokens) is "
                f"{tuple(self.token_mask.shape)}; give a layer whose output is (texts, tokens, dimensions)"
            )
        self.token_size = origin.shape[2]

    def _forward(self, targets: _Targets | None) -> _Forward:
        return _Forward(self._model, targets, self._function, self._tick)

    @property
    def _rows_of_scores(self) -> int:
        """Rows in one forward of a language model, limited by the size of its output."""
        places = self.token_mask.shape[1]
        if self._model.axis[OUTPUT] == "decoder":
            places = max(len(e.extra.get("decoder_input_ids", ())) for e in self.encodings)
        if self.targets is not None and hasattr(self._model, "scores_at"):
            places = min(places, len(self.targets.places.unique()))
        return max(1, MAX_SCORES // (places * self._model.vocabulary))

    def at(self, examples: Sequence[int]) -> Batch:
        """Return a batch of some of the texts, without running the model again."""
        part = copy(self)
        rows = torch.tensor(examples, device=self.token_mask.device)
        part.encodings = [self.encodings[i] for i in examples]
        part.token_mask = self.token_mask[rows]
        part._units = None if self._units is None else self._units[rows]
        part._decoder_mask = self._decoder_mask[rows]
        part.targets = self.targets and self.targets.at(rows)
        part._wholes = [whole[rows.to(whole.device)] for whole in self._wholes]
        inputs, origin = (
            [x[rows.to(x.device)] for x in xs] for xs in (self._noisy.inputs, self._noisy.origin)
        )
        part._noisy = replace(self._noisy, forward=self._forward(part.targets), inputs=tuple(inputs))
        part._noisy.origin = tuple(origin)
        part._noisy.learned_from(self._noisy)
        return part

    @property
    def origin(self) -> Tensor:
        """The output of the noise layer, without noise, (B, T, K)."""
        return self._joined(self._noisy.origin[0])

    def _joined(self, value: Tensor) -> Tensor:
        """Join choices and tokens to one dimension, (B, C, T, ...) -> (B, C * T, ...); other values are unchanged."""
        has_choices = bool(self.encodings[0].choices) and value.ndim > 3
        return value.flatten(1, 2) if has_choices else value

    def whole(self, site: Site | None) -> Tensor:
        """Return the value at a site without noise, (B, ...)."""
        return self._joined(self._wholes[self._sites.index(site)])

    def places(self, state: State) -> Tensor | None:
        """Return which places along dimension 1 of a state are real, (B, places); None if it has no such dimension."""
        whole = self.whole(state.site)
        if self.targets is not None and state.site is None:
            return self.targets.real if state.neurons is None else self.targets.real[:, state.neurons]
        on_decoder = self._model.axis[state.layer] == "decoder"
        mask = self._decoder_mask if on_decoder else self.token_mask
        if whole.ndim > 2 and whole.shape[1] == mask.shape[1]:
            return mask
        if whole.ndim > 2 and getattr(self._model, "tokens_first", False):
            raise ValueError(
                f"the state of layer {state.label!r} has shape {tuple(whole.shape)} for {mask.shape[1]} tokens: "
                "dimension 1 must run over the tokens; choose another layer, or use LayerInformationLoss with modules "
                "of your choice"
            )
        return None

    def predicting(self, state: State, real: Tensor) -> Tensor:
        """Return the places that predict a language model's targets, (B, places); all real ones without a target."""
        if self._model.task != "next token" or self._model.axis[state.layer] != self._model.axis[OUTPUT]:
            return real
        mask = real.clone()
        for row, encoding in enumerate(self.encodings):
            if encoding.target:
                mask[row] = False
                mask[row, list(encoding.target_positions)] = True
        return mask

    @property
    def default_rows(self) -> int:
        """Rows in one forward: the solver's default, reduced for a language model by its depth and its output."""
        elements = self._noisy.origin[0][0].numel()
        rows = default_rows(elements)
        if self._model.vocabulary:
            rows = min(rows, MAX_GRADIENTS // (4 * KEPT_WIDTHS * elements * len(self._model.layers)))
        if self._model.vocabulary and self.targets is not None and None in self._sites:
            rows = min(rows, self._rows_of_scores)
        return max(1, rows)

    @property
    def players(self) -> Tensor:
        """Mask of the texts' own tokens, (B, T): neither special tokens nor padding."""
        real = torch.zeros_like(self.token_mask, dtype=torch.bool)
        for row, encoding in enumerate(self.encodings):
            places = self.token_mask[row].nonzero()[:, 0]
            is_text = [offset is not None for offset in encoding.offsets]
            real[row, places] = torch.tensor(is_text, device=real.device)
        return real

    def masked_origin(self) -> Tensor | None:
        """Return the output of the noise layer when every token of the text is the mask token, (B, T, K).

        None if the model has no mask token.
        """
        if self._model.mask_id is None:
            return None
        ids, *others = self._noisy.inputs
        masked = torch.where(self.players.to(ids.device), self._model.mask_id, ids)
        model = replace(self._noisy, inputs=(masked, *others))
        model.read([])
        return model.origin[0]

    def edited(
        self, way: Way, examples: Tensor, kept: Tensor, state: State, selector: Selector | None = None
    ) -> NoisyModel:
        """Return the model on rows of these examples (R,) with tokens hidden or deleted; kept is (R, T).

        ``selector``, if given, replaces the state's own selector.
        """
        noisy = self._noisy.at(state.site)
        noisy.selector = selector or state.selector
        if self._units is not None:
            units = self._units[examples.to(self._units.device)].to(kept.device)
            kept = kept.gather(1, units.clamp(min=0)) | (units < 0)
        inputs = tuple(x[examples.to(x.device)] for x in noisy.inputs)
        targets = self.targets and self.targets.at(examples.to(self.targets.ids.device))
        if way == "attention":
            if len(inputs) < 2 or inputs[1].shape != kept.shape:
                raise ValueError(
                    f"{self._model.name} takes no attention mask; erase in the ways 'mask' or 'delete'"
                )
            inputs = (inputs[0], inputs[1] * kept.to(inputs[1]), *inputs[2:])
        else:
            real = self.token_mask.bool().cpu()
            shorter = [
                self.encodings[example].only(row[real[example]].tolist())
                for example, row in zip(examples.tolist(), kept.cpu())
            ]
            inputs = self._model.collate(shorter)[0]
            targets = targets and _Targets.of(shorter, targets.ids.device)
            noisy.noise_layer = None
        noisy.forward, noisy.inputs = self._forward(targets), inputs
        return noisy

    def fit(
        self,
        states: Sequence[State],
        masks: Sequence[Tensor | None],
        terms: Terms,
        solver: Solver,
        max_rows: int | None = None,
        on_fit: Callable[[], None] | None = None,
    ) -> list[NoiseFit]:
        """Fit all texts for each state.

        Args:
            states: one or more states.
            masks: for each state, which places along dimension 1 count, (B, places); None: all.
            terms: rate, max_sigma and input_std; state_std comes from the states.
            solver: tolerance and budget of the solver.
            max_rows: largest number of rows in one forward; None: :attr:`default_rows`.
            on_fit: called after each state's fit.
        """
        rows = max_rows or self.default_rows
        with naming_texts(self.encodings):
            problems = [self.pose(*pair, terms, rows) for pair in zip(states, masks)]
            return fit_together(problems, solver, on_fit=on_fit)

    def pose(
        self,
        state: State,
        mask: Tensor | None,
        terms: Terms,
        rows: int,
        selector: Selector | None = None,
    ) -> Problem:
        """Set up the problem of a state for the solver; ``selector``, if given, replaces the state's selector."""
        whole = self._wholes[self._sites.index(state.site)]
        noisy = self._noisy.at(state.site)
        noisy.selector, noisy.max_rows = selector or state.selector, rows
        selected = noisy.selected(whole)
        counted = torch.ones_like(selected, dtype=torch.bool)
        if mask is not None:
            size = mask.shape[1]  # of dimension 1, or of dimensions 1 and 2 together
            shape = mask.shape if selected.shape[1] == size else selected.shape[:3]
            counted &= mask.reshape(*shape, *[1] * (selected.ndim - len(shape)))
        own = replace(terms, state_std=state.selected_std)
        if self._units is None:
            return pose(noisy, own, None, self.token_mask, counted, whole)
        numbers, mask = self._numbered_units()
        features = (
            numbers.unsqueeze(2).expand(-1, -1, self.token_size).reshape(self._noisy.origin[0].shape),
        )
        return pose(noisy, own, features, mask, counted, whole)

    def _numbered_units(self) -> tuple[Tensor, Tensor]:
        """Return the unit of each token, (B, T), and the mask of units that receive noise, (B, units).

        Tokens without noise share one extra unit.
        """
        assert self._units is not None
        has_noise = self._units >= 0
        count = int(self._units.max()) + 1
        numbers = torch.where(has_noise, self._units, count)
        mask = torch.zeros(len(numbers), int(numbers.max()) + 1, dtype=torch.bool, device=numbers.device)
        return numbers, mask.scatter_(1, numbers, has_noise)

    def tokens_in_unit(self, index: int) -> Tensor:
        """Return, for each token of a text, the number of tokens in its unit, (T,)."""
        if self._units is None:
            return torch.ones(int(self.token_mask[index].sum()))
        numbers, _ = self._numbered_units()
        real = numbers[index][self.token_mask[index].bool()].cpu()
        return real.bincount()[real].float()

    def per_token(self, values: Tensor, index: int) -> Tensor:
        """Spread row ``index`` of (B, units) over the T tokens of that text; on the CPU."""
        row = values[index]
        if self._units is not None:
            row = row[self._numbered_units()[0][index].to(row.device)]
        return row[self.token_mask[index].to(row.device).bool()].cpu()


def _units(encodings: Sequence[Encoding], token_mask: Tensor) -> Tensor | None:
    """Return the unit number of each token, (B, T), -1 for no noise; None if every token is a unit."""
    if not any(e.units for e in encodings):
        return None
    numbers = torch.full(token_mask.shape, -1)
    for row, encoding in enumerate(encodings):
        own = encoding.units or tuple(range(len(encoding.ids)))
        numbers[row, token_mask[row].cpu().bool()] = torch.tensor(own)
    return numbers.to(token_mask.device)


def _decoder_mask(encodings: Sequence[Encoding]) -> Tensor:
    """Return which places of the decoders' sequences are real, (B, places)."""
    lengths = torch.tensor([len(e.extra.get("decoder_input_ids", ())) for e in encodings])
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


@contextmanager
def naming_texts(encodings: Sequence[Encoding]) -> Iterator[None]:
    """Inside the block, name the text in errors that the solver reports by example number."""
    try:
        yield
    except ExampleError as error:
        raise error.named(f"text {shown(encodings[error.example].text)}") from error


@dataclass(frozen=True)
class _Targets:
    """Target tokens of a language model or ends of an answer span, padded to the largest number n."""

    ids: Tensor  # (B, n)
    places: Tensor  # (B, n), output position that predicts each target
    real: Tensor  # (B, n), false for padding
    foils: Tensor  # (B, n), equal to ids where there is no contrast
    is_contrast: bool
    lengths: Tensor  # (B,), of the texts: an answer span cannot be in the padding

    @classmethod
    def of(cls, encodings: Sequence[Encoding], device: torch.device) -> _Targets:
        count = max(len(e.target) for e in encodings)
        ids, places = torch.zeros(2, len(encodings), count, dtype=torch.long)
        real = torch.zeros(len(encodings), count, dtype=torch.bool)
        for row, e in enumerate(encodings):
            n = len(e.target)
            ids[row, :n], places[row, :n] = ids.new_tensor(e.target), ids.new_tensor(e.target_positions)
            real[row, :n] = True
        foils = ids.clone()
        for row, e in enumerate(encodings):
            foils[row, : len(e.foils)] = ids.new_tensor(e.foils)
        is_contrast = any(e.foils for e in encodings)
        lengths = torch.tensor([len(e.ids) for e in encodings], device=device)
        ids, places, real, foils = (x.to(device) for x in (ids, places, real, foils))
        return cls(ids, places, real, foils, is_contrast, lengths)

    def at(self, rows: Tensor) -> _Targets:
        return _Targets(
            self.ids[rows],
            self.places[rows],
            self.real[rows],
            self.foils[rows],
            self.is_contrast,
            self.lengths[rows],
        )


class _Forward:
    """The model on rows of a batch; with targets, its output is the function of their scores, (R, n)."""

    def __init__(
        self,
        model: TextModel,
        targets: _Targets | None,
        function: Function,
        tick: Callable[[int], None] | None,
    ) -> None:
        self.model, self.targets, self.function, self.tick = model, targets, function, tick
        self.module: nn.Module = model.module

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        if self.tick is not None:
            self.tick(len(rows))
        if self.targets is None:
            return self.model(*inputs)
        scores = scores_at(self.model, inputs, self.targets.places[rows.to(self.targets.places.device)])
        rows = rows.to(scores.device)
        ids, foils = (x.to(scores.device)[rows] for x in (self.targets.ids, self.targets.foils))
        if self.model.task == "answer span":
            scores = without_padding(scores, self.targets.lengths.to(scores.device)[rows])
        values = watched(scores, ids, self.function)
        if not self.targets.is_contrast:
            return values
        return torch.where(ids == foils, values, watched(scores, ids, self.function, foils))


def without_padding(scores: Tensor, lengths: Tensor) -> Tensor:
    """Set the scores of padding as the end of an answer, (R, n, T), to -inf; lengths is (R,)."""
    padding = torch.arange(scores.shape[-1], device=scores.device) >= lengths[:, None, None]
    return scores.masked_fill(padding, -torch.inf)


def scores_at(model: TextModel, inputs: tuple[Tensor, ...], places: Tensor) -> Tensor:
    """Return a language model's scores at some places of each row, (R, n, vocabulary); places is (R, n)."""
    if hasattr(model, "scores_at"):  # computes only these places
        found: Tensor = model.scores_at(inputs, places)
        return found
    output = model(*inputs)
    rows = torch.arange(len(output), device=output.device).unsqueeze(1)
    return output[rows, places.to(output.device)]
