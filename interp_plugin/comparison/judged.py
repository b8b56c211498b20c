"""What a study is made of: a method gives every token a score, a metric judges the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from interp_plugin.comparison.inputs import Answer, Inputs, Removal, seeded
from interp_plugin.text.batch import State
from interp_plugin.text.models import TextModel, state_sites

Score = Callable[[Inputs, int | None, State | None], Tensor]
"""(text, class, state) -> a score for each token, (T,), high = important; class or state is None."""
Explains = Literal["class", "state", "both"]


@dataclass(frozen=True)
class Method:
    """An attribution method as a study runs it.

    Attributes:
        name: in tables.
        score: the method itself.
        signed: whether scores below 0 say that a token speaks against the class.
        explains: what it can be asked about.
        source: the paper, or Captum's class.
        draws: whether it depends on a seed.

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
        """Whether it can be asked about a class (None) or about a state."""
        return self.explains in ("both", "class" if state is None else "state")

    def __call__(self, inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        """The scores, (T,), float32, on the CPU; the same again for the same ``inputs.seed``.

        Raises:
            ValueError: scores of another shape, NaN or infinite.
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
    """One method's answer to one question about one text, to be judged.

    Attributes:
        inputs, target, state: the question.
        method: who answered.
        scores: the answer, (T,).
        rationale: the tokens that people (or the data's maker) hold to be the reason, (T,), bool; None: not known.
    """

    inputs: Inputs
    target: int | None
    state: State | None
    method: Method
    scores: Tensor
    rationale: Tensor | None = None

    @property
    def answer(self) -> Answer:
        """The number that was to be explained."""
        return Answer(self.inputs, self.target, self.state)

    @cached_property
    def uncalibrated(self) -> Trial:
        """The same with the text as the state's own yardstick: ``state_std`` is of one model alone.

        What is compared with another model's answer; where there is a ``state_std`` the method runs once more.
        """
        if self.state is None or self.state.state_std is None:
            return self
        state = replace(self.state, state_std=None)
        return replace(self, state=state, scores=self.method(self.inputs, None, state))

    def order(self) -> list[int]:
        """The tokens that may be removed, most important first; ties from left to right."""
        ranked = torch.sort(self.scores, descending=True, stable=True).indices.tolist()
        return [place for place in ranked if self.inputs.players[place]]

    def again(self, seed: int | None = None, model: TextModel | None = None) -> Tensor:
        """The method's scores once more, with another seed or for another model of the same architecture."""
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
    """A way to judge scores, one number for each trial.

    Attributes:
        name: in tables.
        measure: the number; None where a trial cannot be judged (no rationale, a text too long or too short).
        higher_is_better: what the number says.
        source: paper and equation.
        judges: answers about a class, about a state, or both.
        removal: how it takes tokens away, which not every model bears; None: it takes none.
    """

    name: str
    measure: Callable[[Trial], float | None]
    higher_is_better: bool
    source: str
    judges: Explains = "both"
    removal: Removal | None = None

    def can_judge(self, state: State | None) -> bool:
        """Whether it applies to answers about a class (None) or about a state."""
        return self.judges in ("both", "class" if state is None else "state")

    def __call__(self, trial: Trial) -> float | None:
        return self.measure(trial)
