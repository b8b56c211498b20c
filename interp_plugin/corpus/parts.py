"""The folder of a study: a Parquet file for each window of the corpus, written whole or not at all, and its locks."""

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

GROUP = 2**15  # lines of a row group, about: a reader holds one at a time
BATCH = 4096  # lines that the statistics hold in memory at a time
FORMAT = 2  # raise it when a reader of the old format would go wrong
KEY = b"interp_plugin_corpus"  # of the files' metadata
SOLVED = ("solved_sigma", "solved_error")
"""Columns of a part whose numbers were predicted: the solver's for the texts that it checked."""
# held while the other locks are looked at; a dot hides it from readers of Parquet
FOLDER_LOCK = ".study.lock"
WAIT = 60.0  # seconds for the folder's lock, which others hold for milliseconds
_TEXT = tuple(field.name for field in fields(TextExplanation) if field.name not in ("rows", "words", "units"))
_NAME = re.compile(r"(part|errors)-(\d{8,})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True)
class Scored:
    """A text with its numbers.

    Attributes:
        item: the text.
        found: its explanation.
        solved: the solver's explanation, where a head predicted ``found`` and the text is one of those to check.
    """

    item: Item
    found: TextExplanation
    solved: TextExplanation | None = None


@dataclass(frozen=True)
class About:
    """The metadata of a part.

    Attributes:
        window: its number, from 0.
        first_row, rows: the rows of the corpus that it is of, and how many.
        last: whether the corpus ends with it.
        digest: of the texts.
        ids: digest of the first text's token ids: another tokenizer gives others.
        texts, failures: how many rows have numbers, and how many have none.
        settings: that its numbers depend on.
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
class PartFiles:
    """The files of a part that are not written yet.

    Attributes:
        about: the part's metadata.
        files: content by name, in the order to write them: failures first, because a part counts as whole only with
            them.  A name holds the window and a digest of the content.
    """

    about: About
    files: Mapping[str, bytes]


def part_files(about: About, scored: Sequence[Scored], failures: Sequence[Failure]) -> PartFiles:
    """The part of a window, and the file of its failures where there are any."""
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
        max(1, GROUP // each) * each,  # of whole texts
    )
    files[_name("part", about.window, content)] = content
    return PartFiles(about, files)


def _digest(content: bytes) -> str:
    """The digest of a file's content that stands in its name."""
    return hashlib.sha256(content).hexdigest()[:16]


def _name(kind: str, window: int, content: bytes) -> str:
    return f"{kind}-{window:08}-{_digest(content)}.parquet"


def _encoded(table: pa.Table, header: Mapping[str, Any], group_size: int = GROUP) -> bytes:
    """The bytes of a Parquet file."""
    dictionaries = ["layer", "words.list.element", "tokens.list.element"]
    content: bytes = parquet_bytes(
        table, KEY, {"format": FORMAT, **header}, group_size, use_dictionary=dictionaries
    ).to_pybytes()
    return content


def _lines(scored: Scored, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each row of a text."""
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
        # a predicted row has the rate that its head was trained for
        rate = settings["rate"] if math.isnan(row.rate) else row.rate
        yield {**shared, **vars(row), **arrays, "layer": str(row.layer), "rate": rate}


def _tags(item: Item, units: Sequence[Unit]) -> list[str] | None:
    """A tag for each word: that of what stands between the spaces around it, or of the whole text."""
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
            "word_of": arrow.list_(arrow.int32()),  # of each token; null for a special one
            "tags": arrow.list_(arrow.string()),  # of each word
            "position": arrow.int64(),
            **fit_columns(arrow),
            **(dict.fromkeys(SOLVED, floats) if predicted else {}),  # null where the solver did not check
            **({**dict.fromkeys(ERASED_FLOATS, floats), "damage": arrow.float64()} if erased else {}),
        }
    )


@dataclass(frozen=True)
class Part:
    """A part that was found whole.

    Attributes:
        path: of the file.
        about: its metadata.
    """

    path: Path
    about: About

    @property
    def failures(self) -> list[Failure]:
        """The rows without numbers.

        Raises:
            ValueError: the file that lists them is gone or damaged.
        """
        if self.about.errors is None:
            return []
        arrow, parquet = load_pyarrow("a corpus study")
        content = _whole(self.path.with_name(self.about.errors))
        if content is None:
            raise ValueError(
                f"{self.about.errors!r} beside {str(self.path)!r} is damaged or gone; run the study again to mend it"
            )
        return [Failure(**line) for line in parquet.read_table(arrow.BufferReader(content)).to_pylist()]


class Folder:
    """The parts of one study.

    A file's name holds its window and a digest of its bytes, which tells a damaged file from a whole one without any
    index.

    Args:
        path: the folder; it need not be there yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: dict[int, list[Path]] = {}  # of each window; unfinished ones of a killed run too
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
        """A folder to write to, made where it is not there, that no other study writes to inside the block.

        Args:
            path: of the folder.
            settings, rank, world_size: as of :func:`locked`.

        Raises:
            ImportError: pyarrow is missing.
            OSError: it cannot be made or written to.
            ValueError: another study is at work there.
        """
        load_pyarrow("a corpus study")
        with ExitStack() as leave:
            with _explained(Path(path)):
                Path(path).mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=path).close()
                leave.enter_context(locked(Path(path), settings, rank, world_size))
            yield cls(path)  # listed now: what another study wrote before it let go is there

    def windows(self) -> list[int]:
        """Numbers of the windows that have a part, whole or not."""
        return sorted(window for window, files in self._files.items() if any(map(_is_part, files)))

    def part(self, window: int) -> Part | None:
        """The whole part of a window; None: there is none."""
        for path in filter(_is_part, self._files.get(window, [])):
            about = _about(path)
            if about is None or about.window != window:
                continue
            if about.errors is None or _whole(self.path / about.errors) is not None:
                return Part(path, about)
        return None

    def write(self, part: PartFiles) -> Part:
        """Write the part of a window, in place of an older one.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; nothing half-written counts.
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
    """The lines of some parts, a few thousand at a time: of each text, its layers one after another.

    Args:
        parts: whole ones.
        n_layers: lines of a text, which stay together.
        columns: names of those to read.
    """
    _, parquet = load_pyarrow("a corpus study")
    step = max(1, BATCH // n_layers) * n_layers
    for part in parts:
        # opened here, for pyarrow takes a name with a colon for a URI
        with part.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            yield from file.iter_batches(batch_size=step, columns=list(columns))


def _about(path: Path) -> About | None:
    """The metadata of a part; None: it is not whole."""
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
                f"{str(path)!r} has format {version}, which lacks input_std, and information kept cannot be counted "
                "without it: run the study again in another folder"
            )
        if version > FORMAT:
            raise ValueError(
                f"{str(path)!r} comes from a newer version of this package: pip install --upgrade interp-plugin"
            )
        return About(**header) if header.pop("lines") == metadata.num_rows else None
    except (KeyError, TypeError, arrow.ArrowException):
        return None


def _whole(path: Path) -> bytes | None:
    """The content of a file, where its digest is that of its name; None: it is gone or damaged."""
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
    """Say in one sentence why the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "make room" if full else "give a folder that can be written to"
        raise OSError(
            error.errno,
            f"cannot write to {str(path)!r} ({error.strerror}): {way_out} and run again; "
            "the parts that are finished stay",
        ) from error


def explanations(
    parts: Sequence[Part], layers: Sequence[Label], rows: Collection[int] | None
) -> Iterator[tuple[int, TextExplanation]]:
    """Some texts in full, each after the number of its row; rows None: all."""
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
    """The explanation of a text from its lines, each of which is a row of this kind."""
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
    """Inside the block no other study writes to a folder.

    Each process holds a lock of the system, which dies with it, on a file that names its group (those with the same
    settings and number of processes) and its rank in it.

    Args:
        folder: that is there.
        settings: of the study.
        rank, world_size: this process and how many share the corpus.

    Raises:
        ValueError: another study, or the same process of this one, is at work there; the message says whose.
    """
    group = hashlib.sha256(json.dumps([settings, world_size], sort_keys=True).encode()).hexdigest()[:8]
    mine = folder / f".study-{group}-{rank}.lock"
    lock = _lock(mine)
    try:  # for milliseconds, so that no process sees the locks of others half taken
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
    """Anyone who can write to the folder can write its file, and so go on with the study."""
    return FileLock(path, mode=stat.S_IMODE(path.parent.stat().st_mode) & 0o666)


def _is_held(path: Path) -> bool:
    """Whether a process holds this lock; the file of a process that was killed is removed."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _clear(path)  # under the folder's lock, so no other process can be about to take it
    lock.release()
    return False


def _clear(path: Path) -> None:
    """Remove the file of a lock, which is no lock without a process that holds it."""
    # the disk may have become read-only, which is an error where something is written
    with suppress(OSError):
        path.unlink()


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    with suppress(OSError, ValueError):  # it may not be readable here
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
