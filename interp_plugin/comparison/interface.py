"""What methods and metrics receive: a text as model inputs, the number to explain; Method and Metric themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from interp_plugin.method.erasure import log_odds
from interp_plugin.method.perturbation import NoisyModel, Selector, Site, no_fastpath
from interp_plugin.text.batch import State
from interp_plugin.text.models import Encoding, TextModel, state_sites

Removal = Literal["mask", "delete", "attention"]
"""How a token is removed: replaced by [MASK], deleted from the text, or hidden by the attention mask."""
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
        """The tokens that are ranked and may be removed, (T,), bool, on the CPU."""
        return torch.tensor([self.with_special or offset is not None for offset in self.encoding.offsets])

    @cached_property
    def embeddings(self) -> Tensor:
        """The output of the model's embedding layer, (1, T, K)."""
        return self.embedded(self.ids)

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings of other token ids at the same positions, (1, T) -> (1, T, K)."""
        with torch.no_grad():
            return self.noisy(None, self.model.embedding).perturb((ids, *self.arguments[1:]), torch.arange(1))

    def noisy(
        self, noise_layer: Site | None, state_layer: Site | None, selector: Selector | None = None
    ) -> NoisyModel:
        """The model as a function from one layer to another, on this text; None: the arguments, the output."""
        return NoisyModel(_Forward(self.model), self.arguments, noise_layer, state_layer, selector)

    @cached_property
    def masked_embeddings(self) -> Tensor:
        """The embeddings with all removable tokens masked, (1, T, K).

        Raises:
            ValueError: the model has no mask token.
        """
        [arguments] = self.without(~self.players.unsqueeze(0), "mask")
        ids = tuple(int(i) for i in arguments[0][0])
        return replace(self, encoding=replace(self.encoding, ids=ids)).embeddings

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
        if kept.shape[1:] != (self.length,):
            raise ValueError(f"kept has shape {tuple(kept.shape)}; it must be (rows, {self.length})")
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
    saturate; their sigmoid is the probability.  For a state it is minus its distance from the state of the
    unchanged text, -D with D the mean over the state's elements of ((Phi(x') - s) / v)^2.

    Args:
        inputs: the text.
        target: number of the class, where no state is watched.
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
        if target is not None and inputs.model.task != "sequence classes":
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
        whole = self.origin.float()[0]
        if whole.ndim > 1 and len(whole) != self.inputs.length:
            raise ValueError(
                f"the state has {len(whole)} positions for {self.inputs.length} tokens, and which of them belongs to a "
                "deleted token is not known; use removal 'mask' or 'attention'"
            )
        distances: list[Tensor] = []
        for arguments in self.inputs.without(kept, "delete"):
            with no_fastpath():
                values = self._passing(arguments, None).float()
            for value in values:
                stays = kept[len(distances)].to(whole.device)
                there = whole[stays] if whole.ndim > 1 else whole  # a pooled state has no positions
                moved = (value[: len(there)] - there) / self.scale  # padding is to the right
                distances.append(moved.square().mean().cpu())
        return -torch.stack(distances)

    @torch.no_grad()
    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """The answer from embeddings, (R, T, K) -> (R,), on the CPU and without a graph."""
        with no_fastpath():
            return torch.cat([self(some).cpu() for some in embeddings.split(MAX_ROWS)])

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
        if self.state is None:
            return log_odds(value, cast(int, self.target))
        return -((value - self.origin.float()) / self.scale).square().flatten(1).mean(1)

    def _passing(self, arguments: tuple[Tensor, ...], embeddings: Tensor | None) -> Tensor:
        """The model's output or the watched state, (R, ...), with gradients."""
        site: Site | None = None if self.state is None else self.state.site
        noisy = NoisyModel(
            _Forward(self.inputs.model),
            arguments,
            None if embeddings is None else self.inputs.model.embedding,
            site,
            None if self.state is None else self.state.selector,
        )
        points = arguments if embeddings is None else (embeddings,)
        return noisy.perturb(points, torch.arange(len(arguments[0])))


class _Forward:
    """The model's forward as :class:`NoisyModel` calls it."""

    def __init__(self, model: TextModel) -> None:
        self.model, self.module = model, model.module

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return self.model(*inputs)


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


Score = Callable[[Inputs, int | None, State | None], Tensor]
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

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> def earliest(inputs, target, state):
        ...     return -torch.arange(inputs.length)
        >>> Method("earliest", earliest)(Inputs(model, model.encode("a good film")), 1, None)
        tensor([ 0., -1., -2., -3., -4.])
    """

    name: str
    score: Score
    signed: bool = False
    explains: Explains = "both"
    source: str = ""
    draws: bool = False

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
    """

    name: str
    measure: Callable[[Trial], float | None]
    higher_is_better: bool
    source: str
    judges: Explains = "both"
    removal: Removal | None = None

    def can_judge(self, state: State | None) -> bool:
        """Whether the metric evaluates scores for this state, or for a class (None)."""
        return self.judges in ("both", "class" if state is None else "state")

    def __call__(self, trial: Trial) -> float | None:
        return self.measure(trial)
