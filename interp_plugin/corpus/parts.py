"""Parts: Parquet files of a study, one for each window of its corpus, that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.scorer import Scored
from interp_plugin.corpus.stream import Failure, Item
from interp_plugin.explanation import TextExplanation
from interp_plugin.storage import fit_columns, load_pyarrow, replace_file, text_columns
from interp_plugin.units import Unit, group

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 2**15  # lines of a row group, about: what a reader holds at a time
FORMAT = 1  # raise it when a reader of the old format would go wrong
_KEY = b"interp_plugin_corpus"  # of the files' metadata
_NAME = re.compile(r"(part|errors)-(\d{8,})-([0-9a-f]{16})\.parquet")
_FLOATS = ("sigma", "standard_error")
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
class Part:
    """A part that was found whole.

    Attributes:
        path: of the file.
        about: what it says of itself.
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
        table = _table(self.path.with_name(self.about.errors))
        if table is None or table.num_rows != self.about.failures:
            raise ValueError(
                f"{self.about.errors!r} beside {str(self.path)!r} is damaged or gone; run the study again to mend it"
            )
        return [Failure(**line) for line in table.to_pylist()]


class Folder:
    """The parts of one study.

    A file's name holds its window and a digest of its bytes, so that what was cut off or changed is told from what is
    whole, and nothing else needs to be kept in step with it.

    Args:
        path: the folder; it need not be there yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files: dict[int, list[Path]] = {}  # of each window, drafts of a killed run too
        for file in sorted(self.path.iterdir()) if self.path.is_dir() else []:
            match = _NAME.match(file.name.removeprefix("."))
            if match:
                self._files.setdefault(int(match[2]), []).append(file)

    def prepare(self) -> None:
        """Make the folder, and try to write in it.

        Raises:
            ImportError: pyarrow is missing.
            OSError: it cannot be made or written to.
        """
        load_pyarrow("a corpus study")
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.path).close()

    def windows(self) -> list[int]:
        """Numbers of the windows that have a part, whole or not."""
        return sorted(window for window, files in self._files.items() if any(map(_is_part, files)))

    def part(self, window: int) -> Part | None:
        """The whole part of a window; None: there is none."""
        for path in filter(_is_part, self._files.get(window, [])):
            about = _about(path)
            if about is not None and about.window == window and self._has_errors(about):
                return Part(path, about)
        return None

    def write(self, about: About, scored: Sequence[Scored], failures: Sequence[Failure]) -> Part:
        """Write the part of a window, its failures first: without the part they count for nothing.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; nothing half-written counts.
        """
        arrow, _ = load_pyarrow("a corpus study")
        errors = None
        if failures:
            lines = [asdict(failure) for failure in failures]
            table = arrow.Table.from_pylist(lines, schema=_error_schema(arrow))
            errors = self._save("errors", about.window, table, {})
        about = replace(about, errors=errors)
        rows = [line for text in scored for line in _lines(text)]
        predicted = about.settings.get("amortised") is not None
        table = arrow.Table.from_pylist(rows, schema=_schema(arrow, predicted))
        each = len(scored[0].rates) if scored else 1
        group_size = max(1, GROUP // each) * each  # of whole texts
        header = {**asdict(about), "lines": len(rows)}
        name = self._save("part", about.window, table, header, group_size)
        new = [self.path / file for file in (name, errors) if file is not None]
        for path in self._files.get(about.window, []):
            if path not in new:
                path.unlink(missing_ok=True)
        self._files[about.window] = new
        return Part(self.path / name, about)

    def _save(
        self, kind: str, window: int, table: pa.Table, header: Mapping[str, Any], group_size: int = GROUP
    ) -> str:
        arrow, parquet = load_pyarrow("a corpus study")
        sink = arrow.BufferOutputStream()
        with parquet.ParquetWriter(
            sink,
            table.schema,
            compression="zstd",
            store_schema=False,
            use_dictionary=["layer", "words.list.element", "tokens.list.element"],
            use_byte_stream_split=[f"{name}.list.element" for name in _FLOATS],
        ) as writer:
            writer.write_table(table, row_group_size=group_size)
            writer.add_key_value_metadata({_KEY: json.dumps({"format": FORMAT, **header})})
        content = sink.getvalue()
        digest = hashlib.sha256(memoryview(content)).hexdigest()[:16]
        name = f"{kind}-{window:08}-{digest}.parquet"
        with _explained(self.path):
            replace_file(self.path / name, content)
        return name

    def _has_errors(self, about: About) -> bool:
        if about.errors is None:
            return about.failures == 0
        path = self.path / about.errors
        return path.is_file() and _is_whole(path)


def lines(part: Part, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The lines of a part, so many at a time: of each text, its layers one after another.

    Args:
        part: a whole one.
        columns: their names.
        size: lines at most in a batch; a multiple of the number of layers keeps texts together.
    """
    _, parquet = load_pyarrow("a corpus study")
    with parquet.ParquetFile(part.path) as file:
        yield from file.iter_batches(batch_size=size, columns=list(columns))


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
        arrays = {name: getattr(row, name).numpy() for name in _FLOATS}
        if check is not None:
            arrays |= {name: getattr(check, of).numpy() for name, of in zip(SOLVED, _FLOATS)}
        yield {**shared, **vars(row), **arrays, "layer": str(row.layer), "rate": rate}


def _words(text: TextExplanation) -> tuple[Unit, ...]:
    return group((text.text, text.pair), text.tokens, text.offsets, "word")


def _tags(item: Item, units: Sequence[Unit]) -> list[str] | None:
    """A tag for each word: that of what stands between the spaces around it, or of the whole text."""
    if item.tags is None or isinstance(item.tags, str):
        return None if item.tags is None else [item.tags] * len(units)
    ends = [chunk.end() for chunk in re.finditer(r"\S+", item.text)]
    places = [(unit.offset[0], bisect_right(ends, unit.offset[1])) for unit in units if unit.offset]
    return ["" if segment or place >= len(ends) else item.tags[place] for segment, place in places]


def _about(path: Path) -> About | None:
    """What a part says of itself; None: it is not whole."""
    arrow, parquet = load_pyarrow("a corpus study")
    if not _is_whole(path):
        return None
    try:
        metadata = parquet.read_metadata(path)
        header = json.loads((metadata.metadata or {})[_KEY])
        if header.pop("format") > FORMAT:
            raise ValueError(
                f"{str(path)!r} comes from a newer version of this package: pip install --upgrade interp-plugin"
            )
        return About(**header) if header.pop("lines") == metadata.num_rows else None
    except (KeyError, TypeError, arrow.ArrowException):
        return None


def _is_whole(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(partial(file.read, 1 << 20), b""):
            digest.update(chunk)
    return match is not None and digest.hexdigest()[:16] == match[3]


def _is_part(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and match[1] == "part"


def _table(path: Path) -> pa.Table | None:
    _, parquet = load_pyarrow("a corpus study")
    return parquet.read_table(path) if path.is_file() and _is_whole(path) else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What stands in the way of writing, as a sentence."""
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
            "rate": arrow.float64(),
            **fit_columns(arrow),
            **(dict.fromkeys(SOLVED, floats) if predicted else {}),  # null where the solver did not check
        }
    )


def _error_schema(arrow: ModuleType) -> pa.Schema:
    return arrow.schema({"row": arrow.int64(), "reason": arrow.string(), "beginning": arrow.string()})
