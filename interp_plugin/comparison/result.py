"""StudyResult: what a comparison study found, as tables, tests, files and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp_plugin.comparison import archive, views
from interp_plugin.comparison.findings import Contestant, Failure, Findings, StudyText, merged
from interp_plugin.comparison.running import COSTS
from interp_plugin.rendering import study as rendering
from interp_plugin.rendering.study import StudyColumn, StudyPoint, StudyTable
from interp_plugin.statistics import holm, paired
from interp_plugin.text.storage import replace_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["Contestant", "Failure", "StudyResult", "StudyText", "example"]

OWN = "information kept"
BEST = "best"


class StudyResult(Findings):
    """What a study found: texts x questions x methods x metrics, a number each.

    Its fields are those of :class:`~interp_plugin.comparison.findings.Findings`.

    Examples::
        >>> result = example()
        >>> result
        StudyResult(4 texts, 1 question, 3 methods, 5 metrics)
        >>> for line in result.table(metric="recall")[["method", "group", "n", "mean", "best"]].values.tolist():
        ...     print(line)
        ['by hand', 'unsigned', 4, 0.75, True]
        ['random', 'unsigned', 3, 0.25, False]
        ['with signs', 'signed', 4, 0.5, True]
    """

    def __repr__(self) -> str:
        kinds = ("text", "question", "method", "metric")
        counts = (
            f"{n} {kind}{'s' if n != 1 else ''}" for n, kind in zip(self.cells.shape, kinds, strict=True)
        )
        return f"StudyResult({', '.join(counts)})"

    def values(self) -> pd.DataFrame:
        """A line for each number there is: text (its number), question, method, metric, value.

        Raises:
            ImportError: pandas is missing.

        Examples::
            >>> example().values().head(1).values.tolist()
            [[0, 'class', 'by hand', 'recall', 1.0]]
        """
        pandas = _pandas()
        places = np.nonzero(~np.isnan(self.cells))
        columns = {
            kind: pandas.Categorical.from_codes(codes, names)
            for (kind, names), codes in zip(self.names.items(), places[1:], strict=True)
        }
        frame: pd.DataFrame = pandas.DataFrame({"text": places[0], **columns, "value": self.cells[places]})
        return frame

    def table(self, question: str | None = None, metric: str | None = None) -> pd.DataFrame:
        """Means over the texts with 95 % bootstrap intervals, a line for each question, metric and method.

        ``best`` is the best of its question, metric and group, and ``p`` is of the paired difference to it:
        Wilcoxon's signed-rank test, Holm-corrected for all of that group.  The best was chosen on the same
        texts, which favours it.

        Args:
            question, metric: one of them; None: all.

        Raises:
            ImportError: pandas or scipy is missing.
            ValueError: no such question or metric.

        Examples::
            >>> example().table("class", "seconds")[["method", "mean", "p"]].values.tolist()[1]
            ['random', 0.5, nan]
        """
        some = self.select(_one(question), metrics=_one(metric))
        lines = []
        for q, k, group, methods in some.groups():
            best = some.best(q, k, methods)
            ps = some.against(q, k, methods, best)
            names = some.questions[q], some.metrics[k].name, group
            for m in methods:
                found = [getattr(some.summary, name)[q, m, k] for name in ("mean", "low", "high", "n")]
                lines.append((*names, some.methods[m].name, *found, m == best, ps.get(m, np.nan)))
        columns = ("question", "metric", "group", "method", "mean", "low", "high", "n", "best", "p")
        frame: pd.DataFrame = _pandas().DataFrame(lines, columns=columns)
        return frame

    def comparisons(self, reference: str = OWN) -> pd.DataFrame:
        """Paired differences of one method to each other of its group, on the texts that both have.

        ``difference`` is the reference's number minus the other's, with its 95 % bootstrap interval; ``p`` is
        Wilcoxon's and ``holm`` the same corrected for all others of that question, metric and group;
        ``better`` says whether the difference speaks for the reference.

        Args:
            reference: a method; "best" is the best of each group, which was chosen on the same texts.

        Raises:
            ImportError: pandas or scipy is missing.
            ValueError: no such method.

        Examples::
            >>> found = example().comparisons("by hand")
            >>> found[["metric", "method", "n", "difference", "better"]].values.tolist()[1]
            ['seconds', 'random', 3, 1.5, False]
        """
        fixed = None if reference == BEST else self.number("method", reference)
        places = []  # question, metric, group, first method, others
        for q, k, group, methods in self.groups():
            first = self.best(q, k, methods) if fixed is None else fixed
            others = [m for m in methods if m != first]
            if first in methods and others:
                places.append((q, k, group, first, others))
        differences = [
            self.cells[:, q, [first], k] - self.cells[:, q, others, k] for q, k, _, first, others in places
        ]
        found = iter(paired(np.concatenate([np.empty((len(self.texts), 0)), *differences], axis=1)))
        lines: list[tuple[Any, ...]] = []
        for q, k, group, first, others in places:
            some = [next(found) for _ in others]
            corrected = holm([one.p for one in some]).tolist()
            names = self.questions[q], self.metrics[k].name, group, self.methods[first].name
            for m, one, p in zip(others, some, corrected, strict=True):
                better = one.mean > 0 if self.metrics[k].higher_is_better else one.mean < 0
                lines.append((*names, self.methods[m].name, *vars(one).values(), p, better))
        columns = (
            *("question", "metric", "group", "reference", "method"),
            *("n", "difference", "low", "high", "p", "holm", "better"),
        )
        frame: pd.DataFrame = _pandas().DataFrame(lines, columns=columns)
        return frame

    def front(self, quality_metric: str, question: str) -> tuple[StudyPoint, ...]:
        """Every method's quality against its seconds, and whether it is on the Pareto front of its group.

        On the front are those that no other of the group matches in both and beats in one.

        Raises:
            ValueError: no such question or metric.

        Examples::
            >>> [(point.method, point.cost, point.on_front) for point in example().front("recall", "class")]
            [('by hand', 2.0, True), ('random', 0.5, True), ('with signs', 1.0, True)]
        """
        return views.points(self, self.number("question", question), self.number("metric", quality_metric))

    def select(
        self,
        questions: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
        metrics: Iterable[str] | None = None,
        texts: slice | Sequence[int] | None = None,
    ) -> StudyResult:
        """A part of the result, in the order given; None: all.

        Raises:
            ValueError: a name or a text that is not there.

        Examples::
            >>> example().select(methods=["random"], texts=slice(2))
            StudyResult(2 texts, 1 question, 1 method, 5 metrics)
        """
        return self.part(questions, methods, metrics, texts)

    @staticmethod
    def merge(*results: StudyResult) -> StudyResult:
        """Several results as one: other texts, questions, methods or metrics with the same settings.

        Raises:
            ValueError: none given, other settings, or two numbers for the same thing.

        Examples::
            >>> result = example()
            >>> StudyResult.merge(result.select(texts=[0, 1]), result.select(texts=[2, 3])) == result
            True
        """
        return merged(results)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, all or nothing: the lines of :meth:`values`, and the rest as its metadata.

        The scores of tokens are not written: they stay in the study's journal.

        Raises:
            ImportError: pyarrow is missing.
            OSError: the file cannot be written; one that was there before stays as it was.
        """
        archive.write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StudyResult:
        """Read what :meth:`save` wrote.

        Raises:
            ImportError: pyarrow is missing.
            OSError: there is no such file.
            ValueError: the file holds something else, or comes from a newer version.

        Examples::
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     example().save(folder + "/study.parquet")
            ...     StudyResult.load(folder + "/study.parquet") == example()
            True
        """
        return cls(**archive.read(path))

    def tables(self) -> tuple[StudyTable, ...]:
        """What the report shows: a table for each question, with the notes that belong to it.

        Raises:
            ImportError: scipy is missing.

        Examples::
            >>> [table] = example().tables()
            >>> table.title, list(table.groups), table.groups["unsigned"]["by hand"][0].mean
            ('class', ['unsigned', 'signed'], 0.75)
        """
        return self._tables

    @cached_property
    def _tables(self) -> tuple[StudyTable, ...]:
        return views.tables(self)

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        return rendering.markdown(self.tables())

    def to_html(
        self,
        path: str | os.PathLike[str],
        quality: str | None = None,
        title: str = "Attribution methods compared",
    ) -> Path:
        """Write a page with the tables and with pictures of quality against seconds; returns its path.

        Args:
            path: of the file.
            quality: the metric of the pictures; None: the first that judges each question.
            title: of the page.
        """
        points = views.fronts(self, quality, _COST_NAMES)
        replace_file(path, rendering.to_html(self.tables(), points, title, self.settings).encode())
        return Path(path)

    def plot(
        self, kind: Literal["front", "bars"] = "front", metric: str | None = None, question: str | None = None
    ) -> Figure:
        """A Matplotlib figure: quality against seconds, or one metric of all methods.

        Args:
            kind: "front" or "bars".
            metric: None: the first that judges the question.
            question: None: the first.

        Raises:
            ValueError: another kind, no such question, or a metric without a number there.
        """
        if kind not in ("front", "bars"):
            raise ValueError(f"kind is {kind!r}; choose 'front' or 'bars'")
        table = self.tables()[0 if question is None else self.number("question", question)]
        names = [column.name for column in table.columns]
        if not names or metric not in (None, *names):
            known = ", ".join(map(repr, names)) or "none"
            raise ValueError(f"metric {metric!r} has no number for {table.title!r}; choose from {known}")
        metric = metric or names[0]
        if kind == "bars":
            return rendering.bars_figure(table, metric)
        column = table.columns[names.index(metric)]
        return rendering.front_figure(
            self.front(metric, table.title), metric, column.higher_is_better, table.title
        )

    def show(self, console: Console | None = None) -> None:
        """Print the tables (console: default stdout)."""
        rendering.print_tables(self.tables(), console)


def example() -> StudyResult:
    """A small result with made-up numbers: four texts, three methods, one metric and the costs.

    Examples::
        >>> example().texts[0].target
        'positive'
    """
    recall = [[1.0, 0.5, 0.5], [0.5, 0.25, 0.5], [1.0, 0.0, 0.5], [0.5, np.nan, 0.5]]
    cells = np.zeros((4, 1, 3, 1 + len(COSTS)))
    cells[:, 0, :, 0] = recall
    cells[:, 0, :, 1] = [2.0, 0.5, 1.0]
    cells[:, 0, 1, 1:][np.isnan(cells[:, 0, 1, 0])] = np.nan
    texts = ("a good film", "a bold one", "what fun", "so charming")
    settings = {
        "model": "made up",
        "special tokens": False,
        "calibration": None,
        "target": "predicted",
        "seed": 0,
    }
    return StudyResult(
        texts=tuple(
            StudyText(text, None, 2 + len(text.split()), "positive", "positive", str(i))
            for i, text in enumerate(texts)
        ),
        questions=("class",),
        methods=(
            Contestant("by hand", False, "made up"),
            Contestant("random", False, "made up"),
            Contestant("with signs", True, "made up"),
        ),
        metrics=(StudyColumn("recall", True, "made up"), *COSTS),
        cells=cells,
        settings=settings,
        failures=(Failure(3, "class", "random", "", "ValueError: made up"),),
    )


_COST_NAMES = frozenset(column.name for column in COSTS)


def _one(name: str | None) -> list[str] | None:
    return None if name is None else [name]


def _pandas() -> ModuleType:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "tables of a study need pandas, which is not installed: pip install interp-plugin[compare]"
        ) from error
    module: ModuleType = pandas
    return module
