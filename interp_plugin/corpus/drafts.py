"""Drafts: the files of a part, made where its texts are scored and written where its folder is."""

from __future__ import annotations

import hashlib
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.scorer import Scored
from interp_plugin.corpus.stream import Failure, Item
from interp_plugin.text.explanation import Row, TextExplanation
from interp_plugin.text.scores import Unit, group
from interp_plugin.text.storage import FLOATS, fit_columns, load_pyarrow, parquet_bytes, text_columns

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 2**15  # lines of a row group, about: what a reader holds at a time
FORMAT = 2  # raise it when a reader of the old format would go wrong
KEY = b"interp_plugin_corpus"  # of the files' metadata
SOLVED = ("solved_sigma", "solved_error")
"""Columns of a part whose numbers were predicted: what the solver says of the texts that it checked."""


@dataclass(frozen=True)
class About:
    """What a part says of itself.

    Attributes:
        window: its number, from 0.
        first_row, rows: the rows of the corpus that it is of, and how many.
        last: whether the corpus ends with it.
        digest: of the texts.
        ids: of the first text's tokens: another tokenizer gives others.
        texts, failures: how many rows have numbers, and how many have none.
        settings: what its numbers depend on.
        seconds: that scoring it took.
        errors: the name of the file with the failures; None: there are none.
    """

    window: int
    first_row: int
    rows: int
    last: bool
    digest: str
    ids: str
    texts: int
    failures: int
    settings: Mapping[str, Any]
    seconds: float
    errors: str | None = None


@dataclass(frozen=True)
class Draft:
    """The files of a part that are on no disk yet.

    Attributes:
        about: what the part says of itself.
        files: content by name, in the order to write them: failures first, for without the part they count for
            nothing.  A name holds the window and a digest of the content.
    """

    about: About
    files: Mapping[str, bytes]


def draft(about: About, scored: Sequence[Scored], failures: Sequence[Failure]) -> Draft:
    """The part of a window, and the file of its failures where there are any."""
    arrow, _ = load_pyarrow("a corpus study")
    files: dict[str, bytes] = {}
    if failures:
        listed = [asdict(failure) for failure in failures]
        content = _encoded(arrow.Table.from_pylist(listed, schema=_error_schema(arrow)), {})
        about = replace(about, errors=_name("errors", about.window, content))
        files[str(about.errors)] = content
    rows = [line for text in scored for line in _lines(text)]
    each = len(scored[0].rates) if scored else 1
    content = _encoded(
        arrow.Table.from_pylist(rows, schema=_schema(arrow, about.settings.get("amortised") is not None)),
        {**asdict(about), "lines": len(rows)},
        max(1, GROUP // each) * each,  # of whole texts
    )
    files[_name("part", about.window, content)] = content
    return Draft(about, files)


def digest_of(chunks: Iterator[bytes]) -> str:
    """What a file's name holds of its content."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _name(kind: str, window: int, content: bytes) -> str:
    return f"{kind}-{window:08}-{digest_of(iter([content]))}.parquet"


def _encoded(table: pa.Table, header: Mapping[str, Any], group_size: int = GROUP) -> bytes:
    """The bytes of a Parquet file."""
    dictionaries = ["layer", "words.list.element", "tokens.list.element"]
    content: bytes = parquet_bytes(
        table, KEY, {"format": FORMAT, **header}, group_size, use_dictionary=dictionaries
    ).to_pybytes()
    return content


def _lines(scored: Scored) -> Iterator[dict[str, Any]]:
    """A line for each row of a text."""
    text = scored.found
    units = [unit for unit in _words(text) if unit.offset is not None]
    word_of: list[int | None] = [None] * len(text.tokens)
    for number, unit in enumerate(units):
        for token in unit.tokens:
            word_of[token] = number
    shared = {
        "row": scored.item.row,
        "text": text.text,
        "pair": text.pair,
        "tokens": text.tokens,
        "offsets": text.offsets,
        "size": text.size,
        "predicted": text.predicted,
        "probability": text.probability,
        "target": text.target,
        "words": [unit.name for unit in units],
        "word_of": word_of,
        "tags": _tags(scored.item, units),
    }
    checks = (None,) * len(text.rows) if scored.solved is None else scored.solved.rows
    for row, rate, check in zip(text.rows, scored.rates, checks):
        arrays = {name: getattr(row, name).numpy() for name in FLOATS}
        if check is not None:
            arrays |= {name: getattr(check, of).numpy() for name, of in zip(SOLVED, FLOATS)}
        yield {**shared, **vars(row), **arrays, "layer": str(row.layer), "rate": _known_rate(row, rate)}


def _known_rate(row: Row, asked: float) -> float:
    """Lambda at which a row was solved; a predicted row has the one its head was made for."""
    return asked if math.isnan(row.rate) else row.rate


def _words(text: TextExplanation) -> tuple[Unit, ...]:
    return group((text.text, text.pair), text.tokens, text.offsets, "word")


def _tags(item: Item, units: Sequence[Unit]) -> list[str] | None:
    """A tag for each word: that of what stands between the spaces around it, or of the whole text."""
    if item.tags is None or isinstance(item.tags, str):
        return None if item.tags is None else [item.tags] * len(units)
    ends = [chunk.end() for chunk in re.finditer(r"\S+", item.text)]
    places = [(unit.offset[0], bisect_right(ends, unit.offset[1])) for unit in units if unit.offset]
    return ["" if segment or place >= len(ends) else item.tags[place] for segment, place in places]


def _schema(arrow: ModuleType, predicted: bool) -> pa.Schema:
    floats = arrow.list_(arrow.float32())
    return arrow.schema(
        {
            "row": arrow.int64(),
            "layer": arrow.string(),
            **text_columns(arrow),
            "words": arrow.list_(arrow.string()),
            "word_of": arrow.list_(arrow.int32()),  # of each token; null for a special one
            "tags": arrow.list_(arrow.string()),  # of each word
            "position": arrow.int64(),
            **fit_columns(arrow),
            **(dict.fromkeys(SOLVED, floats) if predicted else {}),  # null where the solver did not check
        }
    )


def _error_schema(arrow: ModuleType) -> pa.Schema:
    return arrow.schema({"row": arrow.int64(), "reason": arrow.string(), "beginning": arrow.string()})
