"""Explanation: how much each state of a model keeps of each token of some texts."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from interp_plugin import files
from interp_plugin.files import replace_file
from interp_plugin.optional import load
from interp_plugin.report import explanations
from interp_plugin.text import storage
from interp_plugin.text.rows import (
    COLUMNS,
    ERASED_COLUMNS,
    ErasedRow,
    Layer,
    Record,
    Row,
    TextExplanation,
    plain,
    table_lines,
    text_dict,
)
from interp_plugin.text.scores import Aggregate, Granularity, Kind, Scores, listed

if TYPE_CHECKING:
    import pandas as pd
    from captum.attr._utils.visualization import VisualizationDataRecord
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["ErasedRow", "Explanation", "Row", "Scores", "Settings", "TextExplanation", "example"]

DPI = 200  # resolution of pictures
_OTHER_FORMATS = (".html", ".json", ".jsonl", ".pickle", ".pkl", ".png", ".svg", ".tsv", ".xls", ".xlsx")
Choice = Layer | tuple[Layer, int]  # a layer, or one of its positions


def check_picture(path: Path) -> None:
    """Raise a ValueError if the name of a picture has the extension of another format."""
    if path.suffix.lower() not in ("", ".png"):
        raise ValueError(
            f"{str(path)!r} ends in {path.suffix}, and a PNG file would be written there; give a name in .png, or save "
            "the figure that plot() returns"
        )


@dataclass(frozen=True)
class Settings:
    """Everything that the numbers of an explanation depend on.

    Attributes:
        model: name of the model.
        noise_layer: name of the module whose output receives the noise.
        rate: weight of entropy against distortion, lambda.
        seed, tolerance, draws, iterations: settings of the solver.
        state_std: whether states are normalised by their standard deviations over a corpus; false: by the root mean
            square of each text's state.
        versions: versions of the packages used.
        calibration: digest of these standard deviations.
        part: the part of the states that was explained; None: all of them.
        amortised: digest of the head that predicted the numbers; None: the solver computed them.
        max_passes: setting of the solver.
        erased: how tokens were erased (side, ways, passes); None: noise was learned.
        function: function of the target's scores, if one was given.
        states: definition of a layer's state if it is not the block's output: "what the next block reads".

    Example::

        >>> Settings("bert", "embeddings", 0.1, 0, 0.02, 28, None, False, {"torch": "2.13.0"}).rate
        0.1
    """

    model: str
    noise_layer: str
    rate: float
    seed: int
    tolerance: float
    draws: int
    iterations: int | None
    state_std: bool
    versions: Mapping[str, str]
    calibration: str | None = None
    part: str | None = None
    amortised: str | None = None
    max_passes: int | None = None
    erased: str | None = None
    function: str | None = None
    states: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Record, Sequence[TextExplanation]):
    """A sequence of TextExplanation: results for texts x states x tokens, with diagnostics and settings.

    Indexing: ``explanation[0]`` is a text, ``explanation[1:3]`` an Explanation of two of them (with its share
    of the seconds), ``explanation[0, "output"]`` the row of a text and layer, or a tuple of rows if the
    layer was explained at several positions.

    Attributes:
        items: one TextExplanation for each text.
        settings: settings common to all texts.
        seconds: wall time of the computation.

    Example::

        >>> explanation = example()
        >>> explanation
        Explanation(2 texts, layers 1, 'output', model 'made up')
        >>> explanation[1].text, explanation[0, "output"].regime_index, len(explanation[1:])
        ('good', 1.5, 1)
        >>> explanation[0, 7]
        Traceback (most recent call last):
            ...
        KeyError: "layer 7 was not explained: choose from 1, 'output'"
    """

    items: tuple[TextExplanation, ...]
    settings: Settings
    seconds: float

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TextExplanation]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> TextExplanation: ...
    @overload
    def __getitem__(self, index: slice) -> Explanation: ...
    @overload
    def __getitem__(self, index: tuple[int, Layer]) -> Row | tuple[Row, ...]: ...

    def __getitem__(
        self, index: int | slice | tuple[int, Layer]
    ) -> TextExplanation | Explanation | Row | tuple[Row, ...]:
        if isinstance(index, tuple):
            if len(index) != 2:
                raise TypeError(f"index {index!r} has {len(index)} parts: give a text's number and a layer")
            rows = self[index[0]].rows_of(index[1])
            return rows[0] if len(rows) == 1 else rows
        if isinstance(index, slice):
            items = self.items[index]
            return replace(self, items=items, seconds=self.seconds * len(items) / max(len(self), 1))
        if isinstance(index, str):
            raise TypeError(f"index {index!r} is a str: give a text's number, counted from 0")
        try:
            return self.items[operator.index(index)]
        except IndexError:
            raise IndexError(
                f"text {index} does not exist: the explanation has {len(self)}, counted from 0"
            ) from None

    def __repr__(self) -> str:
        layers = dict.fromkeys(layer for item in self.items for layer in item.layers)
        texts = f"{len(self)} text{'s' if len(self) != 1 else ''}"
        return f"Explanation({texts}, layers {listed(layers)}, model {self.settings.model!r})"

    def scores(
        self, kind: Kind | None = None, granularity: Granularity = "token", aggregate: Aggregate = "sum"
    ) -> tuple[Scores, ...]:
        """Return `TextExplanation.scores` of every text.

        Example::

            >>> [scores.values.shape for scores in example().scores("loss", "sentence")]
            [torch.Size([2, 3]), torch.Size([2, 3])]
        """
        return tuple(item.scores(kind, granularity, aggregate) for item in self.items)

    @staticmethod
    def merge(*explanations: Explanation) -> Explanation:
        """Join several explanations: texts in order, seconds added.

        If versions of packages differ, all of them are listed.

        Raises:
            TypeError: an argument is not an Explanation, for instance a list of them.
            ValueError: no arguments, or different settings, so that the numbers are not comparable.

        Example::

            >>> explanation = example()
            >>> Explanation.merge(explanation[:1], explanation[1:]) == explanation
            True
        """
        if not explanations:
            raise ValueError("there is nothing to merge: give at least one Explanation")
        for each in explanations:
            if not isinstance(each, Explanation):
                raise TypeError(f"merge is given a {type(each).__name__}; give explanations, merge(*several)")
        return Explanation(
            items=tuple(item for explanation in explanations for item in explanation),
            settings=_merged([explanation.settings for explanation in explanations]),
            seconds=sum(explanation.seconds for explanation in explanations),
        )

    def to_dict(self, granularity: Granularity = "token", aggregate: Aggregate = "sum") -> dict[str, Any]:
        """Convert to lists, strings and numbers, ready for strict JSON; numbers that are not finite become None.

        Scores are (U,) lists in each row, aggregated as in `TextExplanation.scores`. ``standard_error`` is that of
        kept and ``loss_standard_error`` that of loss, in nats; ``tied`` says which units are tied in kept with the
        next one in rank (see `Scores`). ``total`` is the information kept of the whole text, and
        ``total_standard_error`` its error, as the errors of the units are correlated. If tokens were erased, rows have
        ``erased``, its ``standard_error`` and ``damage`` instead.

        Example::

            >>> values = example().to_dict("word")
            >>> values["texts"][0]["units"], values["texts"][0]["rows"][0]["tied"]
            (['[CLS]', 'a', 'film', '[SEP]'], [True, False, False, False])
        """
        return {
            "settings": plain(_settings_dict(self.settings)),
            "seconds": plain(self.seconds),
            "granularity": granularity,
            "aggregate": aggregate,
            "texts": [text_dict(item, granularity, aggregate) for item in self.items],
        }

    def to_pandas(self, granularity: Granularity = "token", aggregate: Aggregate = "sum") -> pd.DataFrame:
        """Return a table with one line for each text, row and unit; kept, loss and their standard errors are in nats.

        ``standard_error`` is that of kept. ``max_sigma`` to ``rate`` belong to the row, ``predicted`` and ``target``
        to the text; they are repeated for each unit.

        Raises:
            ImportError: pandas is missing.
            ValueError: an unknown granularity.

        Example::

            >>> table = example().to_pandas("word")
            >>> table.groupby("layer")["kept"].sum().round().tolist()
            [47.0, 25.0]
        """
        pd = load("pandas", "to_pandas", "table")
        lines = [
            line
            for number, item in enumerate(self.items)
            for line in table_lines(number, item, granularity, aggregate)
        ]
        columns = COLUMNS if self.settings.erased is None else ERASED_COLUMNS
        table = pd.DataFrame.from_records(lines, columns=columns)
        return table.astype(dict.fromkeys(("segment", "start", "end", "position"), "Int64"))

    def save(
        self,
        path: str | os.PathLike[str],
        granularity: Granularity = "token",
        aggregate: Aggregate = "sum",
    ) -> None:
        """Write a Parquet file, atomically: one line for each row, with ``sigma`` and its error as lists.

        For a name that ends in .csv, write the table of `to_pandas` with this granularity and aggregate, which `load`
        cannot read.

        Raises:
            ImportError: pyarrow, or pandas for .csv, is missing.
            ValueError: the name has the ending of another format.
            OSError: the file cannot be written; an existing file is left unchanged.

        Example::

            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     example().save(f"{folder}/a.parquet")
            ...     Explanation.load(f"{folder}/a.parquet") == example()
            True
        """
        suffix = Path(path).suffix
        if suffix in _OTHER_FORMATS:
            raise ValueError(
                f"{os.fspath(path)!r} ends in {suffix}, and a Parquet file would be written there; give a name in "
                ".parquet (for Explanation.load) or .csv, or use to_html, to_dict or save_pictures"
            )
        if suffix == ".csv":
            replace_file(path, self.to_pandas(granularity, aggregate).to_csv(index=False).encode())
            return
        storage.write(path, self.items, {"settings": _settings_dict(self.settings), "seconds": self.seconds})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read a file that `save` wrote; the result is bit-for-bit equal to what was saved.

        Raises:
            ImportError: pyarrow is missing.
            OSError: there is no such file.
            ValueError: the file is not an Explanation, is damaged, or was written by another version.

        Example: see `save`.
        """
        items, header = storage.read(path)
        try:
            return cls(items, Settings(**header["settings"]), header["seconds"])
        except (KeyError, TypeError) as error:
            raise ValueError(files.foreign(os.fspath(path), "Explanation")) from error

    def show(
        self,
        console: Console | None = None,
        granularity: Granularity = "token",
        aggregate: Aggregate = "mean",
        details: bool = True,
    ) -> None:
        """Print the prediction, the shaded text and a table of units x layers (console: default stdout).

        With ``details``, also print standard errors, settings, how to read the numbers, and the cost.

        Units of several tokens show the mean over their tokens, because with the sum the words of most tokens would
        look most important; ``aggregate`` may be "sum" or "max" instead (see `TextExplanation.scores`).

        Example::

            >>> from rich.console import Console
            >>> example().show(Console(quiet=True))
        """
        load("rich", "show", "cli")
        from interp_plugin.report import terminal

        terminal.show(explanations.report(self.to_dict(granularity, aggregate)), console, details)

    @overload
    def to_html(
        self, path: None = None, granularity: Granularity = "token", aggregate: Aggregate = "mean"
    ) -> str: ...
    @overload
    def to_html(
        self, path: str | os.PathLike[str], granularity: Granularity = "token", aggregate: Aggregate = "mean"
    ) -> Path: ...

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        granularity: Granularity = "token",
        aggregate: Aggregate = "mean",
    ) -> str | Path:
        """Return an HTML page as a string, or write it to a file (UTF-8) and return the path.

        ``aggregate``: as in `show`.

        Raises:
            OSError: the file cannot be written; an existing file is left unchanged.

        Example::

            >>> "<html" in example().to_html()
            True
        """
        from interp_plugin.report import html

        page = html.page(explanations.report(self.to_dict(granularity, aggregate)))
        if path is None:
            return page
        replace_file(path, page.encode())
        return Path(path)

    def _repr_html_(self) -> str:
        from interp_plugin.report import html

        return html.frame(explanations.report(self.to_dict(aggregate="mean")))

    def plot(
        self,
        kind: Literal["layers", "tokens", "flow"] = "layers",
        text: int | None = None,
        layer: Choice | None = None,
        granularity: Granularity = "token",
        aggregate: Aggregate = "mean",
    ) -> Figure:
        """Draw a text, or all texts (None), as a Matplotlib figure; `report.figures.plot` describes the kinds.

        ``layer`` is a label, or a pair (label, position); ``aggregate`` is as in `show`.

        Example::

            >>> len(example().plot("tokens", layer=1).axes[0].patches)
            4
        """
        from interp_plugin.report import figures

        return figures.plot(self.to_dict(granularity, aggregate), kind, text=text, layer=layer)

    def save_pictures(
        self,
        path: str | os.PathLike[str],
        granularity: Granularity = "token",
        aggregate: Aggregate = "mean",
    ) -> list[Path]:
        """Write `plot` of each text to a PNG file; several files are numbered: film-1.png, film-2.png.

        Returns:
            The paths, in the order of the texts.

        Raises:
            ValueError: the name has the extension of another format.

        Example::

            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     [path.name for path in example().save_pictures(f"{folder}/film.png")]
            ['film-1.png', 'film-2.png']
        """
        path, width = Path(path), len(str(len(self)))
        check_picture(path)
        several = [path.with_stem(f"{path.stem}-{number:0{width}}") for number in range(1, len(self) + 1)]
        paths = several if len(self) > 1 else [path]
        for text, each in enumerate(paths):
            content = io.BytesIO()
            figure = self.plot("layers", text=text, granularity=granularity, aggregate=aggregate)
            figure.savefig(content, format="png", dpi=DPI)
            replace_file(each, content.getvalue())
        return paths

    def to_captum(
        self,
        layer: Choice | None = None,
        granularity: Granularity = "token",
        aggregate: Aggregate = "mean",
    ) -> list[VisualizationDataRecord]:
        """Return a record of Captum's ``visualize_text`` for each text, at one layer (default: each text's last row).

        ``layer`` is a label, or a pair (label, position), and ``aggregate`` as in `show`; see
        `report.explanations.captum_records`.

        Example::

            >>> [record.raw_input_ids for record in example().to_captum(1, "word")]
            [['[CLS]', 'a', 'film', '[SEP]'], ['[CLS]', 'good', '[SEP]']]
        """
        return explanations.captum_records(self.to_dict(granularity, aggregate), layer)


def example() -> Explanation:
    """Return a small explanation with made-up numbers: two texts, a layer and the output.

    Example::

        >>> example()[0].tokens
        ('[CLS]', 'a', 'film', '[SEP]')
    """

    def text(words: str, sigma: tuple[float, ...], probability: float) -> TextExplanation:
        tokens, offsets, end = ["[CLS]"], [], -1
        for word in words.split():
            offsets.append((0, end + 1, end + 1 + len(word)))
            tokens.append(word)
            end += 1 + len(word)
        noise = torch.tensor([10.0, *sigma, 10.0])
        below = noise < 10.0
        more = torch.where(below, noise.sqrt(), noise)
        rows = (
            Row(1, None, noise, 0.02 * below, 0.01, 10.0, 1.0, 1.02, 0.049, True, 144, 160),
            Row("output", None, more, 0.03 * below, 0.015, 10.0, 1.0, 1.5, 0.033, False, 168, 160),
        )
        return TextExplanation(
            words,
            None,
            (*tokens, "[SEP]"),
            (None, *offsets, None),
            8,
            "positive",
            probability,
            "positive",
            rows,
        )

    settings = Settings("made up", "embeddings", 0.1, 0, 0.02, 28, None, False, {})
    return Explanation((text("a film", (0.4, 0.15), 0.75), text("good", (0.05,), 0.5)), settings, 0.5)


def _merged(settings: Sequence[Settings]) -> Settings:
    """Return the common settings, with the versions of all; raise an error if the settings differ."""
    first, *others = settings
    for field in fields(Settings):
        for other in others:
            here, there = getattr(first, field.name), getattr(other, field.name)
            if field.name != "versions" and here != there:
                raise ValueError(
                    f"{field.name} is {here!r} in one explanation and {there!r} in another, so their numbers are "
                    "not comparable: merge only explanations with the same settings"
                )
    versions: dict[str, dict[str, None]] = {}  # package -> its versions, in order, without repeats
    for each in settings:
        for package, version in each.versions.items():
            versions.setdefault(package, {}).update(dict.fromkeys(version.split(", ")))
    return replace(first, versions={package: ", ".join(found) for package, found in versions.items()})


def _settings_dict(settings: Settings) -> dict[str, Any]:
    return {**vars(settings), "versions": dict(settings.versions)}
