"""Explain a batch of texts: a row for each state, computed by the solver or by the erasure channel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interp_plugin.huggingface.outputs import likeliest
from interp_plugin.method.erasure import Erasing, Erasure, ErasureFit, Side, Way, learn_erasure
from interp_plugin.method.perturbation import Selector, Site, gradients, module_of
from interp_plugin.method.problem import Terms, nothing
from interp_plugin.method.solver import PROBES, NoiseFit, Solver
from interp_plugin.report.explanations import INSTEAD_OF
from interp_plugin.text.batch import MAX_SCORES, Batch, naming_texts, scores_at, without_padding
from interp_plugin.text.explanation import ErasedRow, Row, TextExplanation
from interp_plugin.text.models import (
    HIDDEN,
    OUTPUT,
    Axis,
    Encoding,
    Function,
    Label,
    TextModel,
    as_int,
    class_log_odds,
    plain_values,
    shown,
)
from interp_plugin.text.states import State

MAJORITY = 0.5  # share of the sum of squares above which one element or token has most of the distortion
MOST_OF_ANSWER = 15  # tokens
FEW_PLACES = 4  # with fewer tokens, one of them may well have half of the state
Found = TypeVar("Found")
Positions = int | Sequence[int] | Literal["each", "all"] | None


@dataclass(frozen=True)
class Plan:
    """What to compute for each text of a batch.

    Attributes:
        states: the states; each has a row, in this order.
        positions: for states with tokens: None explains all together, or those that predict a language model's target;
            "all" always all; an index (negative from the end), several, or "each" one by one.
        noise_layer: where noise is added.
        target: name of the explained output, if there is one.
        rate, max_sigma, input_std, solver: settings of the fits.
        max_rows: largest number of rows in one forward; None starts from a number that depends on the length, and
            halves it when memory runs out.
        function: the function of a language model's target that is explained.
        progress: the progress bar, if there is one.
        lowerings: how often a state that saturates is solved again, each time at a tenth of the rate.
    """

    states: tuple[State, ...]
    positions: Positions
    noise_layer: Site
    target: str | None
    rate: float
    max_sigma: float | None
    solver: Solver
    max_rows: int | None = None
    input_std: float | None = None
    function: Function = "log_probability"
    progress: Progress | None = None
    lowerings: int = 0

    @property
    def passes(self) -> int:
        """Approximate maximum number of sample passes for a row."""
        return PROBES + self.solver.max_batches * self.solver.draws

    def rows_of(self, encoding: Encoding) -> int:
        """Estimate the number of rows of a text."""
        given = plain_values(self.positions)
        places = (
            len(encoding.ids) if given == "each" else len(given) if isinstance(given, (list, tuple)) else 1
        )
        return sum(1 if state.site is None else places for state in self.states)


class Progress:
    """A progress bar over the rows of texts that moves with each sample pass.

    Args:
        rows: number of rows of all texts.
        passes: maximum for a row; the bar jumps ahead if a row takes fewer.
        name: description of the bar.
        is_shown: whether to show the bar.
    """

    def __init__(self, rows: int, passes: int, name: str, is_shown: bool = True) -> None:
        self.rows, self.share = rows, passes
        self.done = self.begun = self.passes = self.since = 0
        self.bar = tqdm(
            total=rows * passes,
            desc=name,
            disable=not is_shown,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.done = self.rows
            self._move(self.bar.total)
        self.bar.close()

    def begin(self, rows: int) -> None:
        """Record that so many rows are started together."""
        self.begun, self.since = rows, 0

    def tick(self, passes: int) -> None:
        """Record that so many passes were made."""
        self.passes += passes
        self.since += passes
        self._move(self.done * self.share + min(self.since, self.begun * self.share))

    def end(self) -> None:
        """Record that the rows in work are done, or one row of each of their texts."""
        self.done, self.since = min(self.done + self.begun, self.rows), 0
        self._move(self.done * self.share)

    def _move(self, to: int) -> None:
        self.bar.set_postfix_str(f"{self.done}/{self.rows} rows, {self.passes} passes", refresh=False)
        self.bar.update(min(to, self.bar.total or 0) - self.bar.n)


class Finder(Protocol):
    """Computes the rows of each text of a batch in place of the solver."""

    def watch(self, model: TextModel, encodings: Sequence[Encoding]) -> AbstractContextManager[Any]:
        """Return a context for the forward without noise; its value is passed to :meth:`rows`."""
        ...

    def rows(self, batch: Batch, plan: Plan, seen: Any) -> list[tuple[Row, ...]]:
        """Return the rows of each text, as :func:`solved` does."""
        ...


def score(
    model: TextModel, encodings: Sequence[Encoding], plan: Plan, finder: Finder | None = None
) -> list[TextExplanation]:
    """Explain each text of one batch.

    Args:
        model: the model.
        encodings: the encoded texts.
        plan: what to compute.
        finder: computes the rows of each text; None: the solver.
    """
    guesses: list[tuple[str, float] | None] = [None] * len(encodings)
    has_output = any(state.site is None for state in plan.states)
    if model.task == "next token" and has_output:
        encodings, guesses = with_next_tokens(model, encodings, plan.max_rows)
    if model.task == "answer span" and has_output:
        encodings, guesses = _with_answers(model, encodings)
    sites = dict.fromkeys(state.site for state in plan.states)
    if model.task == "sequence classes":
        sites[None] = None
    tick = None if plan.progress is None else plan.progress.tick
    with nullcontext() if finder is None else finder.watch(model, encodings) as seen:
        batch = Batch(model, encodings, plan.noise_layer, list(sites), plan.max_rows, plan.function, tick)
    if model.task == "sequence classes":
        guesses = [
            _chosen(e.choices, scores) if e.choices else model.predicted(scores)
            for e, scores in zip(encodings, batch.whole(None))
        ]
    warn_of_concentration(batch, plan.states)
    rows = solved(model, batch, plan) if finder is None else finder.rows(batch, plan, seen)
    return [
        TextExplanation(
            text=encoding.text,
            pair=encoding.pair,
            tokens=encoding.tokens,
            offsets=encoding.offsets,
            size=batch.token_size,
            predicted=guess[0] if guess else None,
            probability=guess[1] if guess else None,
            target=target_name(model, encoding) if encoding.target else plan.target,
            rows=rows_of_text,
            words=encoding.words,
            units=encoding.units,
        )
        for encoding, guess, rows_of_text in zip(encodings, guesses, rows)
    ]


def grid(model: TextModel, whole: Encoding, steps: Sequence[TextExplanation]) -> TextExplanation:
    """Combine the explanations of a continuation's tokens into rows of one text; a row keeps 0 of later tokens.

    Args:
        model: the model.
        whole: the text with its continuation.
        steps: the explanation of each token of the continuation, in order, given the tokens before it.
    """
    count = len(whole.ids)
    in_decoder = model.axis[OUTPUT] == "decoder"
    rows: dict[tuple[Label, int], Row] = {}
    for number, step in enumerate(steps):
        predicted = number if in_decoder else len(step.tokens)
        for row in step.rows:
            position = predicted if row.layer == OUTPUT else predicted - (not in_decoder)
            rows[row.layer, position] = _widened(replace(row, position=position), count)
    layers = list(dict.fromkeys(layer for layer, _ in rows))
    ordered = sorted(rows.items(), key=lambda pair: layers.index(pair[0][0]))
    return TextExplanation(
        text=whole.text,
        pair=whole.pair,
        tokens=whole.tokens,
        offsets=whole.offsets,
        size=steps[0].size,
        predicted=None,
        probability=None,
        target="".join(str(step.target) for step in steps),
        rows=tuple(row for _, row in ordered),
        words=whole.words,
        units=whole.units,
    )


def _widened(row: Row, count: int) -> Row:
    """Append tokens to a row; its state does not depend on them."""
    more = count - len(row.sigma)
    if isinstance(row, ErasedRow):
        zeros = torch.zeros(more)
        return replace(
            row,
            sigma=torch.cat([row.sigma, torch.full((more,), math.nan)]),
            standard_error=torch.cat([row.standard_error, zeros]),
            erased=torch.cat([row.erased, zeros]),
            erasure_probability=torch.cat([row.erasure_probability, zeros]),
        )
    sigma = torch.cat([row.sigma, torch.full((more,), row.max_sigma)])
    share = len(row.sigma) / count  # of the mean over all tokens
    return replace(
        row,
        sigma=sigma,
        standard_error=torch.cat([row.standard_error, torch.zeros(more)]),
        common_error=row.common_error * share,
    )


def target_name(model: TextModel, encoding: Encoding) -> str:
    """Return the name of the target and of its alternative."""
    name = model.target_name(encoding)
    if not encoding.foils:
        return name
    return f"{name}{INSTEAD_OF}{model.target_name(replace(encoding, target=encoding.foils))}"


def solved(model: TextModel, batch: Batch, plan: Plan) -> list[tuple[Row, ...]]:
    """Solve for the rows of each text, in the plan's order, positions of a state one after another.

    Args:
        model, plan: as for :func:`score`.
        batch: the batch of texts.
    """
    found: list[list[tuple[int, Row]]] = [[] for _ in batch.encodings]
    for part in parts(model, batch, plan):
        for state, rows in zip(part.states, _solved_part(batch, part, plan)):
            for example, row in zip(part.examples, rows):
                found[example].append((plan.states.index(state), row))
    return [tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])) for rows in found]


def _solved_part(batch: Batch, part: Part, plan: Plan) -> list[list[Row]]:
    """Return the row of each example, for each state.

    If D saturates, no minimum is certain at this rate: the state is then solved again at a tenth of it, by default with
    twice the samples.
    """
    some = batch if len(part.examples) == len(batch.encodings) else batch.at(part.examples)
    found = []
    for number, (state, places, fit) in enumerate(zip(part.states, part.positions, _fits(some, part, plan))):
        rows = [_row(some, state, place, fit, index) for index, place in enumerate(places)]
        # for outputs, which have few elements, the solver itself chooses the rate
        again = fit.saturated.nonzero()[:, 0].tolist() if plan.lowerings and state.site is not None else []
        if again:
            solver = plan.solver
            if solver.iterations is None and solver.max_passes is None:
                solver = replace(solver, iterations=2 * solver.max_batches)
            lower = replace(
                plan, rate=plan.rate / 10, solver=solver, lowerings=plan.lowerings - 1, progress=None
            )
            [others] = _solved_part(batch, part.only(number, again), lower)
            for index, row in zip(again, others):
                spent = rows[index]
                rows[index] = replace(
                    row,
                    n_forward=row.n_forward + spent.n_forward,
                    n_backward=row.n_backward + spent.n_backward,
                )
        found.append(rows)
    return found


def _fits(batch: Batch, part: Part, plan: Plan) -> list[NoiseFit]:
    """Fit each state of a part."""
    terms = Terms(plan.rate, plan.max_sigma, None, plan.input_std)
    end = None if plan.progress is None else plan.progress.end
    if plan.progress is not None:
        plan.progress.begin(len(part.examples))
    return with_fewer_rows(
        plan, batch, lambda rows: batch.fit(part.states, part.masks, terms, plan.solver, rows, end)
    )


def with_fewer_rows(plan: Plan, batch: Batch, call: Callable[[int], Found]) -> Found:
    """Call with the number of rows in a forward, and again with half of them whenever memory runs out."""
    rows = plan.max_rows or batch.default_rows
    while True:
        try:
            return call(rows)
        except (RuntimeError, MemoryError) as error:
            if plan.max_rows or rows == 1 or not _out_of_memory(error):
                raise
        rows //= 2
        torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has no class for it on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def warn_of_unreached_states(texts: Iterable[TextExplanation]) -> None:
    """Warn once of all states that noise does not reach; the solver would warn for each text."""
    unreached: dict[Label, str] = {}
    for item in texts:
        for row in item.rows:
            if row.distortion == 0:
                unreached.setdefault(row.layer, item.text)
    if unreached:
        layers, text = ", ".join(map(repr, unreached)), next(iter(unreached.values()))
        warnings.warn(
            f"noise does not reach the state of {layers} (in text {shown(text)}, for one): every token is at the cap "
            "there; watch states that are computed after the noise layer and from it",
            stacklevel=3,
        )


def warn_of_concentration(batch: Batch, states: Sequence[State]) -> None:
    """Warn of layers in which one element or token has most of the distortion.

    Without a calibration v^2 is the mean of s^2: an element with most of the sum of squares has most of the distortion.
    """
    found: dict[str, list[str]] = {}
    for state in states:
        real = batch.places(state)
        if state.site is None or state.state_std is not None or state.neurons is not None or real is None:
            continue
        squares = batch.whole(state.site).float().square().flatten(2) * real.unsqueeze(2)  # (B, T, K)
        total = squares.sum((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
        element = squares.flatten(1).amax(1) / total
        token = squares.sum(2).amax(1) / total * (real.sum(1) >= FEW_PLACES)
        for example in ((element > MAJORITY) | (token > MAJORITY)).nonzero()[:, 0].tolist():
            place, dimension = divmod(int(squares[example].argmax()), squares.shape[2])
            at = (
                f"dimension {dimension} of token {place}" if element[example] > MAJORITY else f"token {place}"
            )
            found.setdefault(at, []).append(repr(state.label))
    for at, labels in found.items():
        hidden = any(HIDDEN in label for label in labels)
        warnings.warn(
            f"{at} has more than half of the sum of squares of the state of layer {', '.join(dict.fromkeys(labels))}, "
            "which the noise is then measured by alone; calibrate() gives each dimension a unit of its own"
            + (
                f", and a layer's label without {HIDDEN} is what the next block reads of it" if hidden else ""
            ),
            stacklevel=4,
        )


def with_next_tokens(
    model: TextModel, encodings: Sequence[Encoding], max_rows: int | None = None
) -> tuple[list[Encoding], list[tuple[str, float] | None]]:
    """Set the model's own next token as target of texts without one; return also its name and probability."""
    if all(e.target for e in encodings):
        return list(encodings), [None] * len(encodings)
    arguments, _ = model.collate([e.unasked for e in encodings])
    last = torch.tensor([[len(e.extra.get("decoder_input_ids", e.ids)) - 1] for e in encodings])
    rows = max_rows or max(1, MAX_SCORES // (model.vocabulary * len(last.unique())))
    asked: list[Encoding] = []
    guesses: list[tuple[str, float] | None] = []
    for chosen in torch.arange(len(encodings)).split(rows):
        some = tuple(x[chosen.to(x.device)] for x in arguments)
        with torch.inference_mode(False), torch.no_grad():
            scores = scores_at(model, some, last[chosen])[:, 0]  # (R, vocabulary)
        for index, of_text in zip(chosen.tolist(), scores):
            encoding, place = encodings[index], int(last[index])
            own = replace(encoding, target=(int(of_text.argmax()),), target_positions=(place,))
            asked.append(encoding if encoding.target else own)
            guesses.append(None if encoding.target else model.predicted(of_text))
    return asked, guesses


def _chosen(choices: Sequence[str], scores: Tensor) -> tuple[str, float]:
    """Return name and probability of the likeliest choice, from the scores of all, (C,)."""
    index, probability = likeliest(scores)
    return choices[index], probability


def _with_answers(
    model: TextModel, encodings: Sequence[Encoding]
) -> tuple[list[Encoding], list[tuple[str, float] | None]]:
    """Set the ends of the model's own answer as target of texts without one; return also answer and probability.

    It is the likeliest span of at most MOST_OF_ANSWER tokens of the text (of its pair, if there is one), as in the
    pipeline of transformers; probabilities are over all tokens.
    """
    arguments, mask = model.collate([e.unasked for e in encodings])
    with torch.inference_mode(False), torch.no_grad():
        scores = without_padding(model(*arguments), mask.sum(1)).float().log_softmax(-1).cpu()  # (B, 2, T)
    asked: list[Encoding] = []
    guesses: list[tuple[str, float] | None] = []
    for encoding, (start, end) in zip(encodings, scores):
        segment = 0 if encoding.pair is None else 1
        is_own = torch.tensor([bool(o) and o[0] == segment for o in encoding.offsets])  # type: ignore[index]
        count = len(is_own)
        length = torch.arange(count) - torch.arange(count).unsqueeze(1)
        allowed = (length >= 0) & (length < MOST_OF_ANSWER) & is_own & is_own.unsqueeze(1)
        spans = (start[:count, None] + end[:count]).masked_fill(~allowed, -torch.inf)  # (first, last)
        first, last = divmod(int(spans.argmax()), count)
        own = replace(encoding, target=(first, last), target_positions=(0, 1))
        guesses.append((model.target_name(own), float(spans[first, last].exp())))
        ends = encoding.target_positions or (0, 1)
        asked.append(
            encoding
            if encoding.target
            else replace(encoding, target=tuple((first, last)[end] for end in ends), target_positions=ends)
        )
    return asked, guesses


@dataclass(frozen=True)
class Part:
    """States of some of the texts that are fitted together."""

    examples: list[int]
    states: list[State]
    masks: list[Tensor | None]  # which places along dimension 1 count, (examples, places)
    positions: list[list[int | None]]  # of each state, for each example

    def only(self, state: int, rows: Sequence[int]) -> Part:
        """Return the part with one of the states, for some of the examples."""
        mask, places = self.masks[state], self.positions[state]
        return Part(
            [self.examples[row] for row in rows],
            [self.states[state]],
            [None if mask is None else mask[list(rows)]],
            [[places[row] for row in rows]],
        )


def parts(model: TextModel, batch: Batch, plan: Plan) -> Iterator[Part]:
    """Divide the plan into parts that have at most one row of each state for a text."""
    everyone = list(range(len(batch.encodings)))
    is_everywhere = isinstance(plan.positions, str) and plan.positions == "all"
    together = Part(everyone, [], [], [])
    apart: dict[Axis, list[State]] = {}
    for state in plan.states:
        real = batch.places(state)
        has_tokens = real is not None and not (state.site is None and batch.targets is not None)
        if plan.positions is not None and not is_everywhere and has_tokens:
            apart.setdefault(model.axis[state.layer], []).append(state)
            continue
        mask = real
        if real is not None and state.site is not None and not is_everywhere:
            mask = batch.predicting(state, real)
        together.states.append(state)
        together.masks.append(mask)
        together.positions.append([None] * len(everyone))
    if together.states:
        yield together
    for states in apart.values():
        real = batch.places(states[0])
        assert real is not None
        yield from _one_by_one(states, real, plan.positions, batch.encodings)


def _one_by_one(
    states: list[State], real: Tensor, positions: Positions, encodings: Sequence[Encoding]
) -> Iterator[Part]:
    """Yield a part for each position, without the texts that are too short for it."""
    wanted = [
        _indices(positions, length, f"layer {states[0].label!r} of text {shown(encoding.text)}")
        for length, encoding in zip(real.sum(1).tolist(), encodings)
    ]
    columns = [row.nonzero()[:, 0].tolist() for row in real]
    for k in range(max(map(len, wanted))):
        examples = [i for i, places in enumerate(wanted) if len(places) > k]
        places = [wanted[i][k] for i in examples]
        mask = torch.zeros(len(examples), real.shape[1], dtype=torch.bool, device=real.device)
        mask[range(len(places)), [columns[i][place] for i, place in zip(examples, places)]] = True
        yield Part(examples, states, [mask] * len(states), [list(places)] * len(states))


def _indices(positions: Positions, length: int, name: str) -> list[int]:
    """Return the positions of one text, counted from 0, checked and without repeats."""
    given: Any = plain_values(positions)  # of NumPy or torch
    if given == "each":
        return list(range(length))
    is_several = isinstance(given, (list, tuple, range))
    wanted: list[Any] = [as_int(place) for place in given] if is_several else [as_int(given)]
    for place in wanted:
        if isinstance(place, bool) or not isinstance(place, int) or not -length <= place < length:
            raise ValueError(
                f"position {place!r} does not exist in {name}, which has {length} tokens; give {-length} to "
                f"{length - 1}, 'each' or 'all'"
            )
    if not wanted:
        raise ValueError(f"positions {positions!r} names no token; give one or more, 'each' or None")
    return list(dict.fromkeys(place % length for place in wanted))


def _row(batch: Batch, state: State, position: int | None, fit: NoiseFit, index: int) -> Row:
    sigma, below = batch.per_token(fit.sigma, index), fit.sigma < fit.max_sigma.unsqueeze(1)
    return Row(
        layer=state.label,
        position=position,
        sigma=sigma,
        standard_error=batch.per_token(fit.standard_error, index),
        # the fit's is of the tokens below the cap alone
        common_error=float(fit.common_error[index]) * float(batch.per_token(below, index).float().mean()),
        max_sigma=float(fit.max_sigma[index]),
        input_std=float(fit.input_std[index]),
        regime_index=float(fit.regime_index[index]),
        distortion=float(fit.distortion[index]),
        converged=bool(fit.converged[index]),
        n_forward=int(fit.n_forward[index]),
        n_backward=int(fit.n_backward[index]),
        rate=float(fit.rate[index]),
        saturated=bool(fit.saturated[index]),
    )


def check_unused(side: Side, ways: Sequence[Way] | None) -> None:
    """Raise a ValueError for settings of erasures, which are not used if noise is learned."""
    given = [name for name, value in (("side", side != "damage"), ("ways", ways is not None)) if value]
    if given:
        raise ValueError(
            f"{' and '.join(given)} {'say' if len(given) > 1 else 'says'} how tokens are erased, and noise is learned "
            "here; give score='erased', or leave it out"
        )


@dataclass(frozen=True)
class ErasureFinder:
    """Computes the rows of texts by the erasure channel; special tokens are never erased.

    For a class, the damage is a loss of its log-odds (without a target, those of the predicted class); for a language
    model's target, a loss of log probability, summed over its tokens; for any other state it is D.

    Attributes:
        model: the model.
        erasure: how the channel is learned.
        ways: how tokens are erased.
    """

    model: TextModel
    erasure: Erasure
    ways: tuple[Way, ...]

    @property
    def description(self) -> str:
        """Side, ways and passes in words, for the settings."""
        return f"{self.erasure.side} by {' and '.join(self.ways)}, {self.erasure.passes} passes"

    def watch(self, model: TextModel, encodings: Sequence[Any]) -> AbstractContextManager[Any]:
        """Record nothing."""
        return nullcontext()

    def rows(self, batch: Batch, plan: Plan, seen: Any) -> list[tuple[Row, ...]]:
        """Return the rows of each text, in the plan's order, positions of a state one after another."""
        found: list[list[tuple[int, Row]]] = [[] for _ in batch.encodings]
        masked = batch.masked_origin()
        for part in parts(self.model, batch, plan):
            for state, mask, places in zip(part.states, part.masks, part.positions):
                for rows, selector in self._answers(batch, part, state):
                    examples = [part.examples[row] for row in rows]
                    own = None if mask is None else mask[torch.tensor(rows, device=mask.device)]
                    some = batch.at(examples)
                    erased_are = (
                        None if masked is None else masked[torch.tensor(examples, device=masked.device)]
                    )
                    learn = partial(self._fit, some, plan.noise_layer, erased_are, state, own, selector)
                    if plan.progress is not None:
                        plan.progress.begin(len(rows))
                    fit = with_fewer_rows(plan, some, learn)
                    if plan.progress is not None:
                        plan.progress.end()
                    for index, (row, example) in enumerate(zip(rows, examples)):
                        erased = _erased_row(some, state, places[row], fit, index)
                        found[example].append((plan.states.index(state), erased))
        return [tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])) for rows in found]

    def _answers(self, batch: Batch, part: Part, state: State) -> Iterator[tuple[list[int], Selector | None]]:
        """Yield rows of a part that share an answer, with its selector; None: the whole state."""
        everyone = list(range(len(part.examples)))
        if state.site is not None or self.model.task not in ("sequence classes", "next token", "answer span"):
            yield everyone, None
            return
        kinds: dict[int, list[int]] = {}
        if self.model.task == "sequence classes" and (state.function is not None or state.foil is not None):
            yield everyone, state.selector
            return
        if self.model.task == "sequence classes":
            whole = batch.whole(None)
            for row, example in enumerate(part.examples):
                target = state.neurons if isinstance(state.neurons, int) else int(whole[example].argmax())
                kinds.setdefault(target, []).append(row)
            for target, rows in kinds.items():
                yield rows, partial(class_log_odds, self.model, target=target)
            return
        if isinstance(state.neurons, slice):  # one end of an answer
            yield everyone, partial(_end, which=state.neurons)
            return
        for row, example in enumerate(part.examples):
            kinds.setdefault(len(batch.encodings[example].target), []).append(row)
        for count, rows in kinds.items():
            yield rows, partial(_summed, count=count)

    def _fit(
        self,
        batch: Batch,
        noise_layer: Site,
        baseline: Tensor | None,
        state: State,
        mask: Tensor | None,
        selector: Selector | None,
        max_rows: int,
    ) -> ErasureFit:
        terms = Terms(1.0, None, None, 1.0)  # settings of the noise, which is not used
        watched = replace(state, neurons=None, state_std=None) if selector else state
        problem = batch.pose(watched, None if selector else mask, terms, max_rows, selector)
        objective = problem.objective
        if baseline is None:
            baseline = nothing(module_of(noise_layer), objective).expand_as(objective.origin)
        players = batch.players.to(objective.device).repeat_interleave(batch.token_size, 1)  # (B, N)
        baseline = torch.where(players, baseline.flatten(1).to(objective.origin), objective.origin)
        erasing = Erasing(
            objective, baseline, self.ways, partial(batch.edited, state=state, selector=selector)
        )
        with gradients(), naming_texts(batch.encodings):
            return learn_erasure(erasing.players, erasing.damage, erasing.prior, self.erasure, len(self.ways))


def _end(state: Tensor, which: slice) -> Tensor:
    """Return the log probability of one end of an answer, (R, 2) -> (R,)."""
    return state[:, which].sum(1)


def _summed(state: Tensor, count: int) -> Tensor:
    """Return the log probability of the first ``count`` tokens of a target, (R, n) -> (R,)."""
    return state[:, :count].sum(1)


def _erased_row(batch: Batch, state: State, position: int | None, fit: ErasureFit, index: int) -> ErasedRow:
    share = 1 / batch.tokens_in_unit(index)
    return ErasedRow.of(
        state.label,
        position,
        batch.per_token(fit.score, index) * share,
        batch.per_token(fit.standard_error, index) * share,
        batch.per_token(fit.probability, index),
        float(fit.damage[index]),
        int(fit.n_forward[index]),
        int(fit.n_backward[index]),
    )
