"""StudyResult: the results of a comparison study, with tables, tests, files and figures."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from interp_plugin.comparison import tables
from interp_plugin.comparison.costs import COSTS, StudyColumn
from interp_plugin.comparison.journal import differences
from interp_plugin.comparison.tables import CLASS, GROUPS, NEXT, Group, StudyCell
from interp_plugin.files import blank_seal, foreign, load_pyarrow, open_sealed, replace_file, sealed
from interp_plugin.optional import load
from interp_plugin.report import figures, html, terminal
from interp_plugin.report.markdown import markdown
from interp_plugin.report.model import Point, Points, Table
from interp_plugin.statistics import Means, holm, means, paired, signed_rank
from interp_plugin.text.rows import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

OWN = "information kept"
BEST = "best"
DPI = 200  # resolution of figures in files

FORMAT = 2  # format of saved files; increase it when an older version would misread them
LARGEST = 2**20  # largest number of results of a file that may be loaded,
SPARSEST = 1000  # plus this many for each number in the file
_KEY = b"interp_plugin study"  # key of the file's metadata
_COLUMNS = ("question", "method", "metric")


@dataclass(frozen=True)
class MethodInfo:
    """A method as shown in tables.

    Attributes:
        name: its name.
        signed: whether a negative score means that a token speaks against the class.
        source: the paper, or Captum's class.
    """

    name: str
    signed: bool
    source: str


@dataclass(frozen=True)
class StudyText:
    """A text of a study.

    Attributes:
        text, pair: the text, and the second text of a pair.
        tokens: number of its tokens, including special tokens.
        label: its true class; None: not known.
        target: the class or next token that was explained, and what it was compared with; None: only states were.
        digest: equal for texts that were explained in the same way.
    """

    text: str
    pair: str | None
    tokens: int
    label: str | None
    target: str | None
    digest: str


@dataclass(frozen=True)
class Failure:
    """Why a number is missing.

    Attributes:
        text: index of the text.
        question, method: what was explained, and by which method.
        metric: the metric that failed; "" if the method itself failed.
        reason: the error message.
    """

    text: int
    question: str
    method: str
    metric: str
    reason: str


_PARTS: Mapping[str, type] = {
    "texts": StudyText,
    "methods": MethodInfo,
    "metrics": StudyColumn,
    "failures": Failure,
}


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult:
    """The results of a study: one number for each text, question, method and metric.

    Attributes:
        texts: N texts.
        questions: Q names of what was explained: "class", "layer 1", ...
        methods: M methods.
        metrics: K metrics, costs last.
        cells: the numbers, (N, Q, M, K), float64; NaN where there is no number.
        settings: what the numbers depend on.
        failures: methods and metrics that failed on single texts.
        left_out: methods and metrics that do not support the model -> why.
        notes: texts and labels that could not be used.
        scores: the scores of the tokens, by text, question and method; empty unless the study kept them.

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

    texts: tuple[StudyText, ...]
    questions: tuple[str, ...]
    methods: tuple[MethodInfo, ...]
    metrics: tuple[StudyColumn, ...]
    cells: NDArray[np.float64]
    settings: Mapping[str, Any]
    failures: tuple[Failure, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: Mapping[tuple[int, str, str], NDArray[np.float32]] = field(default_factory=dict)

    def __repr__(self) -> str:
        kinds = ("text", "question", "method", "metric")
        counts = (
            f"{n} {kind}{'s' if n != 1 else ''}" for n, kind in zip(self.cells.shape, kinds, strict=True)
        )
        return f"StudyResult({', '.join(counts)})"

    def __eq__(self, other: object) -> bool:
        """Compare everything except the scores of the tokens."""
        if not isinstance(other, StudyResult):
            return NotImplemented
        names = [f.name for f in fields(self) if f.name not in ("cells", "scores")]
        return np.array_equal(self.cells, other.cells, equal_nan=True) and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    __hash__ = None  # type: ignore[assignment]

    # -- names, indices and groups

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of questions, methods and metrics."""
        return {
            "question": list(self.questions),
            "method": [method.name for method in self.methods],
            "metric": [metric.name for metric in self.metrics],
        }

    def number(self, kind: str, name: str) -> int:
        """Return the index of a question, method or metric.

        Raises:
            ValueError: there is no such name.
        """
        known = self.names[kind]
        if name not in known:
            raise ValueError(
                f"{kind} {name!r} is not in the study; choose from {', '.join(map(repr, known)) or 'none'}"
            )
        return known.index(name)

    @cached_property
    def summary(self) -> Means:
        """Means over the texts with their intervals, (Q, M, K) each."""
        found = means(self.cells.reshape(len(self.cells), -1))
        shape = self.cells.shape[1:]
        return Means(*(getattr(found, f.name).reshape(shape) for f in fields(found)))

    def group(self, question: int, method: int) -> Group:
        """Return the group in which a method is compared.

        Signed methods are a group of their own for a class or next token; for states all methods are "unsigned".
        """
        about_class = self.questions[question] in (CLASS, NEXT)
        return "signed" if about_class and self.methods[method].signed else "unsigned"

    def groups(self) -> Iterator[tuple[int, int, Group, list[int]]]:
        """Yield question, metric and group, and the methods of the group that have a number for these."""
        for q in range(len(self.questions)):
            for k in range(len(self.metrics)):
                for group in GROUPS:
                    known = [m for m in range(len(self.methods)) if self.group(q, m) == group]
                    known = [m for m in known if self.summary.n[q, m, k]]
                    if known:
                        yield q, k, group, known

    def best(self, question: int, metric: int, methods: Sequence[int]) -> int:
        """Return the method with the best mean."""
        sign = 1 if self.metrics[metric].higher_is_better else -1
        return max(methods, key=lambda method: sign * self.summary.mean[question, method, metric])

    @cached_property
    def evaluated(self) -> dict[tuple[int, int, int], StudyCell]:
        """Mean by question, metric and method, compared with the best of its group."""
        found = {}
        for q, k, _, methods in self.groups():
            best = self.best(q, k, methods)
            others = [method for method in methods if method != best]
            values = self.cells[:, q, :, k]
            ps = dict(
                zip(others, holm([signed_rank(values[:, best] - values[:, m]) for m in others]).tolist())
            )
            for m in methods:
                p = ps.get(m, math.nan)
                mean, low, high, n = (getattr(self.summary, f.name)[q, m, k].item() for f in fields(Means))
                found[q, k, m] = StudyCell(mean, low, high, n, m == best, None if math.isnan(p) else p)
        return found

    # -- tables and tests

    def values(self) -> pd.DataFrame:
        """Return a row for each number: text (its index), question, method, metric, value.

        Raises:
            ImportError: pandas is missing.

        Examples::
            >>> example().values().head(1).values.tolist()
            [[0, 'class', 'by hand', 'recall', 1.0]]
        """
        categorical = load("pandas", "a table of a study", "compare").Categorical.from_codes
        indices = np.nonzero(~np.isnan(self.cells))
        kinds = zip(self.names.items(), indices[1:], strict=True)
        columns = {kind: categorical(codes, names) for (kind, names), codes in kinds}
        return _frame({"text": indices[0], **columns, "value": self.cells[indices]})

    def table(self, question: str | None = None, metric: str | None = None) -> pd.DataFrame:
        """Return means over the texts with 95 % bootstrap intervals, a row for each question, metric and method.

        ``best`` marks the best of its question, metric and group.  ``p`` is the p-value of the paired difference from
        the best: Wilcoxon's signed-rank test, Holm-corrected for all methods of the group.  The best was chosen on the
        same texts, which favours it.

        Args:
            question, metric: the question and metric to include; None: all.

        Raises:
            ImportError: pandas or scipy is missing.
            ValueError: there is no such question or metric.

        Examples::
            >>> example().table("class", "seconds")[["method", "mean", "p"]].values.tolist()[1]
            ['random', 0.5, nan]
        """
        some = self.select(
            None if question is None else [question], metrics=None if metric is None else [metric]
        )
        lines = []
        for (q, k, m), cell in some.evaluated.items():
            names = some.questions[q], some.metrics[k].name, some.group(q, m), some.methods[m].name
            lines.append((*names, *vars(cell).values()))
        columns = ("question", "metric", "group", "method", "mean", "low", "high", "n", "best", "p")
        return _frame(lines, columns).astype({"p": float})

    def comparisons(self, reference: str = OWN) -> pd.DataFrame:
        """Return paired differences between one method and each other method of its group, on the texts of both.

        ``difference`` is the reference's number minus the other's, with its 95 % bootstrap interval.  ``p`` is the
        p-value of Wilcoxon's signed-rank test, and ``holm`` the same corrected for all others of that question, metric
        and group.  ``better`` says whether the difference is in favour of the reference.

        Args:
            reference: name of a method; "best" is the best of each group, which was chosen on the same texts.

        Raises:
            ImportError: pandas or scipy is missing.
            ValueError: there is no such method.

        Examples::
            >>> found = example().comparisons("by hand")
            >>> found[["metric", "method", "n", "difference", "better"]].values.tolist()[1]
            ['seconds', 'random', 3, 1.5, False]
        """
        fixed = None if reference == BEST else self.number("method", reference)
        pairs = []  # question, metric, group, reference, others
        for q, k, group, methods in self.groups():
            first = self.best(q, k, methods) if fixed is None else fixed
            others = [m for m in methods if m != first]
            if first in methods and others:
                pairs.append((q, k, group, first, others))
        differences = [
            self.cells[:, q, [first], k] - self.cells[:, q, others, k] for q, k, _, first, others in pairs
        ]
        found = iter(paired(np.concatenate([np.empty((len(self.texts), 0)), *differences], axis=1)))
        lines: list[tuple[Any, ...]] = []
        for q, k, group, first, others in pairs:
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
        return _frame(lines, columns)

    def front(self, quality_metric: str, question: str) -> tuple[Point, ...]:
        """Return every method's quality and seconds, and whether it is on the Pareto front of its group.

        A method is on the front if no other method of the group is at least as good in both and better in one.

        Raises:
            ValueError: there is no such question or metric.

        Examples::
            >>> [(point.method, point.cost, point.on_front) for point in example().front("recall", "class")]
            [('by hand', 2.0, True), ('random', 0.5, True), ('with signs', 1.0, True)]
        """
        return tables.points(self, self.number("question", question), self.number("metric", quality_metric))

    # -- parts, unions, files

    def select(
        self,
        questions: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
        metrics: Iterable[str] | None = None,
        texts: slice | Iterable[int] | None = None,
    ) -> StudyResult:
        """Select a part of the result, in the given order; None: all.

        Raises:
            ValueError: a name or text is not in the result.

        Examples::
            >>> example().select(methods=["random"], texts=slice(2))
            StudyResult(2 texts, 1 question, 1 method, 5 metrics)
        """
        q, m, k = (
            [self.number(kind, name) for name in (self.names[kind] if requested is None else requested)]
            for kind, requested in zip(_COLUMNS, (questions, methods, metrics))
        )
        if texts is None or isinstance(texts, slice):
            n = list(range(len(self.texts))[texts or slice(None)])
        else:
            n = [self._place(text) for text in texts]
        part = replace(
            self,
            texts=tuple(self.texts[i] for i in n),
            questions=tuple(self.questions[i] for i in q),
            methods=tuple(self.methods[i] for i in m),
            metrics=tuple(self.metrics[i] for i in k),
            cells=self.cells[np.ix_(n, q, m, k)],
        )
        names, new = part.names, {old: index for index, old in enumerate(n)}

        def has(text: int, question: str, method: str) -> bool:
            return text in new and question in names["question"] and method in names["method"]

        failures = (
            replace(f, text=new[f.text])
            for f in self.failures
            if has(f.text, f.question, f.method) and f.metric in ("", *names["metric"])
        )
        scores = {(new[cell[0]], *cell[1:]): found for cell, found in self.scores.items() if has(*cell)}
        return replace(part, failures=tuple(failures), scores=scores)

    def _place(self, text: int) -> int:
        count = len(self.texts)
        if not -count <= text < count:
            raise ValueError(f"text {text} is not in the study, which has {count} texts, counted from 0")
        return text % count

    @staticmethod
    def merge(*results: StudyResult) -> StudyResult:
        """Merge results that have the same settings and different texts, questions, methods or metrics.

        Raises:
            ValueError: there are no results, the settings differ, a name stands for two different methods or metrics,
                or two results have different numbers for the same cell.

        Examples::
            >>> result = example()
            >>> StudyResult.merge(result.select(texts=[0, 1]), result.select(texts=[2, 3])) == result
            True
        """
        if not results:
            raise ValueError("there is nothing to merge: give at least one StudyResult")
        for result in results[1:]:
            found = differences(results[0].settings, result.settings)
            if found:
                raise ValueError(
                    f"the results are of different studies ({'; '.join(found)}), so their numbers are not comparable; "
                    "merge only results with the same settings"
                )
        texts: dict[tuple[str, int], StudyText] = {}
        for result in results:
            texts |= {key: text for key, text in result._by_digest().items() if key not in texts}
        questions = list(dict.fromkeys(name for result in results for name in result.questions))
        methods = _by_name("method", [method for result in results for method in result.methods])
        metrics = _by_name("metric", [metric for result in results for metric in result.metrics])
        names = {"question": questions, "method": list(methods), "metric": list(metrics)}
        cells = np.full((len(texts), *map(len, names.values())), np.nan)
        failures: dict[Failure, None] = {}
        scores: dict[tuple[int, str, str], NDArray[np.float32]] = {}
        for result in results:
            rows = [list(texts).index(key) for key in result._by_digest()]
            columns = ([names[kind].index(name) for name in some] for kind, some in result.names.items())
            indices = np.ix_(rows, *columns)
            result._check_same(cells[indices])
            cells[indices] = np.where(np.isnan(result.cells), cells[indices], result.cells)
            failures |= dict.fromkeys(replace(f, text=rows[f.text]) for f in result.failures)
            scores |= {(rows[i], q, m): found for (i, q, m), found in result.scores.items()}
        return replace(
            results[0],
            texts=tuple(texts.values()),
            questions=tuple(questions),
            methods=tuple(methods.values()),
            metrics=tuple(metrics.values()),
            cells=cells,
            failures=tuple(failures),
            left_out={name: why for result in results for name, why in result.left_out.items()},
            notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
            scores=scores,
        )

    def _by_digest(self) -> dict[tuple[str, int], StudyText]:
        """Return the texts by digest and a counter for texts with equal digests."""
        seen: Counter[str] = Counter()
        found = {}
        for text in self.texts:
            found[text.digest, seen[text.digest]] = text
            seen[text.digest] += 1
        return found

    def _check_same(self, others: NDArray[np.float64]) -> None:
        """Check that numbers in both results are equal."""
        twice = ~np.isnan(others) & ~np.isnan(self.cells) & (others != self.cells)
        if twice.any():
            text, question, method, metric = (int(indices[0]) for indices in np.nonzero(twice))
            raise ValueError(
                f"two results have different numbers for {self.metrics[metric].name!r} of "
                f"{self.methods[method].name!r} for {self.questions[question]!r} of text {self.texts[text].text!r}; "
                "select other texts, methods or metrics of one of them"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file atomically, with the rows of :meth:`values`, and everything else as its metadata.

        The scores of tokens are not written; they are in the study's journal.

        Raises:
            ImportError: pyarrow is missing.
            OSError: the file cannot be written; an existing file is left unchanged.
        """
        arrow, parquet = load_pyarrow("a saved study", "compare")
        indices = np.nonzero(~np.isnan(self.cells))
        codes = [arrow.array(numbers, arrow.int32()) for numbers in indices]
        columns = {
            kind: arrow.DictionaryArray.from_arrays(numbers, names or [""])
            for (kind, names), numbers in zip(self.names.items(), codes[1:], strict=True)
        }
        table = arrow.table({"text": codes[0], **columns, "value": self.cells[indices]})
        header = {
            "format": FORMAT,
            "questions": self.questions,
            "settings": dict(self.settings),
            "left_out": dict(self.left_out),
            "notes": self.notes,
            **{name: [vars(item) for item in getattr(self, name)] for name in _PARTS},
        }
        blank = blank_seal()
        header["seal"] = blank
        sink = arrow.BufferOutputStream()
        with parquet.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_KEY: json.dumps(header)})
        replace_file(path, sealed(sink.getvalue().to_pybytes(), blank))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StudyResult:
        """Read a file that :meth:`save` wrote.

        Raises:
            ImportError: pyarrow is missing.
            OSError: there is no such file.
            ValueError: the file holds something else, is damaged, or comes from a newer version.

        Examples::
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     example().save(folder + "/study.parquet")
            ...     StudyResult.load(folder + "/study.parquet") == example()
            True
        """
        arrow, _ = load_pyarrow("a saved study", "compare")
        # read these columns as dictionaries, because each name occurs in many rows
        content, header = open_sealed(
            path, _KEY, FORMAT, "StudyResult", "run the study again", read_dictionary=list(_COLUMNS)
        )
        try:
            return cls(**_fields(header, content.read()))
        except (arrow.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(foreign(os.fspath(path), "StudyResult")) from error

    # -- reports

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of the report, one for each question: methods as rows, metrics as columns, with notes.

        Raises:
            ImportError: scipy is missing.

        Examples::
            >>> [table] = example().tables()
            >>> table.title, list(table.groups), table.rows[0].name, table.rows[0].cells[0].value
            ('class', ['unsigned methods', 'signed methods'], 'by hand', 0.75)
        """
        return tables.tables(self)

    def to_dict(self) -> dict[str, Any]:
        """Convert the tables and settings to plain values for strict JSON; numbers that are not finite are None."""
        found: dict[str, Any] = plain(
            {
                "settings": dict(self.settings),
                "texts": len(self.texts),
                "tables": tables.plain(self),
                "failures": [asdict(failure) for failure in self.failures],
                "left_out": dict(self.left_out),
                "notes": list(self.notes),
            }
        )
        return found

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return markdown(tables.report(self))

    def to_html(
        self,
        path: str | os.PathLike[str],
        quality: str | None = None,
        title: str = "Attribution methods compared",
    ) -> Path:
        """Write a page with the tables, and figures of quality against seconds; return its path.

        Args:
            path: path of the file.
            quality: the metric of the figures; None: the first metric of each question.
            title: title of the page.
        """
        replace_file(path, html.page(tables.report(self, quality, title)).encode())
        return Path(path)

    def write_report(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write result.parquet, report.md, report.html and a figure of quality against seconds for each question.

        Args:
            folder: an existing folder.

        Returns:
            the paths of the files.
        """
        folder = Path(folder)
        self.save(folder / "result.parquet")
        replace_file(folder / "report.md", self.to_markdown().encode())
        self.to_html(folder / "report.html")
        written = [folder / name for name in ("result.parquet", "report.md", "report.html")]
        for table in self.tables():
            points = self.front(table.columns[0].name, table.title) if table.columns else ()
            if any(map(figures.can_be_drawn, points)):
                name = re.sub(r"[^\w.-]+", "-", table.title)
                path = folder / ("front.png" if len(self.questions) == 1 else f"front-{name}.png")
                content = io.BytesIO()
                self.plot("front", question=table.title).savefig(content, format="png", dpi=DPI)
                replace_file(path, content.getvalue())
                written.append(path)
        return written

    def plot(
        self, kind: Literal["front", "bars"] = "front", metric: str | None = None, question: str | None = None
    ) -> Figure:
        """Draw a Matplotlib figure: quality against seconds, or one metric of all methods.

        Args:
            kind: "front" (quality against seconds) or "bars" (one metric).
            metric: name of the metric; None: the first one of the question.
            question: name of the question; None: the first one.

        Raises:
            ValueError: the kind or question is unknown, or the metric has no number for the question.
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
            return figures.draw_metric(table, metric)
        better = bool(table.columns[names.index(metric)].higher_is_better)
        return figures.draw_points(Points(table.title, metric, better, self.front(metric, table.title)))

    def show(self, console: Console | None = None) -> None:
        """Print the tables to a console, by default on stdout."""
        terminal.show(tables.report(self), console)


def _frame(values: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
    frame: pd.DataFrame = load("pandas", "a table of a study", "compare").DataFrame(values, columns=columns)
    return frame


Named = TypeVar("Named", MethodInfo, StudyColumn)


def _by_name(kind: str, parts: Iterable[Named]) -> dict[str, Named]:
    """Return methods or metrics by name; check that no name stands for two different ones."""
    found: dict[str, Named] = {}
    for part in parts:
        if (before := found.setdefault(part.name, part)) != part:
            raise ValueError(
                f"{kind} {part.name!r} is {before!r} in one result and {part!r} in another; rename one of them"
            )
    return found


def _fields(header: Mapping[str, Any], table: Any) -> dict[str, Any]:
    """Read the fields of a result from the header and the table of its file."""
    found: dict[str, Any] = {
        part: tuple(kind(**{field.name: item[field.name] for field in fields(kind)}) for item in header[part])
        for part, kind in _PARTS.items()
    }
    found["questions"] = tuple(header["questions"])
    names = (
        header["questions"],
        [method.name for method in found["methods"]],
        [metric.name for metric in found["metrics"]],
    )
    indices = [table["text"].to_numpy()]
    for column, known in zip(_COLUMNS, names, strict=True):
        numbers = {name: index for index, name in enumerate(known)}
        encoded = table[column].combine_chunks().dictionary_encode()
        codes = np.array([numbers[name] for name in encoded.dictionary.to_pylist()], np.int64)
        indices.append(codes[encoded.indices.to_numpy()])
    if math.prod([len(found["texts"]), *map(len, names)]) > LARGEST + SPARSEST * table.num_rows:
        raise ValueError("the header names far more results than the file has")
    cells = np.full((len(found["texts"]), *map(len, names)), np.nan)
    cells[tuple(indices)] = table["value"].to_numpy()
    found |= {name: header[name] for name in ("settings", "left_out")}
    return {**found, "cells": cells, "notes": tuple(header.get("notes", ()))}


def example() -> StudyResult:
    """Return a small result with made-up numbers: four texts, three methods, one metric and the costs.

    Examples::
        >>> example().texts[0].target
        'positive'
    """
    cells = np.zeros((4, 1, 3, 1 + len(COSTS)))
    cells[:, 0, :, 0] = [[1.0, 0.5, 0.5], [0.5, 0.25, 0.5], [1.0, 0.0, 0.5], [0.5, np.nan, 0.5]]
    cells[:, 0, :, 1] = [2.0, 0.5, 1.0]
    cells[3, 0, 1, 1:] = np.nan
    texts = ("a good film", "a bold one", "what fun", "so charming")
    return StudyResult(
        texts=tuple(
            StudyText(text, None, 2 + len(text.split()), "positive", "positive", str(i))
            for i, text in enumerate(texts)
        ),
        questions=("class",),
        methods=(
            MethodInfo("by hand", False, "made up"),
            MethodInfo("random", False, "made up"),
            MethodInfo("with signs", True, "made up"),
        ),
        metrics=(StudyColumn("recall", True, "made up"), *COSTS),
        cells=cells,
        settings={
            "model": "made up", "special tokens": False, "calibration": None, "target": "predicted", "seed": 0
        },
        failures=(Failure(3, "class", "random", "", "ValueError: made up"),),
    )  # fmt: skip
