"""Methods compared with a known truth: one number for each method, measure and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from interp_plugin.comparison.interface import Inputs, Method
from interp_plugin.text.states import State

RESAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """What methods explain, with the truth.

    Attributes:
        inputs: the text.
        target: the explained class; None: the state is explained.
        state: the explained state; None: the class is explained.
        truth: the truth for each token, (T,): whether it decides, or a number.
    """

    inputs: Inputs
    target: int | None
    state: State | None
    truth: Tensor

    def ask(self, method: Method) -> tuple[Tensor, Tensor]:
        """The method's scores and the truth of the tokens that are ranked, (players,) each."""
        players = self.inputs.players
        return method(self.inputs, self.target, self.state)[players], self.truth[players]


@dataclass(frozen=True)
class Measure:
    """How near scores are to the truth, one number for a text.

    Attributes:
        name: in tables.
        of: scores and truth of the ranked tokens, (players,) each -> the number.
        higher_is_better: what the number says.
    """

    name: str
    of: Callable[[Tensor, Tensor], float]
    higher_is_better: bool


@dataclass(frozen=True)
class Mean:
    """A mean over texts with its bootstrap 95 % interval.

    Examples::
        >>> print(Mean(0.25, 0.2, 0.3, 50))
        0.250 [0.200, 0.300]
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> Mean:
        """The mean of one number a text; SciPy's percentile bootstrap over texts.

        Raises:
            ValueError: there are no values.

        Examples::
            >>> Mean.of([1.0, 1.0, 1.0])
            Mean(value=1.0, low=1.0, high=1.0, n=3)
        """
        import numpy as np
        from scipy.stats import bootstrap

        if not values:
            raise ValueError("values is empty, and a mean needs one or more; evaluate at least one text")
        data = np.asarray(values, dtype=float)
        value = float(data.mean())
        if len(set(values)) == 1:  # nothing to resample
            return cls(value, value, value, len(data))
        interval = bootstrap(
            (data,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        return cls(value, float(interval.low), float(interval.high), len(data))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Evaluation:
    """The results for one truth.

    Attributes:
        title: the truth, and the question that was asked.
        higher_is_better: of each measure.
        values: method -> measure -> one number a text, in the order of the texts.
        notes: what a reader of the numbers has to know.

    Examples::
        >>> evaluation = Evaluation("sum", {"error": False}, {"ours": {"error": (0.0, 0.0)}})
        >>> print(evaluation.to_markdown())
        **sum** (2 texts)
        <BLANKLINE>
        | method | error ↓ |
        |---|---|
        | ours | 0.000 [0.000, 0.000] |
    """

    title: str
    higher_is_better: Mapping[str, bool]
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    notes: tuple[str, ...] = field(default=())

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order they were given."""
        return list(self.values)

    def mean(self, method: str, measure: str) -> Mean:
        """Mean over texts with its interval.

        Raises:
            ValueError: a method or measure that is not here.
        """
        if method not in self.values or measure not in self.higher_is_better:
            raise ValueError(
                f"{method!r} and {measure!r} are not a method and a measure of {self.title!r}, whose methods are "
                f"{', '.join(self.values)} and measures {', '.join(self.higher_is_better)}"
            )
        return Mean.of(self.values[method][measure])

    def to_markdown(self) -> str:
        """A table: a line for each method, and a mean with its interval for each measure."""
        arrows = [f"{name} {'↑' if higher else '↓'}" for name, higher in self.higher_is_better.items()]
        counts = {len(values) for of_method in self.values.values() for values in of_method.values()}
        lines = [
            f"**{self.title}** ({max(counts, default=0)} texts)",
            "",
            f"| method | {' | '.join(arrows)} |",
            f"|---{'|---' * len(arrows)}|",
        ]
        for method in self.values:
            cells = [str(self.mean(method, measure)) for measure in self.higher_is_better]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def evaluate(
    title: str,
    questions: Sequence[Question],
    methods: Sequence[Method],
    measures: Sequence[Measure],
    notes: Sequence[str] = (),
) -> Evaluation:
    """Run every method on every question and measure its scores.

    Args:
        title: of the result.
        questions: all about classes or all about states.
        methods: those that do not apply to such questions are left out, and a note says so.
        measures: of the scores.
        notes: of the result.

    Raises:
        ValueError: no question, or no method that applies.
    """
    if not questions:
        raise ValueError(f"{title!r} has no questions; give it at least one text")
    able = able_to_explain(methods, questions[0].state)
    values: dict[str, dict[str, tuple[float, ...]]] = {}
    for method in able:
        answers = [question.ask(method) for question in questions]
        values[method.name] = {m.name: tuple(m.of(*answer) for answer in answers) for m in measures}
    directions = {measure.name: measure.higher_is_better for measure in measures}
    return Evaluation(title, directions, values, (*notes, *left_out(methods, able)))


def able_to_explain(methods: Sequence[Method], state: State | None) -> list[Method]:
    """The methods that can be asked about a state, or about a class (None).

    Raises:
        ValueError: there is none.
    """
    able = [method for method in methods if method.can_explain(state)]
    if not able:
        raise ValueError(
            f"none of the methods {[method.name for method in methods]} explains a "
            f"{'class' if state is None else 'state'}; give one that does"
        )
    return able


def left_out(methods: Sequence[Method], able: Sequence[Method]) -> list[str]:
    """The note that names the methods that do not apply; none if there are none."""
    names = [method.name for method in methods if method not in able]
    return [f"Not applicable to this question: {', '.join(names)}."] if names else []


def spearman(scores: Tensor, truth: Tensor) -> float:
    """Rank correlation with the truth; scores that are all the same order nothing, and get 0.

    Examples::
        >>> import torch
        >>> spearman(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.1, 0.2, 0.3]))
        1.0
    """
    from scipy.stats import spearmanr

    if len(scores.unique()) == 1:
        return 0.0
    return float(spearmanr(scores.double().numpy(), truth.double().numpy()).statistic)
