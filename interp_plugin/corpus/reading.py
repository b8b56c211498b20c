"""Reads a corpus in windows of rows; each row becomes a text, or a failure with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from interp_plugin import data
from interp_plugin.data import TEXT_COLUMNS, Column, Wanted
from interp_plugin.text.models import shown

Tags = str | tuple[str, ...] | None
"""One tag for the whole text, or one for each word between spaces."""
Source = Iterable[str | bytes | tuple[str, str] | Mapping[str, Any] | data.Record]

BEGINNING = 80  # maximum number of characters of a failed text that are stored
REASON = 500  # and of the reason


@dataclass(frozen=True)
class Item:
    """A text to score.

    Attributes:
        row: its number in the corpus, from 0.
        text, pair: the text, and the second text of a pair.
        tags: of the text or its words.
    """

    row: int
    text: str
    pair: str | None = None
    tags: Tags = None


@dataclass(frozen=True)
class Failure:
    """A row without results.

    Attributes:
        row: its number in the corpus, from 0.
        reason: a sentence.
        beginning: the beginning of the row's content.
    """

    row: int
    reason: str
    beginning: str

    @classmethod
    def of(cls, row: int, error: Exception, given: object) -> Failure:
        """Create a failure from an exception."""
        reason = f"{type(error).__name__}: {error}"
        return cls(row, _writable(reason, REASON), _writable(_beginning(given), BEGINNING))


@dataclass(frozen=True)
class Window:
    """Consecutive rows of the corpus, the content of one part.

    Attributes:
        number: of the window, from 0.
        entries: a text or a failure for each row.
        last: whether the corpus ends with it.
    """

    number: int
    entries: tuple[Item | Failure, ...]
    last: bool

    @property
    def items(self) -> list[Item]:
        """The rows with a text."""
        return [entry for entry in self.entries if isinstance(entry, Item)]

    @property
    def failures(self) -> list[Failure]:
        """The rows without a text."""
        return [entry for entry in self.entries if isinstance(entry, Failure)]

    @property
    def digest(self) -> str:
        """A hash of the rows: row numbers, texts and tags; of failures only the row number."""
        return self.digest_of(len(self.entries))

    def digest_of(self, rows: int) -> str:
        """Return the digest of the first rows; ``rows`` is their number."""
        found = hashlib.sha256()
        for entry in self.entries[:rows]:
            held = [entry.text, entry.pair, entry.tags] if isinstance(entry, Item) else []
            found.update(json.dumps([entry.row, *held]).encode() + b"\n")
        return found.hexdigest()[:16]


@dataclass
class Reader:
    """Converts each row to a text or a failure.

    Attributes:
        text_column, pair_column, tag_column: columns of the text, second text and tags, for rows with columns.
            text_column None: a usual name, or the only column with words in most rows of the first window.

    Examples::
        >>> read = Reader(tag_column="genre")
        >>> row = {"sentence": "a good film", "genre": "review"}
        >>> read.find_columns([row])
        >>> read(0, row)
        Item(row=0, text='a good film', pair=None, tags='review')
        >>> read(1, " ").reason
        'ValueError: the text is empty'
    """

    text_column: Column | None = None
    pair_column: Column | None = None
    tag_column: Column | None = None

    @property
    def wanted(self) -> Wanted:
        """The columns to read."""
        others = (self.pair_column, self.tag_column)
        return Wanted(self.text_column, tuple(column for column in others if column is not None))

    def find_columns(self, rows: Iterable[object]) -> None:
        """Find the column of texts, if the rows have columns and it was not given.

        Raises:
            ValueError: no row has a given column, or all rows have columns and the column of texts is ambiguous.
        """
        found = [
            data.Record(f"row {number}", row) if isinstance(row, Mapping) else row
            for number, row in enumerate(rows)
        ]
        some = [row for row in found if isinstance(row, data.Record)]
        named = (self.text_column, self.pair_column, self.tag_column)
        try:
            self.text_column = data.columns(some, self.text_column, named[1:])
        except ValueError:
            if len(some) == len(found) or any(column is not None for column in named):
                raise
            # some rows are texts; each row with columns becomes a failure

    def __call__(self, row: int, given: object) -> Item | Failure:
        """Convert a row; a row of any content gives a text or a failure."""
        try:
            return self._item(row, given)
        except Exception as error:  # rows may be objects that raise any exception
            return Failure.of(row, error, given)

    def _item(self, row: int, given: object) -> Item:
        if isinstance(given, bytes):
            given = given.decode("utf-8")
        if isinstance(given, Mapping):
            given = data.Record(f"row {row}", given)
        if isinstance(given, data.Record):
            return self._of_record(row, given)
        parts = given if isinstance(given, tuple) and len(given) == 2 else (given,)
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"the text is {shown(repr(part))}, a {type(part).__name__}: it must be a str")
            if not part.strip():
                raise ValueError("the text is empty")
        return Item(row, *parts)

    def _of_record(self, row: int, record: data.Record) -> Item:
        found = record.text(
            TEXT_COLUMNS[0] if self.text_column is None else self.text_column, self.pair_column
        )
        text, pair = found if isinstance(found, tuple) else (found, None)
        return Item(row, text, pair, self._tags(record, text))

    def _tags(self, record: data.Record, text: str) -> Tags:
        tags = None if self.tag_column is None else record.value(self.tag_column)
        if tags is None or isinstance(tags, (str, int, float)):
            return None if tags is None else str(tags)
        words = len(text.split())
        if len(tags) != words:
            raise ValueError(
                f"{record.where} has {len(tags)} tags for {words} words; give one for each word between spaces, or one "
                "string for the text"
            )
        return tuple(map(str, tags))


def windows(source: Source, size: int, read: Reader) -> Iterator[Window]:
    """Return an iterator over windows of ``size`` rows; the first window is read at once, to find the columns.

    Raises:
        TypeError: the source is a single text.
        ValueError: no row of the first window has a given column, or the column of texts is ambiguous.

    Examples::
        >>> [(w.number, len(w.entries), w.last) for w in windows(["a", "b", "c"], 2, Reader())]
        [(0, 2, False), (1, 1, True)]
    """
    rows = source.only(read.wanted) if isinstance(source, data.Records) else data.rows_of(source)
    first = list(islice(rows, size))
    read.find_columns(first)
    return _windows(chain(first, rows), size, read)


def _windows(rest: Iterator[object], size: int, read: Reader) -> Iterator[Window]:
    number, ahead = 0, list(islice(rest, 1))
    while ahead:
        # each row is converted before the next is read, because rows may be much larger than their texts
        rows = chain(ahead, islice(rest, size - 1))
        entries = tuple(read(number * size + place, row) for place, row in enumerate(rows))
        ahead = list(islice(rest, 1))
        yield Window(number, entries, last=not ahead)
        number += 1


def _beginning(given: object) -> str:
    if isinstance(given, bytes):
        return given[:BEGINNING].decode("utf-8", "backslashreplace")
    if isinstance(given, str):
        return given
    if isinstance(given, Item):
        return given.text
    try:
        if isinstance(given, data.Record):
            return given.where if given.error is not None else json.dumps(dict(given.values), default=str)
        if isinstance(given, (int, float, tuple, list, Mapping, type(None))):
            return repr(given)
    except Exception:  # for example a number with too many digits, or an object that contains itself
        return type(given).__name__
    return type(given).__name__


def _writable(text: str, most: int) -> str:
    """Return the beginning of a text, with characters that UTF-8 cannot encode escaped."""
    return text[:most].encode("utf-8", "backslashreplace").decode()
