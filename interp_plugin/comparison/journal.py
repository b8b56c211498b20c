"""The journal of a study: every result is on the disk before the next one is begun."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from interp_plugin import fingerprint
from interp_plugin.text.storage import check_local, replace_file

FORMAT = 1  # raise it when a reader of the old format would go wrong
NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """What became of one method's answer to one question about one text.

    Attributes:
        text: digest of what was asked about (:class:`~interp_plugin.comparison.asked.Asked`).
        question: "class" or a layer.
        method: its name.
        values: metric -> its number; None where it does not judge such a text.
        scores: of the tokens, as the method gave them; empty where they stand in an earlier entry.
        errors: metric -> why it has no number; "" -> why the method has no scores.
        target: number of the class that was explained; None of a state.
    """

    text: str
    question: str
    method: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    target: int | None = None


class Journal:
    """A folder that keeps the results of one study, a line of JSON each, written through to the disk.

    Used as a context manager: nobody else can write there inside the block.  A line that was being written
    when the process or the machine died is dropped; each line carries a checksum.

    Args:
        folder: made if it is not there.
        settings: what all its numbers depend on.
        parts: kind ("method", "metric") -> name -> what it is; they may be others than last time, but
            not the same name for another thing.

    Raises:
        ValueError: (on entering) the folder holds another study, is in use, or is damaged.

    Examples::
        >>> import tempfile
        >>> entry = Entry("9f3c", "class", "random", {"log-odds": -0.5}, (0.25, -1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(folder, {"seed": 0}, {"method": {"random": {"signed": False}}}) as journal:
        ...         start = journal.append(entry)
        ...     with Journal(folder, {"seed": 0}, {}) as journal:
        ...         [found == entry for _, found in journal.entries()]
        [True]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, Mapping[str, Any]]],
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self._settings = json.loads(json.dumps(settings))  # as they will come back
        self._parts = parts
        self._lock = FileLock(self.folder / "journal.lock")  # the system's own: it dies with the process
        self._file = -1

    def __enter__(self) -> Journal:
        check_local(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"output {str(self.folder)!r} is a file; give a folder, which need not be there")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(
                f"another process is running a study in {str(self.folder)!r}; wait for it, or give another folder"
            ) from error
        with ExitStack() as undo:
            undo.callback(self._close)
            self._open()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Where each entry begins in the file, and what it says, oldest first.

        Raises:
            ValueError: a line is damaged.
        """
        for start, _, value in self._lines():
            if "text" in value:
                yield start, _entry(value)

    def entry_at(self, start: int) -> Entry:
        """The entry that begins there."""
        with self.path.open("rb") as file:
            file.seek(start)
            value = _read(file.readline())
        assert value is not None  # entries() has read it
        return _entry(value)

    def append(self, entry: Entry) -> int:
        """Write an entry through to the disk; returns where it begins.

        Raises:
            OSError: the disk is full, say; what was there before stays good.
        """
        return self._write({**vars(entry), "values": dict(entry.values), "errors": dict(entry.errors)})

    def _open(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            replace_file(self.path, _line({"format": FORMAT, "settings": self._settings}))
        known: dict[tuple[str, str], Any] = {}
        sound = 0
        for start, sound, value in self._lines():  # noqa: B007
            if start == 0:
                self._check(value)
            elif "part" in value:
                known[value["part"], value["name"]] = value["about"]
        os.truncate(self.path, sound)  # a line that was cut off
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        for kind, parts in self._parts.items():
            for name, about in parts.items():
                self._declare(kind, name, json.loads(json.dumps(about)), known.get((kind, name)))

    def _check(self, header: Mapping[str, Any]) -> None:
        name = str(self.folder)
        if header["format"] > FORMAT:
            raise ValueError(
                f"{name!r} has format {header['format']}, and this version reads up to {FORMAT}: "
                "pip install --upgrade interp-plugin"
            )
        found = differences(header["settings"], self._settings)
        if found:
            raise ValueError(
                f"{name!r} holds another study ({'; '.join(found)}), and the numbers of two do not compare; give "
                "another folder, or the settings of that one"
            )

    def _declare(self, kind: str, name: str, about: Any, before: Any) -> None:
        """Note what a name stands for, or see that it is what it was."""
        if before is None:
            self._write({"part": kind, "name": name, "about": about})
            return
        found = differences(before, about)
        if found:
            raise ValueError(
                f"{str(self.folder)!r} has another {kind} of the name {name!r} ({'; '.join(found)}); give this one "
                "another name, or another folder"
            )

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Start, end and content of each line, but for a last one that was cut off."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            for number, line in enumerate(file, 1):
                value, end = _read(line), start + len(line)
                if number == 1 and "format" not in (value or {}):
                    raise ValueError(
                        f"{str(self.path)!r} is not the journal of a study, or its first line is damaged; give another "
                        "folder"
                    )
                if value is not None:
                    yield start, end, value
                elif end < size:
                    raise ValueError(
                        f"line {number} of {str(self.path)!r} is damaged; delete that line, and what it held is "
                        "computed again"
                    )
                start = end

    def _write(self, value: Mapping[str, Any]) -> int:
        start = os.lseek(self._file, 0, os.SEEK_END)
        line = _line(value)
        with ExitStack() as undo:
            undo.callback(os.truncate, self._file, start)
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
            undo.pop_all()
        return start

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two settings do not share, in words.

    Examples::
        >>> differences({"seed": 0, "versions": {"torch": "2.12"}}, {"seed": 0, "versions": {"torch": "2.13"}})
        ["versions.torch is '2.12' there and '2.13' here"]
    """
    return [
        f"{name} is {old!r} there and {new!r} here" for name, old, new in fingerprint.differences(there, here)
    ]


def _entry(value: Mapping[str, Any]) -> Entry:
    return Entry(
        text=value["text"],
        question=value["question"],
        method=value["method"],
        values=value["values"],
        scores=tuple(value["scores"]),
        errors=value["errors"],
        target=value["target"],
    )


def _line(value: Mapping[str, Any]) -> bytes:
    """An object of JSON whose first member is the checksum of the others."""
    others = json.dumps(value, allow_nan=False, separators=(",", ":"))[1:].encode()
    return _head(others) + others + b"\n"


def _read(line: bytes) -> dict[str, Any] | None:
    """What `_line` wrote; None: the line is not whole."""
    size = len(_head(b""))
    others = line[size:-1]
    if not line.endswith(b"\n") or line[:size] != _head(others):
        return None
    value: dict[str, Any] = json.loads(b"{" + others)
    return value


def _head(others: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(others)
