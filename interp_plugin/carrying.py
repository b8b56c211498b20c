"""Texts explained by the erasure channel: which tokens carry a class, a language model's target, or a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp_plugin.batches import Batch, State
from interp_plugin.explanation import ErasedRow, Row
from interp_plugin.forwards import gradients
from interp_plugin.method.erasing import Erasing, Way
from interp_plugin.method.erasure import Erasure, ErasureFit, learn_erasure, log_odds
from interp_plugin.problem import Terms, nothing
from interp_plugin.scoring import Part, Plan, in_memory, parts
from interp_plugin.state import Selector, Site, module_of
from interp_plugin.tokens import TextModel


@dataclass(frozen=True)
class ErasureFinder:
    """Finds the rows of texts by the erasure channel, in the solver's place; special tokens are never erased.

    A class's answer is its log-odds (of a text without a target, that of the predicted class), that of a language
    model's target its log probability, summed over its tokens; of any other state the damage is D.

    Attributes:
        model: what reads the texts.
        erasure: how the channel is learned.
        ways: how tokens are erased.
    """

    model: TextModel
    erasure: Erasure
    ways: tuple[Way, ...]

    def watch(self, model: TextModel, encodings: Sequence[Any]) -> AbstractContextManager[Any]:
        """Nothing is watched."""
        return nullcontext()

    def rows(self, batch: Batch, plan: Plan, seen: Any, given: Sequence[bool]) -> list[tuple[Row, ...]]:
        """The rows of every text, in the plan's order, positions of a state one after another."""
        found: list[list[tuple[int, Row]]] = [[] for _ in given]
        masked = batch.masked_origin()
        for part in parts(self.model, batch, plan, given):
            for state, mask, places in zip(part.states, part.masks, part.positions):
                for rows, selector in self._answers(batch, part, state):
                    examples = [part.examples[row] for row in rows]
                    own = None if mask is None else mask[torch.tensor(rows, device=mask.device)]
                    some = batch.at(examples)
                    erased_are = (
                        None if masked is None else masked[torch.tensor(examples, device=masked.device)]
                    )
                    learn = partial(self._fit, some, plan.noise_layer, erased_are, state, own, selector)
                    fit = in_memory(plan, some, learn)
                    for index, (row, example) in enumerate(zip(rows, examples)):
                        erased = _row(state, places[row], fit, index, batch.token_mask[example])
                        found[example].append((plan.states.index(state), erased))
        return [tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])) for rows in found]

    def _answers(self, batch: Batch, part: Part, state: State) -> Iterator[tuple[list[int], Selector | None]]:
        """Rows of a part that share an answer, and what picks it; None: the state itself."""
        everyone = list(range(len(part.examples)))
        if state.site is not None or self.model.task not in ("sequence classes", "next token"):
            yield everyone, None
            return
        kinds: dict[int, list[int]] = {}
        if self.model.task == "sequence classes":
            whole = batch.whole(None)
            for row, example in enumerate(part.examples):
                target = state.neurons if isinstance(state.neurons, int) else int(whole[example].argmax())
                kinds.setdefault(target, []).append(row)
            for target, rows in kinds.items():
                yield rows, partial(log_odds, target=target)
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
        terms = Terms(1.0, None, None, 1.0)  # of noise, which there is none of
        watched = replace(state, neurons=None, state_std=None) if selector else state
        problem = batch.pose(watched, None if selector else mask, terms, max_rows, selector)
        objective = problem.objective
        if baseline is None:
            baseline = nothing(module_of(noise_layer), objective).expand_as(objective.origin)
        players = objective.groups.spread(batch.players.to(objective.device, objective.dtype)) > 0
        baseline = torch.where(players, baseline.flatten(1).to(objective.origin), objective.origin)
        erasing = Erasing(
            objective, baseline, self.ways, partial(batch.edited, state=state, selector=selector)
        )
        with gradients():
            return learn_erasure(erasing.players, erasing.damage, erasing.prior, self.erasure, len(self.ways))


def _summed(state: Tensor, count: int) -> Tensor:
    """The log probability of the first so many tokens of a target, (R, n) -> (R,)."""
    return state[:, :count].sum(1)


def _row(state: State, position: int | None, fit: ErasureFit, index: int, mask: Tensor) -> ErasedRow:
    real = mask.cpu().bool()
    return ErasedRow.of(
        state.label,
        position,
        fit.score[index][real],
        fit.standard_error[index][real],
        fit.probability[index][real],
        float(fit.damage[index]),
        int(fit.n_forward[index]),
        int(fit.n_backward[index]),
    )
