"""Page: an explanation as one HTML file that needs nothing else, and runs nothing but its own script."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp_plugin.rendering import labels, rows, sentence, templates
from interp_plugin.rendering.labels import printable
from interp_plugin.rendering.templates import SHADES

_PAPER = 12  # columns that fit on an upright page


def to_html(explanation: Mapping[str, Any], title: str | None = None) -> str:
    """One self-contained page: per text the shaded sentence and a map of layers x units, then the settings.

    The first layer is at the top of the map.  Without JavaScript every value and standard error is readable;
    with it each cell also tells loss and sigma, arrow keys move between cells, and a slider chooses the layer
    that shades the sentence.  The page's own policy forbids it to load anything.

    Args:
        explanation: what ``Explanation.to_dict()`` gives: texts of T units and R rows; kept, loss and
            standard_error (R, T) in nats, sigma and its error (R, T) in units of the noise layer's output.
        title: heading of the page; default the text, or how many there are.

    Example::

        >>> row = {"layer": 1, "position": None, "sigma": [0.5], "loss": [7.26], "kept": [6.93],
        ...        "standard_error": [0.2], "sigma_standard_error": [0.01], "regime_index": 1.02,
        ...        "converged": True, "n_forward": 64, "n_backward": 32}
        >>> text = {"text": "a < b", "pair": None, "predicted": None, "probability": None, "target": None,
        ...         "units": ["<"], "offsets": [[0, 2, 3]], "rows": [row]}
        >>> settings = {"rate": 0.1, "seed": 0, "state_std": True, "versions": {}}
        >>> page = to_html({"texts": [text], "settings": settings, "seconds": 0.5})
        >>> "<bdi>&lt;</bdi>" in page and "6.930 <small>±0.200</small>" in page
        True
    """
    script = templates.source("page.js")
    settings = dict(explanation["settings"])
    versions = settings.pop("versions", {})
    return templates.template("page.html").render(
        title=printable(_title(explanation) if title is None else title),
        style=templates.source("page.css") + templates.shade_rules(),
        script=script,
        digest=templates.digest(script),
        texts=[_Text.of(text, explanation) for text in explanation["texts"]],
        unit=labels.unit_name(explanation),
        legend=labels.legend(explanation),
        yardstick=labels.yardstick(explanation),
        erased=labels.is_erased(explanation),
        swatches=[
            templates.shade_class(step / SHADES)
            for step in range(-SHADES if labels.is_erased(explanation) else 0, SHADES + 1, 4)
        ],
        settings=list(settings_shown(settings)),
        versions=list(settings_shown(versions)),
        cost=labels.cost(explanation),
    )


def notebook_html(explanation: Mapping[str, Any]) -> str:
    """The page in a frame of its own, for ``_repr_html_``: its style and script do not meet the notebook's.

    Example::

        >>> frame = notebook_html({"texts": [], "settings": {"state_std": True}, "seconds": 0.0})
        >>> frame.startswith("<iframe ") and frame.endswith("></iframe>")
        True
    """
    # legend and details, then per text its heading, some lines of sentence, and a line per row of the map
    height = 330 + sum(260 + 40 * len(text["rows"]) for text in explanation["texts"])
    return (
        f'<iframe title="{html.escape(printable(_title(explanation)))}" sandbox="allow-scripts" '
        f'style="width: 100%; height: {min(height, 900)}px; border: 0; resize: vertical" '
        f'srcdoc="{html.escape(to_html(explanation))}"></iframe>'
    )


@dataclass(frozen=True)
class _Cell:
    value: str  # nats
    error: str
    shade: str  # its class
    tied: bool


@dataclass(frozen=True)
class _Row:
    label: str
    fact: str  # E, or the damage of erasures
    converged: bool | None  # None: there is nothing to converge
    rate: str | None  # where it is smaller than the one asked for
    cells: list[_Cell]  # (T,)

    @classmethod
    def of(cls, row: rows.Row, explanation: Mapping[str, Any]) -> _Row:
        classes = map(templates.shade_class, labels.shares(row))
        pairs = labels.rounded(labels.values(row), row["standard_error"])
        columns = zip(pairs, classes, labels.tied(row), strict=True)
        cells = [_Cell(value, error, shade, tied) for (value, error), shade, tied in columns]
        erased, rate = "erased" in row, labels.rate(row, explanation)
        fact = (
            f"damage {labels.number(row['damage'], 2)}"
            if erased
            else f"E {labels.number(row['regime_index'], 2)}"
        )
        return cls(labels.row_label(row), fact, None if erased else row["converged"], rate, cells)


@dataclass(frozen=True)
class _Piece:
    lines: list[str]
    unit: int | None
    special: bool

    @classmethod
    def of(cls, piece: sentence.Piece) -> _Piece:
        # a line break between units is layout, one inside a unit is data
        parts = [piece.text] if piece.unit is not None else re.split(r"\r\n|\r|\n", piece.text)
        return cls([printable(part) for part in parts], piece.unit, piece.special)


@dataclass(frozen=True)
class _Text:
    words: str  # the text and its pair, for headings
    facts: list[tuple[str, str]]
    units: list[str]  # (T,)
    rows: list[_Row]  # (R,)
    sentence: list[list[_Piece]]
    numbers: dict[str, list[list[float | None]]]  # what only the script shows, (R, T) each
    turned: bool  # units run down the printed page, because across it they do not fit

    @classmethod
    def of(cls, text: Mapping[str, Any], explanation: Mapping[str, Any]) -> _Text:
        n_units, n_rows = len(text["units"]), len(text["rows"])
        nothing = [None] * n_units
        return cls(
            _words(text),
            labels.prediction(text),
            [printable(unit) for unit in text["units"]],
            [_Row.of(row, explanation) for row in text["rows"]],
            [[_Piece.of(piece) for piece in line] for line in sentence.lines(text)],
            {
                "loss": [_short(row.get("loss", nothing)) for row in text["rows"]],
                "sigma": [_short(row.get("sigma", nothing)) for row in text["rows"]],
                "sigmaError": [_short(row.get("sigma_standard_error", nothing), 2) for row in text["rows"]],
            },
            n_units > max(_PAPER, n_rows),
        )

    @property
    def columns(self) -> int:
        """Columns of the printed map, the names' one included."""
        return 1 + (len(self.rows) if self.turned else len(self.units))


def _title(explanation: Mapping[str, Any]) -> str:
    texts = explanation["texts"]
    what = "Lost when erased" if labels.is_erased(explanation) else "Information kept"
    return f"{what}: {_words(texts[0]) if len(texts) == 1 else f'{len(texts)} texts'}"


def _words(text: Mapping[str, Any], longest: int = 120) -> str:
    words = printable(text["text"] if text["pair"] is None else f"{text['text']} | {text['pair']}")
    return words if len(words) <= longest else words[: longest - 1] + "…"


def settings_shown(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        yield printable(str(name).replace("_", " ")), "-" if value is None else printable(str(value))


def _short(values: Sequence[float | None], digits: int = 4) -> list[float | None]:
    """Significant digits that a reader needs, so that many numbers stay small."""
    return [
        None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
        for value in values
    ]
