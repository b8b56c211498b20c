"""Sequence reversal with an LSTM: at every step it is known which tokens the state must hold and which it may drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp_plugin.comparison.interface import Answer, Inputs, Method, seeded
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State
from known_truths.evaluation import Evaluation, able_to_explain, left_out

SYMBOLS = 10
ACCURACY = 0.99
PROBED = 3000  # sequences, a third of them held out


class Memory(nn.Module):
    """One step of an LSTM whose output is all of its state: hidden and cell side by side, (B, 2 H)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        hidden, cell = state.chunk(2, 1)
        return torch.cat(self.cell(x, (hidden, cell)), 1)


class Reverser(nn.Module):
    """Reads T digits, then emits them in reverse; ids (B, T) -> scores (B, T, 10).

    While it emits it is given the same vector at every step, so that all it knows of the sequence is its state.

    Args:
        length: T.
        width: of the embedding.
        hidden: of the LSTM.
        disturbance: standard deviation of what training adds to the state after every step: without it
            nothing ever presses the LSTM to let go of a digit.
    """

    def __init__(self, length: int, width: int, hidden: int, disturbance: float) -> None:
        super().__init__()
        self.length, self.hidden, self.disturbance = length, hidden, disturbance
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.memory = Memory(width, hidden)
        self.go = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(hidden, SYMBOLS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.emitted(self.states(ids))

    def emitted(self, states: Sequence[Tensor]) -> Tensor:
        """Scores, (B, T, 10), from the states."""
        return torch.stack([self.head(state[:, : self.hidden]) for state in states], 1)

    def states(self, ids: Tensor) -> list[Tensor]:
        """What the memory holds when each digit is emitted, T times (B, 2 H)."""
        return self.states_of(self.embedding(ids))

    def states_of(self, x: Tensor) -> list[Tensor]:
        """The same from vectors, (B, T, width)."""
        steps = [*x.unbind(1), *[self.go.expand(len(x), -1)] * self.length]
        state = x.new_zeros(len(x), 2 * self.hidden)
        states = []
        for step in steps:
            state = self.memory(step, state)
            if self.training:
                state = state + self.disturbance * torch.randn_like(state)
            states.append(state)
        return states[self.length :]


@dataclass(frozen=True)
class ReversalTask:
    """A trained reverser.

    Attributes:
        module: the reverser.
        accuracy: share of digits right, in 2,000 fresh sequences.
    """

    module: Reverser
    accuracy: float

    @property
    def length(self) -> int:
        """T."""
        return self.module.length

    def model(self) -> PlainModel:
        """As methods get it: texts are digits with spaces between, as "3 1 4 1 5 9"."""
        module = self.module

        def read(text: str) -> list[int]:
            words = text.split()
            if len(words) != module.length or not all(word in "0123456789" for word in words):
                raise ValueError(f"{text!r} is not {module.length} digits; write them like '3 1 4'")
            return [int(word) for word in words]

        return PlainModel(module, read, module.embedding, {"memory": module.memory})

    def state(self, step: int) -> State:
        """Hidden and cell when digit ``step`` of the answer (from 0) is emitted, v their spread over sequences."""
        return State(
            "memory", LayerCall(self.module.memory, call=self.length + step), None, self.spread[step]
        )

    @cached_property
    def spread(self) -> list[Tensor]:
        """Standard deviation of each step's state over 2,000 sequences, (2 H,) each."""
        ids = torch.randint(SYMBOLS, (2000, self.length), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return [state.std(0) for state in self.module.states(ids)]

    def needed(self, step: int) -> Tensor:
        """Which tokens the state must hold at a step, (T,): the one that is emitted then, and all to come.

        Examples::
            >>> ReversalTask(Reverser(4, 2, 2, 0.0), 1.0).needed(1).tolist()
            [True, True, True, False]
        """
        return torch.arange(self.length) < self.length - step

    def probed(self, seed: int = 2) -> Tensor:
        """How well each state tells each token, (T steps, T tokens): accuracy of a linear classifier (chance is 0.1).

        Scikit-learn's ``RidgeClassifier`` on 2,000 sequences, measured on 1,000 others: it says how much of
        what may be forgotten is forgotten, without any attribution.
        """
        from sklearn.linear_model import RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        ids = torch.randint(SYMBOLS, (PROBED, self.length), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            states = self.module.states(ids)
        part = 2 * PROBED // 3
        accuracy = torch.zeros(self.length, self.length, dtype=torch.float32)
        for step, state in enumerate(states):
            for token in range(self.length):
                probe = make_pipeline(StandardScaler(), RidgeClassifier()).fit(
                    state[:part].numpy(), ids[:part, token].numpy()
                )
                accuracy[step, token] = probe.score(state[part:].numpy(), ids[part:, token].numpy())
        return accuracy


def train(
    length: int = 6,
    steps: int = 3000,
    batch: int = 128,
    width: int = 10,
    hidden: int = 96,
    disturbance: float = 0.03,
    forget: float = 5.0,
    jitter: float = 1.0,
    seed: int = 0,
) -> ReversalTask:
    """Train a reverser on fresh sequences, and to forget what it has emitted.

    An LSTM that may forget does so slowly, if ever.  So that it is known what its state holds, the
    loss has a second term: how far the state of a step moves when the emitted digits were others.

    Args:
        length, width, hidden, disturbance: of :class:`Reverser`.
        steps, batch: Adam steps, of so many sequences.
        forget: weight of that second term; 0: whether the LSTM forgets is its own affair.
        jitter: noise on the vectors of those other digits, in standard deviations of the embedding.  0: the
            state forgets which digit it was, and may still feel vectors that are no digit's, as methods
            that disturb or differentiate embeddings do.
        seed: of weights and sequences; the caller's random state stays as it is.

    Raises:
        ValueError: it did not learn the task (99 % of digits).
    """
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed), torch.enable_grad():
        module = Reverser(length, width, hidden, disturbance).train()
        adam = torch.optim.Adam(module.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=steps)
        for _ in range(steps):
            ids = torch.randint(SYMBOLS, (batch, length), generator=generator)
            states = module.states(ids)
            loss = F.cross_entropy(module.emitted(states).flatten(0, 1), ids.flip(1).flatten())
            if forget:
                loss = loss + forget * _remembered(module, ids, states, jitter, generator)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
            schedule.step()
    module.eval().requires_grad_(False)
    ids = torch.randint(SYMBOLS, (2000, length), generator=generator)
    accuracy = float((module(ids).argmax(-1) == ids.flip(1)).float().mean())
    if accuracy < ACCURACY:
        raise ValueError(
            f"the reverser is right on {accuracy:.1%} of digits after {steps} steps, and {ACCURACY:.0%} are needed for "
            "its truth to be known; give it more steps"
        )
    return ReversalTask(module, accuracy)


def _remembered(
    module: Reverser, ids: Tensor, states: Sequence[Tensor], jitter: float, generator: torch.Generator
) -> Tensor:
    """How far a state moves when what has been emitted was something else, in units of its spread; a step at random."""
    length = module.length
    step = int(torch.randint(1, length, (), generator=generator))
    gone = torch.arange(length) >= length - step
    x = module.embedding(torch.where(gone, torch.randint(SYMBOLS, ids.shape, generator=generator), ids))
    noise = (
        jitter
        * module.embedding.weight.std()
        * torch.randn(x.shape, generator=generator, dtype=torch.float32)
    )
    moved = module.states_of(x + noise * gone[:, None])[step] - states[step]
    return moved.square().mean() / states[step].var(0).mean()


def reversal(task: ReversalTask, methods: Sequence[Method], texts: int = 50, seed: int = 1) -> Evaluation:
    """How well scores tell the tokens that a state must hold from those that it may forget.

    Each method is asked about the LSTM's state at every step of the answer.  Measures are areas under the ROC
    curve (scikit-learn): "step t" over the tokens of that step; "tokens" their mean over steps; "steps" over the
    steps of each token, its mean over tokens.  The last asks whether the score of one and the same token falls
    once it is emitted, which scores that only prefer early places cannot do: they do well in "tokens", as
    what is still to come are the early places.

    Args:
        task: from :func:`train`.
        methods: to be evaluated.
        texts: sequences.
        seed: of the sequences.
    """
    able = able_to_explain(methods, task.state(0))
    model, length = task.model(), task.length
    ids = torch.randint(SYMBOLS, (texts, length), generator=torch.Generator().manual_seed(seed))
    needed = torch.stack([task.needed(step) for step in range(length)])  # (steps, T)
    encodings = [model.encode(" ".join(map(str, row))) for row in ids.tolist()]
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    for method in able:
        measured: dict[str, list[float]] = {}
        for index, encoding in enumerate(encodings):
            inputs = Inputs(model, encoding, seed=index)
            scores = torch.stack([method(inputs, None, task.state(step)) for step in range(length)])
            for name, value in _areas(scores, needed).items():
                measured.setdefault(name, []).append(value)
        values[method.name] = {name: tuple(found) for name, found in measured.items()}
    names = next(iter(values.values()))
    notes = [f"The model is right on {task.accuracy:.1%} of digits.", *left_out(methods, able)]
    return Evaluation("sequence reversal: LSTM state", dict.fromkeys(names, True), values, tuple(notes))


def replacement() -> Method:
    """How far a state moves, as a mean over the other nine digits, when a token is another digit: nothing is estimated.

    Not a competitor but what there is to find: what no digit can change has been forgotten.
    """

    def score(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        answer = Answer(inputs, target, state)
        ids = inputs.ids.repeat(inputs.length * SYMBOLS, 1)  # (T * 10, T)
        places = torch.arange(inputs.length).repeat_interleave(SYMBOLS)
        ids[torch.arange(len(ids)), places] = torch.arange(SYMBOLS).repeat(inputs.length)
        moved = -answer.of_arguments(ids, *inputs.rows(len(ids))[1:])
        return moved.reshape(inputs.length, SYMBOLS).sum(1) / (SYMBOLS - 1)

    return Method("replaced by each other digit", score, explains="state", source="by enumeration")


def _areas(scores: Tensor, needed: Tensor) -> dict[str, float]:
    """The measures of one text from what each step's state keeps of each token, (steps, T) both."""
    from sklearn.metrics import roc_auc_score

    def areas(truths: Tensor, rows: Tensor) -> list[float]:
        """Of rows in which both answers occur."""
        return [
            float(roc_auc_score(truth.numpy(), row.numpy()))
            for truth, row in zip(truths, rows)
            if truth.any() and not truth.all()
        ]

    of_steps, of_tokens = areas(needed, scores), areas(needed.T, scores.T)
    found = {"tokens": sum(of_steps) / len(of_steps), "steps": sum(of_tokens) / len(of_tokens)}
    return {**found, **{f"step {step}": value for step, value in enumerate(of_steps, start=1)}}
