"""What methods and metrics receive: a text as model inputs, the number to explain; Method and Metric themselves."""

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
"""How a token is removed: replaced by [MASK] (or the unknown token), deleted, or hidden by the attention mask."""
REMOVALS: tuple[Removal, ...] = ("mask", "delete", "attention")
MAX_ROWS = 64  # rows of one forward pass


@dataclass(frozen=True)
class Inputs:
    """One text of T tokens, ready for the model.

    Attributes:
        model: the model.
        encoding: the tokenised text.
        seed: seed of methods that draw random numbers.
        with_special: whether special tokens are ranked and removed like others.

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
        """T."""
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

        Of a decoder they stand before the first place that predicts its target: that place, and what follows, stays.
        """
        real = torch.tensor([self.with_special or offset is not None for offset in self.encoding.offsets])
        if self.in_one:
            real[min(self.encoding.target_positions, default=self.length) :] = False
        return real

    @property
    def in_one(self) -> bool:
        """Whether the model is a decoder, which predicts the next token in the sequence that it reads."""
        return self.model.task == "next token" and self.model.axis[OUTPUT] == "input"

    @property
    def usual_removal(self) -> Removal:
        """How methods remove tokens: by [MASK], and of a decoder, which knows none, by deletion."""
        return "delete" if self.in_one else "mask"

    @cached_property
    def embeddings(self) -> Tensor:
        """The output of the model's embedding layer, (1, T, K)."""
        return self.embedded(self.ids)

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings of other token ids at the same positions, (1, T) -> (1, T, K)."""
        with torch.no_grad():
            return self.noisy(None, self.model.embedding).perturb((ids, *self.arguments[1:]), torch.arange(1))

    def noisy(
        self,
        noise_layer: Site | None,
        state_layer: Site | None,
        selector: Selector | None = None,
        arguments: tuple[Tensor, ...] | None = None,
    ) -> NoisyModel:
        """The model as a function from one layer to another, on this text or on variants of it.

        Args:
            noise_layer, state_layer: None: the arguments, and the :meth:`output`.
            selector: which part of the state to keep.
            arguments: of variants of the text; None: its own.
        """
        inputs = self.arguments if arguments is None else arguments
        return NoisyModel(_Forward(self), inputs, noise_layer, state_layer, selector)

    def output(self, *arguments: Tensor) -> Tensor:
        """The class scores, (R, C); of n target tokens their log-probabilities, less those of their foils, (R, n)."""
        encoding = self.encoding
        if not encoding.target:
            return self.model(*arguments)
        scores = self.next_scores(*arguments)
        ids = torch.tensor(encoding.target, device=scores.device).expand(scores.shape[:2])
        foils = torch.tensor(encoding.foils, device=scores.device).expand_as(ids) if encoding.foils else None
        return watched(scores, ids, "log_probability", foils)

    def next_scores(self, *arguments: Tensor) -> Tensor:
        """A language model's scores where the target is predicted, (R, n, vocabulary).

        Variants of a text end in the same tokens, so that a decoder's places are counted from the last one that its
        attention mask has: padding is to the right.
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
        """The state where the target is predicted, of layers that have that place; otherwise all of it."""
        axis = self.model.axis
        if not self.encoding.target or axis[state.label] != axis[OUTPUT] or state.site is None:
            return state
        return replace(state, places=self.encoding.target_positions)

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """The arguments repeated, (count, ...) each."""
        return tuple(argument.expand(count, *argument.shape[1:]) for argument in self.arguments)

    def without(self, kept: Tensor, removal: Removal) -> Iterator[tuple[Tensor, ...]]:
        """Arguments of the forward passes in which only some tokens are left.

        Args:
            kept: (R, T), bool; which tokens stay in each row.
            removal: how the other tokens are removed.

        Yields:
            the arguments of the next rows, (r, ...) each; the r of all parts add up to R.

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
                    f"{self.model.name} has no mask token to put in a word's place; use removal 'delete'"
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

    For a class it is the log-odds, log p / (1 - p) (of two classes the difference of their logits), which do not
    saturate; their sigmoid is the probability.  For the next token it is its log-probability, as explanations watch it;
    where it has a foil, log p(target) - log p(foil), the log-odds between the two.  For a state it is minus its
    distance from the state of the unchanged text, -D with D the mean over the state's elements of
    ((Phi(x') - s) / v)^2.

    Args:
        inputs: the text.
        target: number of the class, or id of the first token that the text's encoding has as its target, where no
            state is watched.
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
                    f"target is {target!r}, and the text was encoded with the target {tokens}; give its first token"
                )
        elif target is not None and inputs.model.task != "sequence classes":
            raise ValueError(
                f"target is {target!r}, and {inputs.model.name} has no classes of texts; give a state"
            )
        self.inputs, self.target, self.state = inputs, target, state
        self.module = inputs.model.module  # DeepLift looks for it among the children

    def forward(self, embeddings: Tensor, *arguments: Tensor) -> Tensor:
        """The answer from embeddings, (R, T, K), and arguments that have R rows, or 1; (R,)."""
        count = len(embeddings)
        rows = tuple(
            x.expand(count, *x.shape[1:]) if len(x) == 1 else x for x in arguments or self.inputs.arguments
        )
        return self._read(rows, embeddings)

    def reading(self, *arguments: Tensor) -> Tensor:
        """The answer for arguments of the model, (R, ...) each, with gradients; (R,)."""
        return self._read(arguments, None)

    @torch.no_grad()
    def of_arguments(self, *arguments: Tensor) -> Tensor:
        """The answer for arguments of the model, (R, ...) each, without gradients; (R,)."""
        with no_fastpath():
            return self.reading(*arguments)

    def of_kept(self, kept: Tensor, removal: Removal) -> Tensor:
        """The answer for the text with only some of its tokens left, (R, T) -> (R,), on the CPU.

        The state of a shortened text has no vector for a deleted token: its distance is the mean over the tokens
        that stay, each compared with its own vector in the whole text.

        Raises:
            ValueError: tokens cannot be removed in this way.
        """
        if removal == "delete" and self.state is not None:
            return self._with_deletions(kept)
        return torch.cat([self.of_arguments(*rows).cpu() for rows in self.inputs.without(kept, removal)])

    @torch.no_grad()
    def _with_deletions(self, kept: Tensor) -> Tensor:
        """Minus the distance of a state when tokens are deleted, (R, T) -> (R,), on the CPU."""
        state = cast(State, self.state)
        everywhere = Answer(self.inputs, state=replace(state, places=None))
        whole = everywhere.origin.float()[0]
        if whole.ndim > 1 and len(whole) != self.inputs.length:
            raise ValueError(
                f"the state has {len(whole)} positions for {self.inputs.length} tokens, and which of them belongs to a "
                "deleted token is not known; use removal 'mask' or 'attention'"
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
        """The answer from embeddings, (R, T, K) -> (R,), on the CPU and without a graph."""
        with no_fastpath():
            return torch.cat([self(some).cpu() for some in embeddings.split(MAX_ROWS)])

    def log_probability(self, answers: Tensor) -> Tensor:
        """The log-probability that answers about a class or next token stand for, float64."""
        encoding = self.inputs.encoding
        is_one_already = bool(encoding.target) and not encoding.foils
        return answers.double() if is_one_already else logsigmoid(answers.double())

    def scaled(self, answers: Tensor) -> Tensor:
        """Answers on the scale of the metrics, float64: a probability (with a foil, of the two), or minus D of a state.

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
        """v of the state, which broadcasts to it."""
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
        """The model's output or the watched state, (R, ...), with gradients."""
        site, selector = (None, None) if self.state is None else (self.state.site, self.state.selector)
        noise_layer = None if embeddings is None else self.inputs.model.embedding
        noisy = self.inputs.noisy(noise_layer, site, selector, arguments)
        points = arguments if embeddings is None else (embeddings,)
        return noisy.perturb(points, torch.arange(len(arguments[0])))


class _Forward:
    """What a text's variants give out, as :class:`NoisyModel` calls it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.module = inputs, inputs.model.module

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return self.inputs.output(*inputs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's and numpy's global generators inside the block (Captum uses both) and restores them after it.

    Python's own generator is restored too: scikit-learn uses it when it is first imported.
    """
    drawn, drawn_by_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(drawn_by_python)


Score = Callable[[Inputs, int | None, State | None], Tensor | Sequence[float]]
"""(text, class, state) -> a score for each token, (T,), high = important; class or state is None."""
Explains = Literal["class", "state", "both"]


@dataclass(frozen=True)
class Method:
    """An attribution method as a study runs it.

    Attributes:
        name: its name in tables.
        score: the function that computes the scores.
        signed: whether a negative score means that a token speaks against the class.
        explains: what it explains: a class, a state, or both.
        source: the paper, or Captum's class.
        draws: whether the scores depend on the seed.
        task: the only kind of model that it is about; None: any.
        passes, passes_per_token: forward and backward passes for a text, about, for the estimate of a study's time.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> def earliest(inputs, target, state):
        ...     return -torch.arange(inputs.length)
        >>> Method("earliest", earliest)(Inputs(model, model.encode("a good film")), 1, None)
        tensor([ 0., -1., -2., -3., -4.])

    Scores that were computed elsewhere, of every token, special ones included::

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
        """Whether the method explains this state, or a class (None)."""
        return self.explains in ("both", "class" if state is None else "state")

    def __call__(self, inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        """The scores, (T,), float32, on the CPU; the same ``inputs.seed`` gives the same scores.

        Raises:
            ValueError: scores of another shape, NaN or infinite scores.
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
        target, state: the class or the state that was explained; the other one is None.
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
        """The trial without ``state_std``, which belongs to one model alone, for comparisons with another model.

        Where there is a ``state_std`` the method runs once more.
        """
        if self.state is None or self.state.state_std is None:
            return self
        state = replace(self.state, state_std=None)
        return replace(self, state=state, scores=self.method(self.inputs, None, state))

    def order(self) -> list[int]:
        """Positions of the tokens that may be removed, most important first; ties from left to right."""
        ranked = torch.sort(self.scores, descending=True, stable=True).indices.tolist()
        return [position for position in ranked if self.inputs.players[position]]

    def again(self, seed: int | None = None, model: TextModel | None = None) -> Tensor:
        """The method's scores with another seed, or for another model of the same architecture."""
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
        measure: computes the number; None where it is not defined (no rationale, a text too long or too short).
        higher_is_better: the direction of the number.
        source: paper and equation.
        judges: what it evaluates: scores for a class, for a state, or both.
        removal: how it removes tokens, which not every model supports; None: it removes none.
        task: the only kind of model that it is about; None: any.
        passes, passes_per_token, calls: as of :class:`Method`, and calls of the method.
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
        """Whether the metric evaluates scores for this state, or for a class (None)."""
        return self.judges in ("both", "class" if state is None else "state")

    def __call__(self, trial: Trial) -> float | None:
        return self.measure(trial)


Part = TypeVar("Part", Method, Metric)


def chosen(known: Mapping[str, Part], parts: Iterable[str | Part] | str | Part | None) -> list[Part]:
    """The methods (or metrics) of these names, each once, and given ones as they are; None: all that are known.

    Args:
        known: ``METHODS`` or ``METRICS``.
        parts: names and objects; one of one's own is a function and a name.  In a name * stands for anything, and a
            string may hold several names, separated by commas: a comma in brackets belongs to the name.

    Raises:
        TypeError: an element that is neither a name nor an object of that kind.
        ValueError: an unknown name, a pattern that fits none, no method, or two things of one name.

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
    alone: list[str] = []  # what was given by itself, which is given once
    for given in [parts] if isinstance(parts, (str, Method, Metric)) else parts:
        some = _named(kind, known, given) if isinstance(given, str) else [given]
        for part in some:
            if type(part).__name__.lower() != kind:
                raise TypeError(
                    f"{kind} {part!r} is a {type(part).__name__}; give a name, or {kind.title()}(name, function)"
                )
            if found.setdefault(part.name, part) is not part or (len(some) == 1 and part.name in alone):
                raise ValueError(
                    f"{kind} {part.name!r} is given 2 times; give every {kind} a name of its own, and once"
                )
        alone += [part.name for part in some if len(some) == 1]
    if not found and kind == "method":
        raise ValueError("methods names none; give at least one, or None for all")
    return list(found.values())


def _named(kind: str, known: Mapping[str, Part], names: str) -> list[Part]:
    """What is meant by one or more names, or patterns, with commas between them; each once."""
    found: dict[str, Part] = {}
    for name in (part.strip() for part in re.split(r",(?![^()]*\))", names)):
        if not name:
            raise ValueError(f"{names!r} cannot be read: write names with single commas between them")
        pattern = ".*".join(map(re.escape, name.split("*")))
        fitting = {one: part for one, part in known.items() if re.fullmatch(pattern, one)}
        if not fitting:
            problem = "fits none" if "*" in name else "is not known"
            part = name.strip("*").lower()
            near = [one for one in known if len(part) > 2 and part in one.lower()] or known
            raise ValueError(f"{kind} {name!r} {problem}; choose from {', '.join(map(repr, near))}")
        found |= {one: part for one, part in fitting.items() if one not in found}
    return list(found.values())
