"""Parts: Parquet files of a study, one for each window of its corpus, that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.drafts import FORMAT, KEY, About, Draft, digest_of
from interp_plugin.corpus.lock import locked
from interp_plugin.corpus.stream import Failure
from interp_plugin.text.storage import check_local, load_pyarrow, replace_file

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"(part|errors)-(\d{8,})-([0-9a-f]{16})\.parquet")


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
            settings, rank, world_size: as of :func:`~interp_plugin.corpus.lock.locked`.

        Raises:
            ImportError: pyarrow is missing.
            OSError: it cannot be made or written to.
            ValueError: it is the URI of an object store; another study is at work there.
        """
        load_pyarrow("a corpus study")
        check_local(path)
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
            if about is not None and about.window == window and self._has_errors(about):
                return Part(path, about)
        return None

    def write(self, draft: Draft) -> None:
        """Write the part of a window, in place of what is there of it.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; nothing half-written counts.
        """
        window = draft.about.window
        with _explained(self.path):
            for name, content in draft.files.items():
                replace_file(self.path / name, content)
        new = [self.path / name for name in draft.files]
        for path in self._files.get(window, []):
            if path not in new:
                path.unlink(missing_ok=True)
        self._files[window] = new

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
    # opened here, for pyarrow takes a name with a colon for a URI
    with part.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
        yield from file.iter_batches(batch_size=size, columns=list(columns))


def _about(path: Path) -> About | None:
    """What a part says of itself; None: it is not whole."""
    arrow, parquet = load_pyarrow("a corpus study")
    if not _is_whole(path):
        return None
    try:
        with path.open("rb") as opened:
            metadata = parquet.read_metadata(opened)
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


def _is_whole(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    with path.open("rb") as file:
        return match is not None and digest_of(iter(partial(file.read, 1 << 20), b"")) == match[3]


def _is_part(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and match[1] == "part"


def _table(path: Path) -> pa.Table | None:
    _, parquet = load_pyarrow("a corpus study")
    if not path.is_file() or not _is_whole(path):
        return None
    with path.open("rb") as opened:
        return parquet.ParquetFile(opened).read()


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
