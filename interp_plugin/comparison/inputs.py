"""One text as every method and metric of a study gets it, and the number that is to be explained."""

from __future__ import annotations

import random
from collections.abc import Iterator
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
from interp_plugin.text.models import Encoding, TextModel

Removal = Literal["mask", "delete", "attention"]
"""How a token is taken away: [MASK] in its place, out of the text, or hidden from attention."""
REMOVALS: tuple[Removal, ...] = ("mask", "delete", "attention")
MAX_ROWS = 64  # in one forward


@dataclass(frozen=True)
class Inputs:
    """One text of T tokens, ready for the model.

    Attributes:
        model: what reads it.
        encoding: the text, tokenised.
        seed: of methods that draw.
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
        """What the model is called with, (1, ...) each, ids first."""
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
        """What the model's embedding makes of the ids, (1, T, K)."""
        return self.embedded(self.ids)

    def embedded(self, ids: Tensor) -> Tensor:
        """What the model's embedding makes of other ids in their places, (1, T) -> (1, T, K)."""
        with torch.no_grad():
            return self.noisy(None, self.model.embedding).perturb((ids, *self.arguments[1:]), torch.arange(1))

    def noisy(
        self, noise_layer: Site | None, state_layer: Site | None, selector: Selector | None = None
    ) -> NoisyModel:
        """The model between two sites, on this text; None is the arguments, and the output."""
        return NoisyModel(_Forward(self.model), self.arguments, noise_layer, state_layer, selector)

    @cached_property
    def masked_embeddings(self) -> Tensor:
        """The embeddings with every player masked, (1, T, K).

        Raises:
            ValueError: the model has no mask token.
        """
        [arguments] = self.without(~self.players.unsqueeze(0), "mask")
        ids = tuple(int(i) for i in arguments[0][0])
        return replace(self, encoding=replace(self.encoding, ids=ids)).embeddings

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """The arguments so many times, (count, ...) each."""
        return tuple(argument.expand(count, *argument.shape[1:]) for argument in self.arguments)

    def without(self, kept: Tensor, removal: Removal) -> Iterator[tuple[Tensor, ...]]:
        """Arguments for a call in which only some tokens are left, in parts of rows that share a call.

        Args:
            kept: (R, T), bool; which tokens stay in each row.
            removal: how the others go.

        Yields:
            the arguments of the next rows, (r, ...) each; the r of all parts add up to R.

        Raises:
            ValueError: the model cannot have tokens removed in this way; the message says what it can.
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
    """The one number that a method explains, for rows of variants of one text.

    For a class it is its log-odds, log p / (1 - p): of two classes the difference of their logits.  It
    never saturates and sigmoid makes the probability of it.  For a state it is minus its distance from
    what it is for the text itself, the mean over the state's elements of ((Phi(x') - s) / v)^2.

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
        """The answer from what the model is called with, (R, ...) each, with its graph; (R,)."""
        return self._read(arguments, None)

    @torch.no_grad()
    def of_arguments(self, *arguments: Tensor) -> Tensor:
        """The answer from what the model is called with, (R, ...) each; (R,)."""
        with no_fastpath():
            return self.reading(*arguments)

    def of_kept(self, kept: Tensor, removal: Removal) -> Tensor:
        """The answer for the text with only some of its tokens left, (R, T) -> (R,), on the CPU.

        A state has no place for a deleted token: its distance is that of the tokens that stay, each from what it
        is in the whole text.

        Raises:
            ValueError: tokens cannot be removed in this way.
        """
        if removal == "delete" and self.state is not None:
            return self._of_those_that_stay(kept)
        return torch.cat([self.of_arguments(*rows).cpu() for rows in self.inputs.without(kept, removal)])

    @torch.no_grad()
    def _of_those_that_stay(self, kept: Tensor) -> Tensor:
        """Minus the distance of a state when tokens are deleted, (R, T) -> (R,), on the CPU."""
        whole = self.origin.float()[0]
        if whole.ndim > 1 and len(whole) != self.inputs.length:
            raise ValueError(
                f"the state has {len(whole)} places for {self.inputs.length} tokens, and which of them a deleted token "
                "had is not known; use removal 'mask' or 'attention'"
            )
        distances: list[Tensor] = []
        for arguments in self.inputs.without(kept, "delete"):
            with no_fastpath():
                values = self._passing(arguments, None).float()
            for value in values:
                stays = kept[len(distances)].to(whole.device)
                there = whole[stays] if whole.ndim > 1 else whole  # a pooled state has no places
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
        """What passes where the answer is read, (R, ...), with its graph."""
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
    """The model on rows of inputs."""

    def __init__(self, model: TextModel) -> None:
        self.model, self.module = model, model.module

    def __call__(self, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        return self.model(*inputs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's and numpy's global random states from ``seed`` inside the block (Captum draws from both).

    Python's own is only put back: scikit-learn draws from it when it is first imported.
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
