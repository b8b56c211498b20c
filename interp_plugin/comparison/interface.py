"""Method and Metric, and what they receive: a text as model inputs, and the number to explain."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from interp_plugin.method.perturbation import NoisyModel, Selector, Site, no_fastpath
from interp_plugin.text.batch import scores_at
from interp_plugin.text.models import OUTPUT, Encoding, Task, TextModel, class_log_odds, state_sites, watched
from interp_plugin.text.states import State

Removal = Literal["mask", "delete", "attention"]
"""How a token is removed: replaced by [MASK] (or the unknown token), deleted, or hidden with the attention mask."""
REMOVALS: tuple[Removal, ...] = ("mask", "delete", "attention")
MAX_ROWS = 64  # most rows of one forward pass


@dataclass(frozen=True)
class Inputs:
    """One text of T tokens, ready for the model.

    Attributes:
        model: the model.
        encoding: the tokenised text.
        seed: seed for methods that draw random numbers.
        with_special: whether special tokens are ranked and removed like other tokens.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> inputs.ids.shape, inputs.players.tolist(), inputs.embeddings.shape
        (torch.Size([1, 5]), [False, True, True, True, False], torch.Size([1, 5, 192]))
    """

    model: TextModel
    encoding: Encoding
    seed: int = 0
    with_special: bool = False

    @property
    def length(self) -> int:
        """Number of tokens, T."""
        return len(self.encoding.ids)

    @cached_property
    def arguments(self) -> tuple[Tensor, ...]:
        """The arguments of the model's forward, (1, ...) each, ids first."""
        return self.model.collate([self.encoding])[0]

    @property
    def ids(self) -> Tensor:
        """Token ids, (1, T), on the model's device."""
        return self.arguments[0]

    @cached_property
    def players(self) -> Tensor:
        """The tokens that are ranked and may be removed, (T,), bool, on the CPU.

        For a decoder these are the tokens before the first position that predicts its target: that position, and all
        later ones, always stay.
        """
        real = torch.tensor([self.with_special or offset is not None for offset in self.encoding.offsets])
        if self.in_one:
            real[min(self.encoding.target_positions, default=self.length) :] = False
        return real

    @property
    def in_one(self) -> bool:
        """Whether the model is a decoder, which predicts the next token of the sequence that it reads."""
        return self.model.task == "next token" and self.model.axis[OUTPUT] == "input"

    @property
    def usual_removal(self) -> Removal:
        """How methods remove tokens: with [MASK], or by deletion for a decoder, which has no mask token."""
        return "delete" if self.in_one else "mask"

    @cached_property
    def embeddings(self) -> Tensor:
        """The output of the model's embedding layer, (1, T, K)."""
        return self.embedded(self.ids)

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings of other token ids at the same positions, (1, T) -> (1, T, K)."""
        with torch.no_grad():
            return self.noisy(None, self.model.embedding).perturb((ids, *self.arguments[1:]), torch.arange(1))

    def noisy(
        self,
        noise_layer: Site | None,
        state_layer: Site | None,
        selector: Selector | None = None,
        arguments: tuple[Tensor, ...] | None = None,
    ) -> NoisyModel:
        """Return the model as a function from one layer to another, for this text or variants of it.

        Args:
            noise_layer: the layer where the function starts; None: the arguments of the model.
            state_layer: the layer where it ends; None: the :meth:`output`.
            selector: which part of the state to keep.
            arguments: the arguments of variants of the text; None: those of the text itself.
        """
        inputs = self.arguments if arguments is None else arguments
        return NoisyModel(_Forward(self), inputs, noise_layer, state_layer, selector)

    def output(self, *arguments: Tensor) -> Tensor:
        """Compute the class scores, (R, C), or the log-probabilities of n target tokens less their foils', (R, n)."""
        encoding = self.encoding
        if not encoding.target:
            return self.model(*arguments)
        scores = self.next_scores(*arguments)
        ids = torch.tensor(encoding.target, device=scores.device).expand(scores.shape[:2])
        foils = torch.tensor(encoding.foils, device=scores.device).expand_as(ids) if encoding.foils else None
        return watched(scores, ids, "log_probability", foils)

    def next_scores(self, *arguments: Tensor) -> Tensor:
        """Compute a language model's scores at the positions that predict the target, (R, n, vocabulary).

        Variants of a text end in the same tokens, so a decoder's positions are counted from the last one in its
        attention mask (padding is to the right).
        """
        ids, places = arguments[0], torch.tensor(self.encoding.target_positions, device=arguments[0].device)
        places = places.expand(len(ids), -1)
        if self.in_one:
            has_mask = len(arguments) > 1 and arguments[1].shape == ids.shape
            seen = arguments[1].long() if has_mask else torch.ones_like(ids)
            last = (seen * torch.arange(ids.shape[1], device=ids.device)).argmax(1)
            places = places + (last - (self.length - 1)).unsqueeze(1)
        return scores_at(self.model, arguments, places)

    def at_target(self, state: State) -> State:
        """Return the state at the positions that predict the target, or the whole state of a layer without them."""
        axis = self.model.axis
        if not self.encoding.target or axis[state.label] != axis[OUTPUT] or state.site is None:
            return state
        return replace(state, places=self.encoding.target_positions)

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """Repeat the arguments, (count, ...) each."""
        return tuple(argument.expand(count, *argument.shape[1:]) for argument in self.arguments)

    def without(self, kept: Tensor, removal: Removal) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arguments of forward passes in which only some tokens are left.

        Args:
            kept: (R, T), bool; which tokens stay in each row.
            removal: how the other tokens are removed.

        Yields:
            the arguments for the next r rows, (r, ...) each; the r of all parts add up to R.

        Raises:
            ValueError: the model does not support this removal; the message says which one it supports.
        """
        if removal not in REMOVALS:
            raise ValueError(f"removal is {removal!r}; choose one of {', '.join(map(repr, REMOVALS))}")
        for rows in kept.split(MAX_ROWS):
            yield from self._deleted(rows) if removal == "delete" else [self._covered(rows, removal)]

    def _covered(self, kept: Tensor, removal: Removal) -> tuple[Tensor, ...]:
        ids, *others = self.rows(len(kept))
        kept = kept.to(ids.device)
        if removal == "mask":
            if self.model.mask_id is None:
                raise ValueError(
                    f"{self.model.name} has no mask token to replace a removed token; use removal 'delete'"
                )
            return (torch.where(kept, ids, self.model.mask_id), *others)
        if not others or others[0].shape != ids.shape:
            raise ValueError(f"{self.model.name} takes no attention mask; use removal 'mask' or 'delete'")
        return (ids, others[0] * kept, *others[1:])

    def _deleted(self, kept: Tensor) -> Iterator[tuple[Tensor, ...]]:
        shorter = [self.encoding.only(row) for row in kept.tolist()]
        for some in [shorter] if self.model.pads else [[one] for one in shorter]:
            yield self.model.collate(some)[0]


class Answer(nn.Module):
    """The number that a method explains, as a function of variants of one text.

    * For a class: its log-odds, log p / (1 - p) (with two classes the difference of their logits).  They do not
      saturate, and their sigmoid is the probability.
    * For the next token: its log-probability, as in explanations; with a foil, the log-odds between the two,
      log p(target) - log p(foil).
    * For a state: minus its distance from the state of the unchanged text, -D, where D is the mean over the state's
      elements of ((Phi(x') - s) / v)^2.

    Args:
        inputs: the text.
        target: number of the class, or id of the first target token in the text's encoding; None if a state is given.
        state: the state that is watched; without ``state_std``, v^2 is the mean of s^2.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> answer = Answer(inputs, target=1)
        >>> kept = torch.tensor([[True] * 5, [True, True, False, True, True]])
        >>> [round(p, 2) for p in answer.of_kept(kept, "mask").sigmoid().tolist()]  # without "good"
        [0.99, 0.67]
    """

    def __init__(self, inputs: Inputs, target: int | None = None, state: State | None = None) -> None:
        super().__init__()
        if (target is None) == (state is None):
            raise ValueError(f"target is {target!r} and state {state!r}: give one of them, the other is None")
        tokens = inputs.encoding.target
        if target is not None and inputs.model.task == "next token":
            if tokens[:1] != (target,):
                raise ValueError(
                    f"target is {target!r}, but the text was encoded with the target {tokens}; give its first token"
                )
        elif target is not None and inputs.model.task != "sequence classes":
            raise ValueError(
                f"target is {target!r}, but {inputs.model.name} does not classify texts; give a state"
            )
        self.inputs, self.target, self.state = inputs, target, state
        self.module = inputs.model.module  # DeepLift looks for the model among the children

    def forward(self, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        """Compute the answer from embeddings, (R, T, K), and arguments with R rows or one; (R,)."""
        count = len(embeddings)
        rows = tuple(
            x.expand(count, *x.shape[1:]) if len(x) == 1 else x for x in arguments or self.inputs.arguments
        )
        return self._read(rows, embeddings)

    def reading(self, *arguments: Tensor) -> Tensor:
        """Compute the answer from arguments of the model, (R, ...) each, with gradients; (R,)."""
        return self._read(arguments, None)

    @torch.no_grad()
    def of_arguments(self, *arguments: Tensor) -> Tensor:
        """Compute the answer from arguments of the model, (R, ...) each, without gradients; (R,)."""
        with no_fastpath():
            return self.reading(*arguments)

    def of_kept(self, kept: Tensor, removal: Removal) -> Tensor:
        """Compute the answer for the text with only some of its tokens left, (R, T) -> (R,), on the CPU.

        The state of a shortened text has no vector for a deleted token.  Its distance is the mean over the remaining
        tokens, each compared with its own vector in the whole text.

        Raises:
            ValueError: tokens cannot be removed in this way.
        """
        if removal == "delete" and self.state is not None:
            return self._with_deletions(kept)
        return torch.cat([self.of_arguments(*rows).cpu() for rows in self.inputs.without(kept, removal)])

    @torch.no_grad()
    def _with_deletions(self, kept: Tensor) -> Tensor:
        """Compute minus the distance of a state when tokens are deleted, (R, T) -> (R,), on the CPU."""
        state = cast(State, self.state)
        everywhere = Answer(self.inputs, state=replace(state, places=None))
        whole = everywhere.origin.float()[0]
        if whole.ndim > 1 and len(whole) != self.inputs.length:
            raise ValueError(
                f"the state has {len(whole)} positions for {self.inputs.length} tokens, so the position of a deleted "
                "token is not known; use removal 'mask' or 'attention'"
            )
        distances: list[Tensor] = []
        for arguments in self.inputs.without(kept, "delete"):
            with no_fastpath():
                values = everywhere._passing(arguments, None).float()
            for value in values:
                if whole.ndim > 1:  # a pooled state has no positions
                    stays = kept[len(distances)].to(whole.device)
                    old = stays.nonzero()[:, 0] if state.places is None else list(state.places)
                    moved = value[stays.cumsum(0)[old] - 1] - whole[old]  # padding is to the right
                else:
                    moved = value - whole
                distances.append((moved / self.scale).square().mean().cpu())
        return -torch.stack(distances)

    @torch.no_grad()
    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """Compute the answer from embeddings, (R, T, K) -> (R,), on the CPU, without gradients."""
        with no_fastpath():
            return torch.cat([self(some).cpu() for some in embeddings.split(MAX_ROWS)])

    def log_probability(self, answers: Tensor) -> Tensor:
        """Convert answers for a class or next token to log-probabilities, float64."""
        encoding = self.inputs.encoding
        is_log_probability = bool(encoding.target) and not encoding.foils
        return answers.double() if is_log_probability else logsigmoid(answers.double())

    def scaled(self, answers: Tensor) -> Tensor:
        """Convert answers to the scale of the metrics, float64: a probability, or minus D of a state.

        With a foil it is the probability of the target among the two.

        Examples::
            >>> from interp_plugin import huggingface
            >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
            >>> Answer(Inputs(model, model.encode("a good film")), target=1).scaled(torch.tensor([0.0, 100.0]))
            tensor([0.5000, 1.0000], dtype=torch.float64)
        """
        return answers.double() if self.state is not None else self.log_probability(answers).exp()

    @cached_property
    def origin(self) -> Tensor:
        """The state of the text itself, (1, ...)."""
        with torch.no_grad(), no_fastpath():
            return self._passing(self.inputs.arguments, None)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the state, v; broadcasts to the state."""
        origin, std = self.origin.float(), None if self.state is None else self.state.selected_std
        return origin.square().mean().sqrt() if std is None else std.to(origin.device)

    def _read(self, arguments: tuple[Tensor, ...], embeddings: Tensor | None) -> Tensor:
        value = self._passing(arguments, embeddings).float()
        if self.state is None and self.inputs.encoding.target:
            return value.sum(1)
        if self.state is None:
            return class_log_odds(self.inputs.model, value, cast(int, self.target))
        return -((value - self.origin.float()) / self.scale).square().flatten(1).mean(1)

    def _passing(self, arguments: tuple[Tensor, ...], embeddings: Tensor | None) -> Tensor:
        """Compute the model's output or the watched state, (R, ...), with gradients."""
        site, selector = (None, None) if self.state is None else (self.state.site, self.state.selector)
        noise_layer = None if embeddings is None else self.inputs.model.embedding
        noisy = self.inputs.noisy(noise_layer, site, selector, arguments)
        points = arguments if embeddings is None else (embeddings,)
        return noisy.perturb(points, torch.arange(len(arguments[0])))


class _Forward:
    """The output for variants of a text, in the form in which :class:`NoisyModel` calls a model."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.module = inputs, inputs.model.module

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return self.inputs.output(*inputs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch and numpy inside the block (Captum uses both) and restore them afterwards.

    Python's own generator is restored too, because scikit-learn uses it when it is first imported.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


Score = Callable[[Inputs, int | None, State | None], Tensor | Sequence[float]]
"""(text, class, state) -> a score for each token, (T,), high = important; either class or state is None."""
Explains = Literal["class", "state", "both"]


@dataclass(frozen=True)
class Method:
    """An attribution method in a study.

    Attributes:
        name: its name in tables.
        score: the function that computes the scores.
        signed: whether a negative score means that a token speaks against the class.
        explains: what it explains: a class, a state, or both.
        source: the paper, or Captum's class.
        draws: whether the scores depend on the seed.
        task: the only task of models that it supports; None: any.
        passes, passes_per_token: approximate forward and backward passes for a text, to estimate a study's time.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> def earliest(inputs, target, state):
        ...     return -torch.arange(inputs.length)
        >>> Method("earliest", earliest)(Inputs(model, model.encode("a good film")), 1, None)
        tensor([ 0., -1., -2., -3., -4.])

    Use scores that were computed elsewhere, one for each token, including special tokens::

        >>> known = {"a good film": [0, 0, 1, 0.5, 0]}
        >>> theirs = Method("theirs", lambda inputs, target, state: known[inputs.encoding.text], signed=True)
        >>> theirs(Inputs(model, model.encode("a good film")), 1, None)
        tensor([0.0000, 0.0000, 1.0000, 0.5000, 0.0000])
    """

    name: str
    score: Score
    signed: bool = False
    explains: Explains = "both"
    source: str = ""
    draws: bool = False
    task: Task | None = None
    passes: float = 3
    passes_per_token: float = 0

    def can_explain(self, state: State | None) -> bool:
        """Return whether the method explains this state, or a class (None)."""
        return self.explains in ("both", "class" if state is None else "state")

    def __call__(self, inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        """Compute the scores, (T,), float32, on the CPU; the same ``inputs.seed`` gives the same scores.

        Raises:
            ValueError: the scores have another shape, or are NaN or infinite.
        """
        with seeded(inputs.seed):
            found = self.score(inputs, target, state)
        found = found.detach() if isinstance(found, Tensor) else found
        scores = torch.as_tensor(found, dtype=torch.float32).cpu()
        if scores.shape != (inputs.length,):
            raise ValueError(
                f"method {self.name!r} gives scores of shape {tuple(scores.shape)} for {inputs.length} tokens; give "
                "one for each token"
            )
        if not scores.isfinite().all():
            raise ValueError(
                f"method {self.name!r} gives scores that are NaN or infinite for {inputs.encoding.text!r}"
            )
        return scores


@dataclass(frozen=True)
class Trial:
    """One method's scores for one text, which a metric evaluates.

    Attributes:
        inputs: the text.
        target, state: the class or state that was explained; the other one is None.
        method: the method.
        scores: its scores, (T,).
        rationale: the tokens that annotators marked as the reason, (T,), bool; None: not known.
    """

    inputs: Inputs
    target: int | None
    state: State | None
    method: Method
    scores: Tensor
    rationale: Tensor | None = None

    @property
    def answer(self) -> Answer:
        """The number that was explained."""
        return Answer(self.inputs, self.target, self.state)

    @cached_property
    def uncalibrated(self) -> Trial:
        """The trial without ``state_std``, for comparisons with another model: ``state_std`` belongs to one model.

        If there is a ``state_std``, the method runs once more.
        """
        if self.state is None or self.state.state_std is None:
            return self
        state = replace(self.state, state_std=None)
        return replace(self, state=state, scores=self.method(self.inputs, None, state))

    def order(self) -> list[int]:
        """Return the positions of the tokens that may be removed, most important first; ties from left to right."""
        ranked = torch.sort(self.scores, descending=True, stable=True).indices.tolist()
        return [position for position in ranked if self.inputs.players[position]]

    def again(self, seed: int | None = None, model: TextModel | None = None) -> Tensor:
        """Compute the method's scores with another seed, or for another model of the same architecture."""
        inputs = replace(
            self.inputs,
            seed=self.inputs.seed if seed is None else seed,
            model=self.inputs.model if model is None else model,
        )
        state = self.state
        if model is not None and state is not None:
            site = None if state.site is None else state_sites(model)[state.label]
            state = replace(state, site=site)
        return self.method(inputs, self.target, state)


@dataclass(frozen=True)
class Metric:
    """A metric: one number for each trial.

    Attributes:
        name: its name in tables.
        measure: computes the number; returns None where it is not defined (no rationale, text too long or too short).
        higher_is_better: the direction of the number.
        source: paper and equation.
        judges: what it evaluates: scores for a class, for a state, or both.
        removal: how it removes tokens (not every model supports each way); None: it removes none.
        task: the only task of models that it supports; None: any.
        passes, passes_per_token: as in :class:`Method`.
        calls: how often it calls the method.
    """

    name: str
    measure: Callable[[Trial], float | None]
    higher_is_better: bool
    source: str
    judges: Explains = "both"
    removal: Removal | None = None
    task: Task | None = None
    passes: float = 5
    passes_per_token: float = 0
    calls: int = 0

    def can_judge(self, state: State | None) -> bool:
        """Return whether the metric evaluates scores for this state, or for a class (None)."""
        return self.judges in ("both", "class" if state is None else "state")

    def __call__(self, trial: Trial) -> float | None:
        return self.measure(trial)


Part = TypeVar("Part", Method, Metric)


def chosen(known: Mapping[str, Part], parts: Iterable[str | Part] | str | Part | None) -> list[Part]:
    """Return the requested methods (or metrics), each once.

    Args:
        known: ``METHODS`` or ``METRICS``.
        parts: names, and :class:`Method` (or :class:`Metric`) objects; None: all of ``known``.  In a name, * matches
            any characters.  A string may hold several names, separated by commas; a comma in brackets belongs to the
            name.

    Raises:
        TypeError: an element is neither a name nor an object of that kind.
        ValueError: a name is unknown, a pattern matches none, two objects have the same name, or there is no method.

    Examples::
        >>> from interp_plugin.comparison import METHODS
        >>> def length(inputs, target, state):
        ...     return torch.tensor([float(len(token)) for token in inputs.encoding.tokens])
        >>> [method.name for method in chosen(METHODS, ["S*", Method("token length", length)])]
        ['SmoothGrad (L2)', 'SmoothGrad squared (L2)', 'Shapley value sampling', 'token length']
        >>> [method.name for method in chosen(METHODS, "LIME, integrated gradients (zero, L2)")]
        ['LIME', 'integrated gradients (zero, L2)']
    """
    if parts is None:
        return list(known.values())
    kind = type(next(iter(known.values()))).__name__.lower()
    found: dict[str, Part] = {}
    # names requested one by one rather than by a pattern; requesting one of these twice is an error
    single: list[str] = []
    for request in [parts] if isinstance(parts, (str, Method, Metric)) else parts:
        some = _named(kind, known, request) if isinstance(request, str) else [request]
        for part in some:
            if type(part).__name__.lower() != kind:
                raise TypeError(
                    f"{kind} {part!r} is a {type(part).__name__}; give a name, or {kind.title()}(name, function)"
                )
            if found.setdefault(part.name, part) is not part or (len(some) == 1 and part.name in single):
                raise ValueError(
                    f"{kind} {part.name!r} is given 2 times; give each {kind} once, with a name of its own"
                )
        single += [part.name for part in some if len(some) == 1]
    if not found and kind == "method":
        raise ValueError("methods is empty; give at least one, or None for all")
    return list(found.values())


def _named(kind: str, known: Mapping[str, Part], names: str) -> list[Part]:
    """Return the methods or metrics that match comma-separated names or patterns, each once."""
    found: dict[str, Part] = {}
    for name in (part.strip() for part in re.split(r",(?![^()]*\))", names)):
        if not name:
            raise ValueError(f"{names!r} has an empty name; separate the names by single commas")
        pattern = ".*".join(map(re.escape, name.split("*")))
        matches = {one: part for one, part in known.items() if re.fullmatch(pattern, one)}
        if not matches:
            problem = "matches none" if "*" in name else "is not known"
            part = name.strip("*").lower()
            near = [one for one in known if len(part) > 2 and part in one.lower()] or known
            raise ValueError(f"{kind} {name!r} {problem}; choose from {', '.join(map(repr, near))}")
        found |= {one: part for one, part in matches.items() if one not in found}
    return list(found.values())
