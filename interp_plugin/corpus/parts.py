"""The folder of a study: its lock, and a Parquet file for each window, written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import socket
import stat
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from interp_plugin.corpus.reading import Failure, Item
from interp_plugin.files import load_pyarrow, replace_file
from interp_plugin.text.explanation import ErasedRow, Row, TextExplanation
from interp_plugin.text.models import Label
from interp_plugin.text.scores import Unit, group
from interp_plugin.text.storage import ERASED_FLOATS, FLOATS, fit_columns, parquet_bytes, text_columns

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 2**15  # approximate number of lines of a row group: a reader holds one at a time
BATCH = 4096  # number of lines that the statistics hold in memory at a time
FORMAT = 3  # increase it if a reader of the old format would give wrong results
KEY = b"interp_plugin_corpus"  # of the files' metadata
SOLVED = ("solved_sigma", "solved_error")
"""Columns of a part with predicted numbers: the solver's results for the checked texts."""
# held while the other locks are read; the dot hides it from readers of Parquet
FOLDER_LOCK = ".study.lock"
WAIT = 60.0  # maximum seconds to wait for the folder's lock, which others hold for milliseconds
_TEXT = tuple(field.name for field in fields(TextExplanation) if field.name not in ("rows", "words", "units"))
_NAME = re.compile(r"(part|errors)-(\d{8,})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True)
class Scored:
    """A text with its results.

    Attributes:
        item: the text.
        found: its explanation.
        solved: the solver's explanation, if a head predicted ``found`` and the text is to be checked; else None.
    """

    item: Item
    found: TextExplanation
    solved: TextExplanation | None = None


@dataclass(frozen=True)
class About:
    """The metadata of a part.

    Attributes:
        window: its number, from 0.
        first_row, rows: its first row in the corpus, and its number of rows.
        last: whether the corpus ends with it.
        digest: digest of the texts.
        ids: digest of the first text's token ids, which shows whether the tokenizer is the same.
        texts, failures: numbers of rows with and without results.
        settings: the settings that the results depend on.
        seconds: scoring time.
        errors: name of the file with the failures; None: there are none.
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
class PartFiles:
    """The files of a part, before they are written.

    Attributes:
        about: the part's metadata.
        files: content by name, in the order of writing: failures first, because a part without them is incomplete.
            A name contains the window and a digest of the content.
    """

    about: About
    files: Mapping[str, bytes]


def part_files(about: About, scored: Sequence[Scored], failures: Sequence[Failure]) -> PartFiles:
    """Return the part of a window, with the file of its failures if there are any."""
    arrow, _ = load_pyarrow("a corpus study")
    files: dict[str, bytes] = {}
    if failures:
        content = _encoded(arrow.Table.from_pylist([asdict(failure) for failure in failures]), {})
        about = replace(about, errors=_name("errors", about.window, content))
        files[str(about.errors)] = content
    rows = [line for text in scored for line in _lines(text, about.settings)]
    each = len(scored[0].found.rows) if scored else 1
    content = _encoded(
        arrow.Table.from_pylist(rows, schema=_schema(arrow, about.settings)),
        {**asdict(about), "lines": len(rows)},
        max(1, GROUP // each) * each,  # the layers of a text stay together
    )
    files[_name("part", about.window, content)] = content
    return PartFiles(about, files)


def _digest(content: bytes) -> str:
    """Return the digest of a file's content, a part of its name."""
    return hashlib.sha256(content).hexdigest()[:16]


def _name(kind: str, window: int, content: bytes) -> str:
    return f"{kind}-{window:08}-{_digest(content)}.parquet"


def _encoded(table: pa.Table, header: Mapping[str, Any], group_size: int = GROUP) -> bytes:
    """Return the bytes of a Parquet file."""
    dictionaries = ["layer", "words.list.element", "tokens.list.element"]
    content: bytes = parquet_bytes(
        table, KEY, {"format": FORMAT, **header}, group_size, use_dictionary=dictionaries
    ).to_pybytes()
    return content


def _lines(scored: Scored, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a line for each row of a text."""
    text = scored.found
    words = group((text.text, text.pair), text.tokens, text.offsets, "word")
    units = [unit for unit in words if unit.offset is not None]
    word_of: list[int | None] = [None] * len(text.tokens)
    for number, unit in enumerate(units):
        for token in unit.tokens:
            word_of[token] = number
    shared = {
        **{name: getattr(text, name) for name in _TEXT},
        "row": scored.item.row,
        "words": [unit.name for unit in units],
        "word_of": word_of,
        "tags": _tags(scored.item, units),
    }
    checks = (None,) * len(text.rows) if scored.solved is None else scored.solved.rows
    for row, check in zip(text.rows, checks):
        arrays = {name: getattr(row, name).numpy() for name in FLOATS}
        if isinstance(row, ErasedRow):
            arrays |= {name: getattr(row, name).numpy() for name in ERASED_FLOATS}
        if check is not None:
            arrays |= {name: getattr(check, of).numpy() for name, of in zip(SOLVED, FLOATS)}
        # the rate of a predicted row is the one of the head's training
        rate = settings["rate"] if math.isnan(row.rate) else row.rate
        yield {**shared, **vars(row), **arrays, "layer": str(row.layer), "rate": rate}


def _tags(item: Item, units: Sequence[Unit]) -> list[str] | None:
    """Return a tag for each word: that of its part of the text between spaces, or that of the whole text."""
    if item.tags is None or isinstance(item.tags, str):
        return None if item.tags is None else [item.tags] * len(units)
    ends = [chunk.end() for chunk in re.finditer(r"\S+", item.text)]
    places = [(unit.offset[0], bisect_right(ends, unit.offset[1])) for unit in units if unit.offset]
    return ["" if segment or place >= len(ends) else item.tags[place] for segment, place in places]


def _schema(arrow: ModuleType, settings: Mapping[str, Any]) -> pa.Schema:
    floats = arrow.list_(arrow.float32())
    predicted, erased = (settings.get(name) is not None for name in ("amortised", "erased"))
    return arrow.schema(
        {
            "row": arrow.int64(),
            "layer": arrow.string(),
            **text_columns(arrow),
            "words": arrow.list_(arrow.string()),
            "word_of": arrow.list_(arrow.int32()),  # number of each token's word; null for a special token
            "tags": arrow.list_(arrow.string()),  # for each word
            "position": arrow.int64(),
            **fit_columns(arrow),
            **(dict.fromkeys(SOLVED, floats) if predicted else {}),  # null for texts that were not checked
            **({**dict.fromkeys(ERASED_FLOATS, floats), "damage": arrow.float64()} if erased else {}),
        }
    )


@dataclass(frozen=True)
class Part:
    """A complete and undamaged part.

    Attributes:
        path: of the file.
        about: its metadata.
    """

    path: Path
    about: About

    @property
    def failures(self) -> list[Failure]:
        """The rows without results.

        Raises:
            ValueError: the file that lists them is missing or damaged.
        """
        if self.about.errors is None:
            return []
        arrow, parquet = load_pyarrow("a corpus study")
        content = _whole(self.path.with_name(self.about.errors))
        if content is None:
            raise ValueError(
                f"{self.about.errors!r} beside {str(self.path)!r} is damaged or missing; run the study again to repair "
                "it"
            )
        return [Failure(**line) for line in parquet.read_table(arrow.BufferReader(content)).to_pylist()]


class Folder:
    """The parts of one study.

    A file's name contains its window and a digest of its bytes, so that damaged files are recognised without an index.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: dict[int, list[Path]] = {}  # by window, with unfinished files of a killed run
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            match = _NAME.match(file.name.removeprefix("."))
            if match:
                self._files.setdefault(int(match[2]), []).append(file)

    @classmethod
    @contextmanager
    def held(
        cls,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Folder]:
        """Lock a folder for writing, and create it if it does not exist; inside the block no other study writes to it.

        Args:
            path: of the folder.
            settings, rank, world_size: as for :func:`locked`.

        Raises:
            ImportError: pyarrow is missing.
            OSError: the folder cannot be created or written to.
            ValueError: another study is running there.
        """
        load_pyarrow("a corpus study")
        with ExitStack() as leave:
            with _explained(Path(path)):
                Path(path).mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=path).close()
                leave.enter_context(locked(Path(path), settings, rank, world_size))
            yield cls(path)  # listed under the lock, so files that another study has just written are found

    def windows(self) -> list[int]:
        """Return the numbers of the windows that have a part, complete or damaged."""
        return sorted(window for window, files in self._files.items() if any(map(_is_part, files)))

    def part(self, window: int) -> Part | None:
        """Return the part of a window; None: there is no complete one."""
        for path in filter(_is_part, self._files.get(window, [])):
            about = _about(path)
            if about is None or about.window != window:
                continue
            if about.errors is None or _whole(self.path / about.errors) is not None:
                return Part(path, about)
        return None

    def write(self, part: PartFiles) -> Part:
        """Write the part of a window, and delete older ones.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; incomplete files are ignored later.
        """
        window = part.about.window
        with _explained(self.path):
            for name, content in part.files.items():
                replace_file(self.path / name, content)
        new = [self.path / name for name in part.files]
        for path in self._files.get(window, []):
            if path not in new:
                path.unlink(missing_ok=True)
        self._files[window] = new
        return Part(new[-1], part.about)


def batches_of(parts: Iterable[Part], n_layers: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the lines of parts, a few thousand at a time, the layers of each text one after another.

    Args:
        parts: the parts.
        n_layers: number of lines of a text, which stay together.
        columns: names of the columns to read.
    """
    _, parquet = load_pyarrow("a corpus study")
    step = max(1, BATCH // n_layers) * n_layers
    for part in parts:
        # opened here, because pyarrow reads a name with a colon as a URI
        with part.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            yield from file.iter_batches(batch_size=step, columns=list(columns))


def _about(path: Path) -> About | None:
    """Return the metadata of a part; None: it is missing or damaged."""
    arrow, parquet = load_pyarrow("a corpus study")
    content = _whole(path)
    if content is None:
        return None
    try:
        metadata = parquet.read_metadata(arrow.BufferReader(content))
        header = json.loads((metadata.metadata or {})[KEY])
        version = header.pop("format")
        if version < FORMAT:
            raise ValueError(
                f"{str(path)!r} has format {version}, which an older version of this package wrote and which lacks "
                "columns: run the study again in another folder"
            )
        if version > FORMAT:
            raise ValueError(
                f"{str(path)!r} comes from a newer version of this package: pip install --upgrade interp-plugin"
            )
        return About(**header) if header.pop("lines") == metadata.num_rows else None
    except (KeyError, TypeError, arrow.ArrowException):
        return None


def _whole(path: Path) -> bytes | None:
    """Return the content of a file if it matches the digest in its name; None: it is missing or damaged."""
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_file():
        return None
    content = path.read_bytes()
    return content if _digest(content) == match[3] else None


def _is_part(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and match[1] == "part"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one sentence on why the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "make room" if full else "give a folder that can be written to"
        raise OSError(
            error.errno,
            f"cannot write to {str(path)!r} ({error.strerror}): {way_out} and run again; "
            "finished parts are kept",
        ) from error


def explanations(
    parts: Sequence[Part], layers: Sequence[Label], rows: Collection[int] | None
) -> Iterator[tuple[int, TextExplanation]]:
    """Yield row numbers and explanations of texts; rows None: of all texts."""
    labels = {str(label): label for label in layers}
    for part in parts:
        first, count = part.about.first_row, part.about.rows
        if rows is not None and not any(first <= row < first + count for row in rows):
            continue
        kind = Row if part.about.settings.get("erased") is None else ErasedRow
        columns = ["row", *_TEXT, *(field.name for field in fields(kind))]
        for batch in batches_of([part], len(labels), columns):
            table = batch.to_pylist()
            for place in range(0, len(table), len(labels)):
                some = table[place : place + len(labels)]
                if rows is None or some[0]["row"] in rows:
                    yield some[0]["row"], _restored(some, labels, kind)


def _restored(
    some: Sequence[Mapping[str, Any]], labels: Mapping[str, Label], kind: type[Row]
) -> TextExplanation:
    """Return the explanation of a text from its lines, one for each row of this kind."""
    rows = []
    for line in some:
        values = {field.name: line[field.name] for field in fields(kind)}
        for name in values.keys() & {*FLOATS, *ERASED_FLOATS}:
            values[name] = torch.tensor(values[name], dtype=torch.float32)
        rows.append(kind(**{**values, "layer": labels[line["layer"]]}))
    known = {name: some[0][name] for name in _TEXT}
    known["tokens"] = tuple(known["tokens"])
    known["offsets"] = tuple(None if offset is None else tuple(offset) for offset in known["offsets"])
    return TextExplanation(**known, rows=tuple(rows))


@contextmanager
def locked(folder: Path, settings: Mapping[str, Any], rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Lock a folder, so that no other study writes to it inside the block.

    Each process holds a lock of the operating system, which ends with the process, on a file that names its group (the
    processes with the same settings and world_size) and its rank.

    Args:
        folder: an existing folder.
        settings: of the study.
        rank, world_size: number of this process, and number of processes that share the corpus.

    Raises:
        ValueError: another study, or this rank of the same study, is running there; the message names the process.
    """
    group = hashlib.sha256(json.dumps([settings, world_size], sort_keys=True).encode()).hexdigest()[:8]
    mine = folder / f".study-{group}-{rank}.lock"
    lock = _lock(mine)
    try:  # held for milliseconds, so that processes take and check their locks one after another
        taking = _lock(folder / FOLDER_LOCK).acquire(timeout=WAIT)
    except Timeout as error:
        raise ValueError(
            f"{str(folder / FOLDER_LOCK)!r} is held by another process; wait for it, or give another folder"
        ) from error
    with ExitStack() as undo:
        with taking:
            for path in sorted(folder.glob(".study-*.lock")):
                if _is_held(path) and (path == mine or not path.name.startswith(f".study-{group}-")):
                    raise ValueError(
                        f"{_holder(path)} is running a study in {str(folder)!r}; wait for it, or give another folder"
                    )
            lock.acquire(blocking=False)
            undo.callback(lock.release)
            undo.callback(_clear, mine)
            holder = (
                f"process {os.getpid()} on {socket.gethostname()} (since {datetime.now():%Y-%m-%d %H:%M:%S})"
            )
            mine.write_text(holder, encoding="utf-8")
        yield


def _lock(path: Path) -> FileLock:
    """Return a lock whose file has the folder's permissions, so that everyone who may write there can continue."""
    return FileLock(path, mode=stat.S_IMODE(path.parent.stat().st_mode) & 0o666)


def _is_held(path: Path) -> bool:
    """Return whether a process holds this lock, and remove the file of a killed process."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _clear(path)  # safe under the folder's lock: no other process can be taking this one
    lock.release()
    return False


def _clear(path: Path) -> None:
    """Remove the file of a lock; without a process that holds it, the file locks nothing."""
    # the disk may have become read-only; that error is raised where something is written
    with suppress(OSError):
        path.unlink()


def _holder(path: Path) -> str:
    """Describe the process that holds a lock."""
    with suppress(OSError, ValueError):  # the file may be unreadable on this machine
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
