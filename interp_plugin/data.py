"""Texts out of files and data sets, one record at a time; a record that cannot be read says why."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from interp_plugin.files import File, is_remote, listed
from interp_plugin.tables import TEXT_COLUMNS, Column, Wanted, first_line, names_of, table_rows
from interp_plugin.text.models import shown

Text = str | tuple[str, str]

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
LABEL_COLUMNS = ("label", "labels", "class", "sentiment")
RATIONALE_COLUMNS = ("rationale", "rationales")
EMPTY = "an empty line"
LONGEST = 2**25  # bytes of a line: a longer one is passed over without being held


@dataclass(frozen=True)
class Record:
    """A line of a file or a row of a table.

    Attributes:
        where: file and line, for messages.
        values: by column; empty where the record cannot be read.
        error: why it cannot be read; None: it can.
    """

    where: str
    values: Mapping[Column, Any]
    error: str | None = None

    def text(self, column: Column, pair: Column | None = None) -> Text:
        """The text, or the pair of texts.

        Raises:
            ValueError: the record cannot be read, has no such column, or holds no text there.
        """
        if pair is not None:
            return self._words(column), self._words(pair)
        return self._words(column)

    def _words(self, column: Column) -> str:
        if self.error is not None:
            raise ValueError(f"{self.where}: {self.error}")
        if column not in self.values:
            raise ValueError(
                f"{self.where} has no column {column!r}: there are {names_of(self.values)}; choose one"
            )
        words = self.values[column]
        if not isinstance(words, str) or not words.strip():
            raise ValueError(
                f"{self.where} holds {shown(str(words))} in column {column!r}: it must be some words"
            )
        return words


@dataclass(frozen=True)
class Texts:
    """A data set in memory.

    Attributes:
        texts: or pairs of texts.
        labels: one for each; None: the data have none.
        rationales: one for each, as the data hold them (character spans or a mask of tokens); None: none.
    """

    texts: tuple[Text, ...]
    labels: tuple[Any, ...] | None = None
    rationales: tuple[Any, ...] | None = None


class Records(Iterator[Record]):
    """Records in their order, read as they are asked for."""

    def __init__(
        self, read: Callable[[Wanted | None], Iterator[Record]], wanted: Wanted | None = None
    ) -> None:
        self._read, self._rest, self._begun = read, read(wanted), False

    def only(self, wanted: Wanted) -> Records:
        """The same, and of files that can be read by columns (Parquet) these columns alone.

        Where some were read already, the others follow with all their columns.
        """
        return self if self._begun else Records(self._read, wanted)

    def __next__(self) -> Record:
        self._begun = True
        return next(self._rest)


def records(source: str | PathLike[str], split: str | None = None, header: bool = True) -> Records:
    """The records of a file, of a folder of files, or of a data set, without holding them all.

    What cannot be read (a line that is not JSON, a value of a table that Python cannot hold, a damaged page) is a
    record that says so, and those after it are read.

    Args:
        source: a .txt (a text a line, in column "text"), .jsonl, .csv, .tsv (no quoting) or .parquet file,
            UTF-8; a folder of such files, read in the order of their names; the URI of one or the other in an
            object store that pyarrow or fsspec reads ("s3://bucket/reviews"); or the name of a data set ("imdb",
            "glue:sst2" where it has a configuration), for ``datasets.load_dataset``.
        split: of a data set; a folder with a split is read by ``load_dataset`` too.
        header: whether the first line of .csv and .tsv names the columns; otherwise they have numbers.

    Raises:
        ValueError: nothing is there, or it is of another kind.
        ImportError: ``pyarrow`` (Parquet, object stores) or ``datasets`` is needed and not installed.

    Examples::
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "films.tsv")
        ...     _ = file.write_text("sentence\\tlabel\\na good film\\t1\\n")
        ...     [record.values for record in records(file)]
        [{'sentence': 'a good film', 'label': '1'}]
    """
    path = Path(source)
    if is_remote(source) and split is not None:
        raise ValueError(
            f"split is {split!r} and {str(source)!r} a file or folder; only a data set has splits"
        )
    if not is_remote(source) and (split is not None or not path.exists()):
        if not path.exists() and (path.suffix in SUFFIXES or isinstance(source, PathLike)):
            raise ValueError(
                f"there is no file {str(source)!r}; give one that is there, or the name of a data set"
            )
        rows = _of_datasets(str(source), split)
        return Records(lambda wanted: rows)
    files = listed(source, SUFFIXES)
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise ValueError(
            f"{str(source)!r} is nothing that can be read; give a file, or a folder of files, of {SUFFIXES}"
        )
    return Records(lambda wanted: (record for file in files for record in _of_file(file, header, wanted)))


def columns(
    record: Record, text: Column | None = None, label: Column | None = None, rationale: Column | None = None
) -> tuple[Column, Column | None, Column | None]:
    """Where text, label and rationale are: as asked, or under one of their usual names.

    Raises:
        ValueError: a column that is not there, or no telling which one holds the text.

    Examples::
        >>> columns(Record("line 1", {"id": 3, "sentence": "a good film", "label": 1}))
        ('sentence', 'label', None)
    """
    values = record.values
    for wanted in (text, label, rationale):
        if wanted is not None and wanted not in values:
            raise ValueError(
                f"there is no column {wanted!r} in {record.where}: there are {names_of(values)}; choose one, by its "
                "number where a file has no header"
            )
    if text is None:
        words = [name for name, value in values.items() if isinstance(value, str)]
        usual = [name for name in TEXT_COLUMNS if name in words]
        found = usual[:1] or words
        if len(found) != 1:
            raise ValueError(
                f"the column of texts cannot be told from {names_of(values)}; name it, or give its number where a file "
                "has no header"
            )
        text = found[0]

    def usual_or_none(wanted: Column | None, names: Iterable[str]) -> Column | None:
        return wanted if wanted is not None else next((name for name in names if name in values), None)

    return text, usual_or_none(label, LABEL_COLUMNS), usual_or_none(rationale, RATIONALE_COLUMNS)


def read_texts(
    source: str | PathLike[str],
    split: str | None = None,
    text_column: Column | None = None,
    label_column: Column | None = None,
    rationale_column: Column | None = None,
    pair_column: Column | None = None,
    limit: int | None = None,
) -> Texts:
    """A data set in memory, every record of it sound; empty lines are left out.

    Args:
        source, split: as in :func:`records`.
        text_column, label_column, rationale_column: by name; by number, from 0, in a .csv or .tsv file
            without a header.  None: under one of their usual names, and no labels or rationales where
            there is none.
        pair_column: of the second text, where texts are pairs.
        limit: the first so many.

    Raises:
        ValueError: as :func:`records` and :func:`columns`; a record that cannot be read, or none at all.

    Examples::
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "films.tsv")
        ...     _ = file.write_text("a good film\\t1\\na dull one\\t0\\n")
        ...     read_texts(file, text_column=0, label_column=1)
        Texts(texts=('a good film', 'a dull one'), labels=('1', '0'), rationales=None)
    """
    wanted = (text_column, label_column, rationale_column, pair_column)
    header = not any(isinstance(column, int) for column in wanted)
    others = tuple(column for column in wanted[1:] if column is not None)
    usual = (*LABEL_COLUMNS, *RATIONALE_COLUMNS)
    chosen = records(source, split, header).only(Wanted(text_column, others, usual))
    found = list(islice((record for record in chosen if record.error != EMPTY), limit))
    if not found:
        raise ValueError(f"{str(source)!r} holds no texts; give a file or data set with at least one")
    for record in found:
        if record.error is not None:
            raise ValueError(f"{record.where}: {record.error}")
    text, label, rationale = columns(found[0], text_column, label_column, rationale_column)
    return Texts(
        tuple(record.text(text, pair_column) for record in found),
        None if label is None else tuple(_value(record, label) for record in found),
        None if rationale is None else tuple(_value(record, rationale) for record in found),
    )


def _value(record: Record, column: Column) -> Any:
    if column not in record.values:
        raise ValueError(
            f"{record.where} has no column {column!r}, which others have; fill it or leave the column out"
        )
    return record.values[column]


def _of_file(file: File, header: bool, wanted: Wanted | None) -> Iterator[Record]:
    read: Callable[[BinaryIO, File], Iterator[Record]]
    read = {".txt": _plain, ".jsonl": _json}.get(file.suffix) or partial(_table, header=header)
    if file.suffix == ".parquet":
        read = partial(_parquet, wanted=wanted)
    with file.open() as opened:
        yield from read(opened, file)


def _plain(opened: BinaryIO, file: File) -> Iterator[Record]:
    for where, line in _lines(opened, file):
        yield line if isinstance(line, Record) else Record(where, {"text": line})


def _json(opened: BinaryIO, file: File) -> Iterator[Record]:
    for where, line in _lines(opened, file):
        if isinstance(line, Record):
            yield line
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of too many digits, lists in lists in lists
            yield Record(where, {}, f"not JSON that can be read ({error})")
            continue
        yield Record(where, values) if isinstance(values, dict) else Record(where, {}, "not a JSON object")


def _table(opened: BinaryIO, file: File, header: bool) -> Iterator[Record]:
    """CSV, where a quoted cell may hold line breaks, and TSV, where quotes are quotes."""
    refused = "x" * (csv.field_size_limit() + 2)  # in place of a line that is too long
    lines = (
        refused if line is None else line.decode("utf-8", "surrogateescape")
        for line in _without_mark(opened)
    )  # fmt: skip
    rows = (
        csv.reader(lines) if file.suffix == ".csv" else csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE)
    )
    names: list[Column] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(f"{file.name}, line {rows.line_num}", {}, f"not a row of a table ({error})")
            continue
        where = f"{file.name}, line {rows.line_num}"
        if not row:
            yield Record(where, {}, EMPTY)
        elif any(_undecoded(cell) for cell in row):
            yield Record(where, {}, "not UTF-8")
        elif names is None and header:
            names = list(row)
        elif len(row) > len(names or row):
            yield Record(where, {}, f"{len(row)} columns, and the header names {len(names or row)}")
        else:
            yield Record(where, dict(zip(names or range(len(row)), row)))


def _parquet(opened: BinaryIO, file: File, wanted: Wanted | None) -> Iterator[Record]:
    for row in table_rows(opened, file.name, wanted):
        yield Record(*row)


def _of_datasets(name: str, split: str | None) -> Iterator[Record]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no file, and reading it as a data set needs datasets, which is not installed: pip install "
            "interp-plugin[compare]"
        ) from error
    path, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        loaded = load_dataset(
            path,
            configuration or None,
            split=split or "train",
            streaming=True,
            trust_remote_code=False,  # or old versions ask on standard input
        )
    except Exception as error:  # of many kinds: no such name, no network, no such split, a script
        raise ValueError(
            f"data set {name!r} cannot be loaded ({first_line(error)}); give a file that is there, or a name and "
            "split that datasets.load_dataset takes"
        ) from error
    return (Record(f"{name}, row {number}", row) for number, row in enumerate(loaded, 1))


def _lines(opened: BinaryIO, file: File) -> Iterator[tuple[str, str | Record]]:
    """Where and what each line is; a record of it where it holds nothing to read."""
    for number, raw in enumerate(_without_mark(opened), 1):
        where = f"{file.name}, line {number}"
        if raw is None:
            yield where, Record(where, {}, f"more than {LONGEST} bytes")
            continue
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield where, Record(where, {}, "not UTF-8")
            continue
        yield where, line if line.strip() else Record(where, {}, EMPTY)


def _without_mark(opened: BinaryIO) -> Iterator[bytes | None]:
    """Lines without the byte order mark that some programs put at the beginning; None: it is too long to be held."""
    mark = b"\xef\xbb\xbf"
    while line := opened.readline(LONGEST):
        if len(line) == LONGEST and not line.endswith(b"\n"):
            while (rest := opened.readline(LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line.removeprefix(mark)
        mark = b""


def _undecoded(cell: str) -> bool:
    return re.search("[\udc80-\udcff]", cell) is not None
