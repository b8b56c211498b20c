"""Reads texts from files, object stores, data sets and tables in memory; unreadable records carry the reason."""

from __future__ import annotations

import codecs
import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from itertools import chain, islice
from os import PathLike
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, BinaryIO, cast

from interp_plugin.files import load_pyarrow
from interp_plugin.optional import load
from interp_plugin.text.models import shown

Text = str | tuple[str, str]
Column = str | int
"""A column's name, or in a file without a header its number, from 0."""

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES = (".txt", *TABLES)
TEXT_COLUMNS = ("text", "sentence", "content", "review", "document")
LABEL_COLUMNS = ("label", "labels", "class", "sentiment")
RATIONALE_COLUMNS = ("rationale", "rationales")
USUAL_COLUMNS = {
    "labels": LABEL_COLUMNS, "rationales": RATIONALE_COLUMNS, "targets": ("target",), "foils": ("instead_of",),
}  # fmt: skip
SEPARATORS = ",;\t|"
EMPTY = "an empty line"
LONGEST = 2**25  # maximum bytes of a line; longer ones are skipped without being held in memory
SAMPLE = 20  # number of lines of a .csv file from which the separator is detected
PARQUET_BATCH = 2**24  # approximate bytes of a Parquet file in memory at a time


@dataclass(frozen=True)
class Record:
    """A line of a file or a row of a table.

    Attributes:
        where: file and line, for messages.
        values: by column; empty if the record cannot be read, and all None if it lacks a required column.
        error: why the record cannot be read; None: it can be.
    """

    where: str
    values: Mapping[Column, Any]
    error: str | None = None

    def text(self, column: Column, pair: Column | None = None) -> Text:
        """Return the text, or the pair of texts.

        Raises:
            ValueError: the record cannot be read, has no such column, or has no text in it.
        """
        if pair is not None:
            return self._words(column), self._words(pair)
        return self._words(column)

    def _words(self, column: Column) -> str:
        words = self.value(column)
        if not isinstance(words, str) or not words.strip():
            raise ValueError(
                f"{self.where} holds {shown(str(words))} in column {column!r}: it must be a text that is not empty"
                + (", and bytes must be UTF-8" if isinstance(words, bytes) else "")
            )
        return words

    def value(self, column: Column) -> Any:
        """Return the value of a column.

        Raises:
            ValueError: the record cannot be read, or has no such column.
        """
        if self.error is not None:
            raise ValueError(f"{self.where}: {self.error}")
        if column not in self.values:
            raise ValueError(
                f"{self.where} has no column {column!r}: {_instead_of(column, self.values)}; choose one"
            )
        return self.values[column]


@dataclass(frozen=True)
class Wanted:
    """The columns to read.

    Attributes:
        text: column of the texts; None: a usual name, or the only column with words.
        others: further columns that must exist.
        usual: columns that are read if they exist.
    """

    text: Column | None
    others: tuple[Column, ...] = ()
    usual: tuple[str, ...] = ()

    def missing(self, names: Collection[str]) -> list[Column]:
        """Return the columns that must exist and do not."""
        required = self.others if self.text is None else (self.text, *self.others)
        return [name for name in required if name not in names]

    def among(self, names: Sequence[str], words: Collection[str]) -> list[str]:
        """Return which of the columns to read; ``words`` are those that hold strings."""
        texts = [name for name in TEXT_COLUMNS if name in words] or list(words)
        chosen = {*(texts if self.text is None else (self.text,)), *self.others, *self.usual}
        return [name for name in names if name in chosen]


class Records(Iterator[Record]):
    """An iterator over records, read one at a time; ``name`` is the name of the source."""

    def __init__(
        self, read: Callable[[Wanted | None], Iterator[Record]], name: str, wanted: Wanted | None = None
    ) -> None:
        self.name = name
        self._read, self._rest, self._begun = read, read(wanted), False

    def only(self, wanted: Wanted) -> Records:
        """Return the records with these columns only, if the files can be read by column (Parquet).

        After the first record has been read, all columns are kept.
        """
        return self if self._begun else Records(self._read, self.name, wanted)

    def __next__(self) -> Record:
        self._begun = True
        return next(self._rest)


def records(
    source: str | PathLike[str] | Iterable[Any],
    split: str | None = None,
    header: bool | None = None,
    encoding: str = "utf-8",
    limit: int | None = None,
) -> Records:
    """Return the records of a file, of a folder of files, of a data set or of texts in memory, read one at a time.

    A record that cannot be read (a line that is not JSON, a value that Python cannot represent, a damaged page)
    carries the reason, and reading continues after it.

    Args:
        source: a .txt (one text per line, in column "text"), .jsonl, .csv (separated by commas, semicolons, tabs or
            bars, detected from the first lines), .tsv (no quoting) or .parquet file; a folder of such files, read in
            the order of their names; the URI of a file or folder in an object store that pyarrow or fsspec reads
            ("s3://bucket/reviews"); the name of a data set for ``datasets.load_dataset`` ("imdb", or "glue:sst2"
            with a configuration); or what is in memory: a table of pandas or polars, or an iterable of texts (column
            "text") or of mappings by column.
        split: of a data set (None: "train"); a folder with a split is also read by ``load_dataset``.
        header: whether the first line of .csv and .tsv names the columns; otherwise they have numbers.  None: it does
            if one of its cells is a usual name, such as "text" or "label", or no cell is a number or a sentence.  Of
            columns with one name, the second and third have a number, as in pandas: "text", "text.1", "text.2".
        encoding: of .txt, .jsonl, .csv and .tsv files.
        limit: maximum number of records.

    Raises:
        ValueError: the source does not exist or is of another kind, or the encoding is unknown.
        TypeError: the source is a mapping or no iterable.
        ImportError: ``pyarrow`` (Parquet, object stores) or ``datasets`` is needed and not installed.

    Examples::
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "films.csv")
        ...     _ = file.write_text("sentence;label\\na good, funny film;1\\n")
        ...     [record.values for record in records(file)]
        [{'sentence': 'a good, funny film', 'label': '1'}]
    """
    if not isinstance(source, (str, PathLike)):
        if split is not None:
            raise ValueError(
                f"split is {split!r} and the texts are in memory; give the split itself, or leave it out"
            )
        return _of_memory(source, limit)
    path = Path(source)
    _check_encoding(encoding)
    if split is not None and (is_remote(source) or path.is_file()):
        raise ValueError(
            f"split is {split!r} and {str(source)!r} is a file or URI; only a data set has splits"
        )
    if not is_remote(source) and (split is not None or not path.exists()):
        if not path.exists() and (path.suffix in SUFFIXES or isinstance(source, PathLike)):
            raise ValueError(
                f"there is no file {str(source)!r}; give an existing file, or the name of a data set"
            )
        rows = _of_datasets(str(source), split)
        return Records(lambda wanted: islice(rows, limit), str(source))
    files = _files(source)
    if not files or any(file.suffix not in SUFFIXES for file in files):
        raise ValueError(f"{str(source)!r} cannot be read; give a file, or a folder of files, of {SUFFIXES}")
    return Records(
        lambda wanted: islice(
            (record for file in files for record in _of_file(file, header, encoding, wanted)), limit
        ),
        str(source),
    )


def _of_memory(source: Iterable[Any], limit: int | None = None) -> Records:
    """Return the rows of a table, or texts, as records."""
    rows = rows_of(source)

    def read(wanted: Wanted | None) -> Iterator[Record]:
        for number, row in enumerate(islice(rows, limit)):
            yield Record(f"row {number}", row if isinstance(row, Mapping) else {TEXT_COLUMNS[0]: row})

    return Records(read, type(source).__name__)


def lines(opened: BinaryIO, name: str, encoding: str = "utf-8") -> Records:
    """Return the lines of an open file, such as standard input, as records with one text each.

    Examples::
        >>> [record.values["text"] for record in lines(io.BytesIO(b"a good film\\nnot bad\\n"), "standard input")]
        ['a good film', 'not bad']
    """
    _check_encoding(encoding)
    return Records(lambda wanted: _lines(opened, name, encoding, _plain), name)


def columns(
    some: Iterable[Record],
    text: Column | None = None,
    others: Sequence[Column | None] = (),
) -> Column | None:
    """Return the column of the texts: the given one, a usual name, or the only column with words in most records.

    Args:
        some: the first records; unreadable ones are skipped.
        text: name or number of the column, if it is given.
        others: further columns that must exist.

    Returns:
        The column; None: no record can be read.

    Raises:
        ValueError: no record has a given column, or the column of texts is ambiguous; the message lists the columns.

    Examples::
        >>> columns([Record("line 1", {"id": "3", "comment": "a good film", "stars": "5"})])
        'comment'
    """
    known = [record for record in some if record.values]
    for wanted in (text, *others):
        if wanted is not None and known and not any(wanted in record.values for record in known):
            first = known[0]
            raise ValueError(
                f"there is no column {wanted!r} in {first.where}: {_instead_of(wanted, first.values)}; choose one, by "
                "its number if the file has no header"
            )
    readable = [record for record in known if record.error is None]
    if text is not None or not readable:
        return text
    found = map(_text_column, readable)
    votes = Counter(column for column in found if column is not None)
    if not votes:
        raise ValueError(
            f"the column of texts is not clear from {_names(readable[0].values)}; name it, or give its number if the "
            "file has no header"
        )
    usual = [name for name in TEXT_COLUMNS if name in votes]
    return usual[0] if usual else votes.most_common(1)[0][0]


@dataclass(frozen=True)
class Texts:
    """A data set in memory.

    Attributes:
        texts: the texts, or pairs of texts.
        labels: one for each text; None: the data have none.
        rationales: one for each text, as in the data (character spans or a mask of tokens); None: the data have none.
        left_out: file, line and reason of each record without a text, or without a label or rationale.
        targets, foils: target of a language model after each text, and what it is compared with, with None for records
            without one; None: the data have none.
    """

    texts: tuple[Text, ...]
    labels: tuple[Any, ...] | None = None
    rationales: tuple[Any, ...] | None = None
    left_out: tuple[str, ...] = ()
    targets: tuple[Any, ...] | None = None
    foils: tuple[Any, ...] | None = None

    def sample(self, count: int | None, seed: int = 0) -> Texts:
        """Return a random sample of ``count`` texts, in the order of the data; None: all.

        Examples::
            >>> Texts(("a", "b", "c"), labels=(0, 1, 2)).sample(2, seed=1)
            Texts(texts=('a', 'c'), labels=(0, 2), rationales=None, left_out=(), targets=None, foils=None)
        """
        if count is None or count >= len(self.texts):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.texts)), count))
        parts = {name: getattr(self, name) for name in ("texts", "labels", "rationales", "targets", "foils")}
        some: dict[str, Any] = {
            name: values and tuple(values[i] for i in chosen) for name, values in parts.items()
        }
        return replace(self, **some)


def read_texts(
    source: str | PathLike[str] | Iterable[Any],
    split: str | None = None,
    text_column: Column | None = None,
    label_column: Column | None = None,
    rationale_column: Column | None = None,
    pair_column: Column | None = None,
    limit: int | None = None,
    encoding: str = "utf-8",
    target_column: Column | None = None,
    foil_column: Column | None = None,
) -> Texts:
    """Read a data set into memory.  Empty lines are skipped; records without a text or a label are listed as left out.

    Args:
        source: result of :func:`records` or :func:`lines`, or a source as for :func:`records`.
        split, encoding: as for :func:`records`.
        text_column, label_column, rationale_column, target_column, foil_column: names, or numbers, from 0, in a .csv
            or .tsv file without a header.  None: a usual name ("target" and "instead_of" for the last two); without
            such a column there are no labels, rationales, targets or foils.
        pair_column: column of the second text of a pair.
        limit: maximum number of texts.

    Raises:
        ValueError: as for :func:`records` and :func:`columns`; no record has a text.

    Examples::
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "films.tsv")
        ...     _ = file.write_text("a good film\\t1\\n\\t0\\na dull one\\t0\\n")
        ...     found = read_texts(file, text_column=0, label_column=1)
        >>> found.texts, found.labels
        (('a good film', 'a dull one'), ('1', '0'))
        >>> found.left_out
        ("films.tsv, line 2 holds '' in column 0: it must be a text that is not empty",)
        >>> read_texts(["a good film", "a dull one"]).texts
        ('a good film', 'a dull one')
    """
    given = dict(zip(USUAL_COLUMNS, (label_column, rationale_column, target_column, foil_column)))
    named = tuple(column for column in (pair_column, *given.values()) if column is not None)
    if not isinstance(source, Records):
        header = False if any(isinstance(column, int) for column in (text_column, *named)) else None
        source = records(source, split, header, encoding)
    usual = tuple(name for names in USUAL_COLUMNS.values() for name in names)
    found = (record for record in source.only(Wanted(text_column, named, usual)) if record.error != EMPTY)
    # the column is found from the first records; no more than the limit are read
    first = list(islice(found, 1000 if limit is None else limit))
    text_column = columns(first, text_column, named)
    text_column = TEXT_COLUMNS[0] if text_column is None else text_column
    there = {name for record in first for name in record.values}
    known: dict[str, Column] = {}
    for what, column in given.items():
        chosen = (
            next((name for name in USUAL_COLUMNS[what] if name in there), None) if column is None else column
        )
        if chosen is not None:
            known[what] = chosen
    texts: list[Text] = []
    others: dict[str, list[Any]] = {what: [] for what in known}
    left_out: list[str] = []
    for record in chain(first, found):
        if len(texts) == limit:
            break
        try:
            text = record.text(text_column, pair_column)
            of_text = {what: _other(record, what, column) for what, column in known.items()}
        except ValueError as error:
            left_out.append(str(error))
            continue
        texts.append(text)
        for what, value in of_text.items():
            others[what].append(value)
    if not texts:
        reason = f": {left_out[0]}" if left_out else ""
        raise ValueError(f"{source.name!r} holds no texts{reason}; give a file or data set with at least one")
    return Texts(
        tuple(texts), left_out=tuple(left_out), **{what: tuple(values) for what, values in others.items()}
    )


def _other(record: Record, what: str, column: Column) -> Any:
    """Return a label, rationale, target or foil; a missing or empty target or foil is None (the model's prediction).

    Raises:
        ValueError: a label or rationale is missing.
    """
    if what in ("labels", "rationales"):
        value = record.value(column)
        if what == "labels" and (value is None or value == "" or value != value):  # NaN differs from itself
            raise ValueError(f"{record.where} holds no label in column {column!r}")
        return value
    cell = record.values.get(column)
    return None if cell == "" else cell


def chats(texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Parse chats from JSON: each text is a list of messages, or an object with such a list as "messages".

    Raises:
        ValueError: a text is not such JSON; the error has its number.

    Examples::
        >>> chats(['[{"role": "user", "content": "Hello"}]'])
        [[{'role': 'user', 'content': 'Hello'}]]
    """
    found = []
    for number, text in enumerate(texts):
        try:
            chat = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"chat {number} is not valid JSON ({error}); write one list of messages per line"
            ) from error
        chat = chat["messages"] if isinstance(chat, dict) and "messages" in chat else chat
        if not isinstance(chat, list) or not chat or not all(isinstance(message, dict) for message in chat):
            raise ValueError(
                f"chat {number} is not a list of messages with role and content; write one list per line"
            )
        found.append(chat)
    return found


def parted(texts: Sequence[Any], choices: bool = False) -> list[Any]:
    """Split texts at tabs into pairs or, with ``choices``, into a text and one or more choices.

    Raises:
        ValueError: a text has another number of tabs.

    Examples::
        >>> parted(["a film\\tgood"]), parted(["a film\\tgood\\tbad"], choices=True)
        ([('a film', 'good')], [('a film', ['good', 'bad'])])
    """
    found: list[Any] = []
    for text in texts:
        first, *others = text.split("\t") if isinstance(text, str) else [""]
        if choices and others:
            found.append((first, others))
        elif not choices and len(others) == 1:
            found.append((first, others[0]))
        else:
            rule = "before each choice" if choices else "between its two sentences"
            raise ValueError(f"text {text!r} has {len(others)} tabs; write one {rule}")
    return found


def rows_of(source: Any) -> Iterator[Any]:
    """Return an iterator over texts in memory; rows of a table (pandas, polars) are mappings by column.

    Raises:
        TypeError: the source is a single text, a mapping, a path, or no iterable.
    """
    is_one = isinstance(source, (str, bytes, Mapping, PathLike))
    if is_one or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise TypeError(
            f"texts is a {type(source).__name__}: give an iterable of texts; for a file, data.records(path)"
        )
    if hasattr(source, "itertuples"):  # pandas
        names = _distinct(source.columns)
        return (dict(zip(names, row)) for row in source.itertuples(index=False, name=None))
    if hasattr(source, "iter_rows"):  # polars
        return iter(source.iter_rows(named=True))
    return iter(source)


def in_memory(texts: Any) -> Any:
    """Convert records or a table to a list of texts; return anything else unchanged.

    Raises:
        ValueError: a record has no text, the column of texts is ambiguous, or the argument is the name of a file.

    Examples::
        >>> in_memory(lines(io.BytesIO(b"a good film\\n"), "films.txt")), in_memory("a good film")
        (['a good film'], 'a good film')
    """
    if isinstance(texts, (str, PathLike)) and Path(texts).suffix in SUFFIXES and _is_file(Path(texts)):
        path = str(texts)
        raise ValueError(f"{path!r} is a file, not a text; give data.read_texts({path!r}).texts")
    if hasattr(texts, "itertuples") or hasattr(texts, "iter_rows"):
        texts = _of_memory(texts)
    elif not isinstance(texts, Records):
        return texts
    found = [record for record in texts if record.error != EMPTY]
    column = columns(found)
    return [record.text(TEXT_COLUMNS[0] if column is None else column) for record in found]


def is_remote(source: str | PathLike[str]) -> bool:
    """Return whether a source is a URI.

    Examples::
        >>> is_remote("s3://bucket/reviews.parquet"), is_remote("reviews.parquet"), is_remote("glue:sst2")
        (True, False, False)
    """
    return isinstance(source, str) and re.match(r"[A-Za-z][\w+.-]+://", source) is not None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text too long for a name
        return False


def _text_column(record: Record) -> Column | None:
    """Return the column that holds the text of one record; None: it is ambiguous."""
    strings = {name: value for name, value in record.values.items() if isinstance(value, str)}
    usual: list[Column] = [name for name in TEXT_COLUMNS if name in strings]
    found = usual[:1] or [name for name, value in strings.items() if not _is_number(value)]
    return found[0] if len(found) == 1 else None


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return True
    return False


def _names(values: Mapping[Column, Any]) -> str:
    """Return a listing of a record's columns for messages."""
    return "columns " + ", ".join(shown(name) if isinstance(name, str) else str(name) for name in values)


def _instead_of(column: Column, values: Mapping[Column, Any]) -> str:
    """Return a listing of a record's columns, and the name that is like one that is missing.

    Examples::
        >>> _instead_of("label", {"text": 0, " Label": 0})
        "there are columns 'text', ' Label' (did you mean ' Label'?)"
    """
    plain = {str(name).strip().casefold(): name for name in values}
    near = get_close_matches(str(column).strip().casefold(), plain, n=1)
    return f"there are {_names(values)}" + "".join(f" (did you mean {plain[name]!r}?)" for name in near)


def _check_encoding(encoding: str) -> None:
    try:
        fits = "\n,".encode(encoding).removeprefix(codecs.BOM_UTF8) == b"\n,"
    except LookupError:
        fits = False
    if not fits:
        raise ValueError(
            f"encoding {encoding!r} is unknown, or does not write line breaks as ASCII does; give utf-8, latin-1 or "
            "cp1252, or convert the file to UTF-8"
        )


# -- files on this machine or in an object store


@dataclass(frozen=True)
class _File:
    """A file that is not open yet; ``open`` returns a seekable binary file."""

    name: str
    open: Callable[[], BinaryIO]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


def _files(source: str | PathLike[str]) -> list[_File]:
    """Return the file, or the files of a folder with known suffixes, sorted by name.

    Raises:
        ImportError: pyarrow is needed and not installed.
        OSError: the path does not exist.
        ValueError: the URI does not exist or cannot be reached.
    """
    if is_remote(source):
        return _of_store(str(source))
    path = Path(source)
    paths = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES) if path.is_dir() else [path]
    return [_File(each.name, partial(_of_disk, each)) for each in paths]


def _of_disk(path: Path) -> BinaryIO:
    return path.open("rb")


def _of_store(uri: str) -> list[_File]:
    arrow, _ = load_pyarrow(f"reading {uri!r}")
    from pyarrow import fs

    try:
        store, path = _store(uri)
        info = store.get_file_info(path)
        infos = [info]
        if info.type == fs.FileType.Directory:
            inside = store.get_file_info(fs.FileSelector(path))
            infos = sorted(
                (i for i in inside if PurePosixPath(i.path).suffix in SUFFIXES), key=lambda i: i.path
            )
    except (arrow.ArrowException, OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"{uri!r} cannot be reached ({str(error).splitlines()[0]}); give the URI of a file or folder that pyarrow "
            "or fsspec reads, and set the credentials it needs"
        ) from error
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"there is no file {uri!r}; give an existing one")
    return [_File(PurePosixPath(each.path).name, partial(_opened, store, each.path)) for each in infos]


def _store(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI, from pyarrow or else fsspec, and the path in it."""
    import fsspec
    from pyarrow import ArrowInvalid, fs

    try:
        store, path = fs.FileSystem.from_uri(uri)
    except ArrowInvalid:  # a scheme that pyarrow does not know
        found, path = fsspec.core.url_to_fs(uri)
        store = fs.PyFileSystem(fs.FSSpecHandler(found))
    return store, path


def _opened(store: Any, path: str) -> BinaryIO:
    return io.BufferedReader(store.open_input_file(path))


# -- kinds of files


def _of_file(file: _File, header: bool | None, encoding: str, wanted: Wanted | None) -> Iterator[Record]:
    with file.open() as opened:
        if file.suffix == ".parquet":
            yield from _parquet(opened, file.name, wanted)
            return
        beginning = opened.read(2)
        opened.seek(0)
        if beginning in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield Record(file.name, {}, "a file in UTF-16, as spreadsheets write it; convert it to UTF-8")
        elif file.suffix in (".csv", ".tsv"):
            yield from _separated(opened, file.name, file.suffix == ".tsv", header, encoding)
        else:
            yield from _lines(opened, file.name, encoding, _plain if file.suffix == ".txt" else _json)


def _lines(
    opened: BinaryIO, name: str, encoding: str, read: Callable[[str, str], Record]
) -> Iterator[Record]:
    """Yield a record for each line, made by ``read`` from place and content if the line can be decoded."""
    for number, raw in enumerate(_without_mark(opened), 1):
        where = f"{name}, line {number}"
        if raw is None:
            yield Record(where, {}, f"more than {LONGEST} bytes")
            continue
        try:
            line = raw.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError:
            yield Record(where, {}, _not_decoded(encoding))
            continue
        yield read(where, line) if line.strip() else Record(where, {}, EMPTY)


def _plain(where: str, line: str) -> Record:
    return Record(where, {"text": line})


def _json(where: str, line: str) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # also too many digits, too deeply nested lists
        return Record(where, {}, f"not JSON that can be read ({error})")
    return Record(where, values) if isinstance(values, dict) else Record(where, {}, "not a JSON object")


def _separated(
    opened: BinaryIO, name: str, tabs: bool, header: bool | None, encoding: str
) -> Iterator[Record]:
    """Yield the records of CSV, where quoted cells may have line breaks, or TSV, where quotes are part of the text."""
    refused = "x" * (csv.field_size_limit() + 2)  # replaces a line that is too long, so that csv refuses it
    decoded = (
        refused if line is None else line.decode(encoding, "surrogateescape")
        for line in _without_mark(opened)
    )  # fmt: skip
    if tabs:
        lines = _Lines(decoded)
        rows = csv.reader(lines, "excel-tab", quoting=csv.QUOTE_NONE)
    else:
        sample = list(islice(decoded, SAMPLE))
        lines = _Lines(chain(sample, decoded))
        rows = csv.reader(lines, delimiter=_separator(sample))
    names: list[Column] | None = None
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(f"{name}, line {rows.line_num}", {}, f"not a row of a table ({error})")
            continue
        where = f"{name}, line {rows.line_num}"
        if lines.ended:  # only a quoted cell asks for more lines
            yield Record(
                where, {}, f"a quote that opens in line {first} is not closed: all after it would be one cell"
            )
        elif not row:
            yield Record(where, {}, EMPTY)
        elif any(re.search("[\udc80-\udcff]", cell) for cell in row):
            yield Record(where, {}, _not_decoded(encoding))
        elif names is None and (header or (header is None and _is_header(row))):
            names = _distinct(row)
        elif len(row) > len(names or row):
            yield Record(where, {}, f"{len(row)} columns, and the header names {len(names or row)}")
        else:
            header = False  # the first row was not a header, so no later row is
            yield Record(where, dict(zip(names or range(len(row)), row)))


def _distinct(names: Iterable[Any]) -> list[Any]:
    """Return names of columns with a number after each that has occurred before.

    Examples::
        >>> _distinct(["text", "label", "text", "text"])
        ['text', 'label', 'text.1', 'text.2']
    """
    found: dict[Any, None] = {}
    repeats: Counter[Any] = Counter()
    for name in names:
        new = name
        while new in found:
            repeats[name] += 1
            new = f"{name}.{repeats[name]}"
        found[new] = None
    return list(found)


class _Lines:
    """An iterator over lines that records whether more lines were requested than there are."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.ended = lines, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self.lines)
        except StopIteration:
            self.ended = True
            raise


def _separator(sample: Sequence[str]) -> str:
    """Return the separator with which most rows have as many cells as the first row, which has two or more.

    Examples::
        >>> _separator(["text;label\\n", "good, funny;1\\n"]), _separator(["text\\n", "good; funny\\n"])
        (';', ',')
    """
    best, found = (0.0, 0), ","
    for separator in SEPARATORS:
        with suppress(csv.Error):
            counts = [len(row) for row in csv.reader(sample, delimiter=separator) if row]
            if counts and counts[0] > 1:
                agreement = (counts.count(counts[0]) / len(counts), counts[0])
                if agreement > best:
                    best, found = agreement, separator
    return found


def _is_header(row: Sequence[str]) -> bool:
    """Return whether a first row names the columns.

    Examples::
        >>> _is_header(["comment", "stars"]), _is_header(["a good film", "1"]), _is_header(["a good film"])
        (True, False, False)
        >>> _is_header(["", "0", "1"])  # pandas numbers columns without names
        True
    """
    usual = {*TEXT_COLUMNS, *LABEL_COLUMNS, *RATIONALE_COLUMNS}
    cells = [cell.strip() for cell in row if cell.strip()]
    if any(cell.lower() in usual for cell in cells) or cells == [str(n) for n in range(len(cells))]:
        return True
    words = 1 if len(row) == 1 else 5  # maximum number in a name
    return not any(_is_number(cell) or len(cell.split()) > words for cell in cells)


def _not_decoded(encoding: str) -> str:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        return "not UTF-8 text; if it is Latin-1, give the encoding latin-1"
    return f"not text in the encoding {encoding}"


def _without_mark(opened: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines without a byte order mark at the beginning; None in place of a line that is too long."""
    mark = codecs.BOM_UTF8
    while line := opened.readline(LONGEST):
        if len(line) == LONGEST and not line.endswith(b"\n"):
            while (rest := opened.readline(LONGEST)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line.removeprefix(mark)
        mark = b""


def _of_datasets(name: str, split: str | None) -> Iterator[Record]:
    datasets = load("datasets", f"{name!r} is no file, and reading it as a data set", "compare")
    path, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
    try:
        loaded = datasets.load_dataset(
            path,
            configuration or None,
            split=split or "train",
            streaming=True,
            trust_remote_code=False,  # otherwise old versions ask on standard input
        )
    except Exception as error:  # no such name, no network, no such split, a script, ...
        raise ValueError(
            f"data set {name!r} cannot be loaded ({_first_line(error)}); give an existing file, or a name and split "
            "that datasets.load_dataset takes"
        ) from error
    return (Record(f"{name}, row {number}", row) for number, row in enumerate(loaded, 1))


# -- Parquet


def _parquet(opened: BinaryIO, name: str, wanted: Wanted | None) -> Iterator[Record]:
    """Yield the rows of a Parquet file; unreadable ones carry the reason.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the disk or the network fails.
    """
    arrow, parquet = load_pyarrow(f"reading {name!r}")
    watched = _WatchedFile(opened)
    number = 0
    try:
        # do not hold whole columns of a row group in memory; detect damage by checksums
        table = parquet.ParquetFile(
            watched, buffer_size=2**16, pre_buffer=False, page_checksum_verification=True
        )
        groups = [table.metadata.row_group(place) for place in range(table.num_row_groups)]
        schema = table.schema_arrow
    except (arrow.ArrowException, OSError) as error:
        watched.raise_failure()
        yield Record(name, {}, f"not a Parquet file that can be read ({_first_line(error)})")
        return
    chosen = schema.names
    if wanted is not None:
        missing = wanted.missing(chosen)
        if missing:
            nothing: dict[Column, Any] = dict.fromkeys(chosen)
            reason = f"no column {missing[0]!r}: {_instead_of(missing[0], nothing)}; choose one"
            for row in range(1, table.metadata.num_rows + 1):
                yield Record(f"{name}, row {row}", nothing, reason)
            return
        chosen = wanted.among(chosen, _columns_of_words(arrow, schema))
    for place, group in enumerate(groups):
        end = number + group.num_rows
        try:
            for batch in table.iter_batches(_rows_at_once(group, chosen), row_groups=[place], columns=chosen):
                yield from _of_batch(batch, name, number)
                number += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            watched.raise_failure()
            reason = f"in a damaged part of the file ({_first_line(error)})"
            for row in range(number + 1, end + 1):
                yield Record(f"{name}, row {row}", {}, reason)
        number = end


class _WatchedFile:
    """A file that records whether reading failed, to distinguish a damaged file from a failing disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._failure = file, cast("OSError | None", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._failure = error
            raise

    def raise_failure(self) -> None:
        """Raise the error of a failed read, if there was one."""
        if self._failure is not None:
            raise self._failure


def _columns_of_words(arrow: ModuleType, schema: Any) -> list[str]:
    """Return the columns that hold strings, or bytes under a usual name or if there are no strings."""
    kinds = arrow.types
    types = {f.name: f.type.value_type if kinds.is_dictionary(f.type) else f.type for f in schema}
    words = [name for name, kind in types.items() if kinds.is_string(kind) or kinds.is_large_string(kind)]
    binary = [name for name, kind in types.items() if kinds.is_binary(kind) or kinds.is_large_binary(kind)]
    return words + [name for name in binary if not words or name in TEXT_COLUMNS]


def _rows_at_once(group: Any, names: Collection[str]) -> int:
    """Return the number of rows of a row group to hold at a time, from the size of these columns."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    starts = tuple(f"{name}." for name in names)
    size = sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(starts))
    rows: int = PARQUET_BATCH * group.num_rows // max(1, size)
    return max(1, min(1024, rows))


def _of_batch(batch: Any, name: str, before: int) -> Iterator[Record]:
    """Yield the rows of a batch, converted one by one if a value cannot be represented in Python."""
    try:
        rows = batch.to_pylist()
    except Exception as error:  # the type of the exception depends on the value
        if batch.num_rows == 1:
            yield Record(
                f"{name}, row {before + 1}", {}, f"a value that cannot be read ({_first_line(error)})"
            )
            return
        for place in range(batch.num_rows):
            yield from _of_batch(batch.slice(place, 1), name, before + place)
        return
    for place, row in enumerate(rows, before + 1):
        yield Record(f"{name}, row {place}", {column: _decoded(value) for column, value in row.items()})


def _decoded(value: Any) -> Any:
    """Return bytes as text if they are UTF-8, and anything else as it is: some programs write strings as bytes."""
    with suppress(UnicodeDecodeError):
        return value.decode() if isinstance(value, bytes) else value
    return value


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, to be put in brackets."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
