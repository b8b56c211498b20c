"""The journal of a study (a checkpoint log on disk), and the state of the study's results."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from interp_plugin import files
from interp_plugin.files import check_local, replace_file

if TYPE_CHECKING:
    from interp_plugin.comparison.study import Example

FORMAT = 1  # increase it when an older version would misread the file
NAME = "journal.jsonl"


@dataclass(frozen=True)
class Entry:
    """The results of one method for one question about one text.

    Attributes:
        text: digest of the text and its evaluation (:class:`~interp_plugin.comparison.study.Example`).
        question: "class" or a layer.
        method: name of the method.
        values: metric -> its number; None where it is not defined for the text.
        scores: the method's scores of the tokens; empty if an earlier entry has them.
        errors: metric -> why it has no number; "" -> why the method has no scores.
        target: number of the class that was explained; None for a state.
    """

    text: str
    question: str
    method: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    target: int | None = None


class Journal:
    """A file that stores the results of one study, one line of JSON each, flushed to the disk.

    Each line has a checksum.  A line that was cut off because the process or machine died is dropped.

    Args:
        path: path of the file.
        file: its descriptor, open for appending.

    Examples::
        >>> import tempfile
        >>> entry = Entry("9f3c", "class", "random", {"log-odds": -0.5}, (0.25, -1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal.held(folder, {"seed": 0}, {"method": {"random": {"signed": False}}}) as journal:
        ...         start = journal.append(entry)
        ...     with Journal.held(folder, {"seed": 0}, {}) as journal:
        ...         [found == entry for _, found in journal.entries()]
        [True]
    """

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    @classmethod
    @contextmanager
    def held(
        cls,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, Mapping[str, Any]]],
    ) -> Iterator[Journal]:
        """Open the journal in a folder and lock it against other processes inside the block.

        Args:
            folder: created if it does not exist.
            settings: what all results depend on.
            parts: kind ("method", "metric") -> name -> description; a later run may add parts, but not use a name for
                another description.

        Raises:
            ValueError: the folder holds another study, is in use, or its journal is damaged.
        """
        folder = Path(folder)
        check_local(folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output {str(folder)!r} is a file; give a folder, which need not exist")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "journal.lock")  # the operating system releases it when the process ends
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(
                f"another process is running a study in {str(folder)!r}; wait for it, or give another folder"
            ) from error
        with ExitStack() as leave:
            leave.callback(lock.release)
            path = folder / NAME
            if not path.exists() or not path.stat().st_size:
                replace_file(path, _line({"format": FORMAT, "settings": settings}))
            file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
            leave.callback(os.close, file)
            journal = cls(path, file)
            journal._resume(settings, parts)
            yield journal

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield the position in the file and the content of each entry, oldest first.

        Raises:
            ValueError: a line is damaged.
        """
        for start, _, value in self._lines():
            if "text" in value:
                yield start, _entry(value)

    def entry_at(self, start: int) -> Entry:
        """Read the entry that begins at this position."""
        with self.path.open("rb") as file:
            file.seek(start)
            value = _read(file.readline())
        assert value is not None  # entries() has read it
        return _entry(value)

    def append(self, entry: Entry) -> int:
        """Write an entry, flush it to the disk, and return its position.

        Raises:
            OSError: the entry cannot be written, for example to a full disk; earlier entries stay valid.
        """
        return self._write(vars(entry))

    def _resume(self, settings: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Check that the file belongs to this study, drop a line that was cut off, and record new parts."""
        known: dict[tuple[str, str], Any] = {}
        end = 0
        for start, end, value in self._lines():  # noqa: B007
            if start == 0:
                self._check(value, settings)
            elif "part" in value:
                known[value["part"], value["name"]] = value["about"]
        os.truncate(self.path, end)
        for kind, some in parts.items():
            for name, about in some.items():
                if (kind, name) not in known:
                    self._write({"part": kind, "name": name, "about": about})
                elif found := differences(known[kind, name], _read_back(about)):
                    raise ValueError(
                        f"{str(self.path.parent)!r} has another {kind} with the name {name!r} ({'; '.join(found)}); "
                        "give this one another name, or use another folder"
                    )

    def _check(self, header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        name = str(self.path.parent)
        if header["format"] > FORMAT:
            raise ValueError(
                f"{name!r} has format {header['format']}, and this version reads up to {FORMAT}: "
                "pip install --upgrade interp-plugin"
            )
        found = differences(header["settings"], _read_back(settings))
        if found:
            raise ValueError(
                f"{name!r} holds another study ({'; '.join(found)}), whose numbers are not comparable; give another "
                "folder, or use the settings of that study"
            )

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield the start, end and content of each line, except a last line that was cut off."""
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
                        f"line {number} of {str(self.path)!r} is damaged; delete that line, and its results are "
                        "computed again"
                    )
                start = end

    def _write(self, value: Mapping[str, Any]) -> int:
        start = os.lseek(self._file, 0, os.SEEK_END)
        line = _line(value)
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except BaseException:
            os.truncate(self._file, start)
            raise
        return start


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two settings.

    Examples::
        >>> differences({"seed": 0, "versions": {"torch": "2.12"}}, {"seed": 0, "versions": {"torch": "2.13"}})
        ["versions.torch is '2.12' there and '2.13' here"]
    """
    return [f"{name} is {old!r} there and {new!r} here" for name, old, new in files.differences(there, here)]


def _entry(value: dict[str, Any]) -> Entry:
    return Entry(**{**value, "scores": tuple(value["scores"])})


def _read_back(value: Any) -> Any:
    """Return a value as it is after writing and reading it."""
    return json.loads(json.dumps(value))


def _line(value: Mapping[str, Any]) -> bytes:
    """Encode a JSON object whose first member is the checksum of the others."""
    others = json.dumps(value, allow_nan=False, separators=(",", ":"))[1:].encode()
    return _head(others) + others + b"\n"


def _read(line: bytes) -> dict[str, Any] | None:
    """Decode a line that `_line` wrote; None if the line is damaged."""
    size = len(_head(b""))
    others = line[size:-1]
    if not line.endswith(b"\n") or line[:size] != _head(others):
        return None
    value: dict[str, Any] = json.loads(b"{" + others)
    return value


def _head(others: bytes) -> bytes:
    return b'{"crc":"%08x",' % zlib.crc32(others)


_NOT_APPLICABLE, _MISSING, _KNOWN, _FAILED = range(4)
Cell = tuple[int, int, int]
"""Indices of a text, a question and a method."""


class StudyState:
    """The known, missing and failed results of a study: N texts, Q questions, M methods, K metrics.

    Equal texts share their results.

    Args:
        examples: the texts.
        questions: names of the questions, "class" for the class.
        methods, metrics: their names.
        applies: which metric evaluates which method for which question, (Q, M, K), bool.
        keep_scores: keep the scores of tokens too.

    Attributes:
        values: (N, Q, M, K), NaN where there is no number.
        scores_at: position of the scores in the journal, (N, Q, M), -1 where the journal has none.
        targets: number of the class that was explained, (N,), -1 where it is not known yet.
        errors: text, question, method -> metric ("" for the method itself) -> why it has no number.
        scores: text, question, method -> (T,), float32.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        questions: Sequence[str],
        methods: Sequence[str],
        metrics: Sequence[str],
        applies: NDArray[np.bool_],
        keep_scores: bool = False,
    ) -> None:
        shape = (len(examples), len(questions), len(methods), len(metrics))
        self.values = np.full(shape, np.nan)
        self.scores_at = np.full(shape[:3], -1)
        self.targets = np.array([-1 if example.target is None else example.target for example in examples])
        self.errors: dict[Cell, Mapping[str, str]] = {}
        self.scores: dict[Cell, NDArray[np.float32]] = {}
        self._state = np.broadcast_to(np.where(applies, _MISSING, _NOT_APPLICABLE), shape).astype(np.int8)
        self._keep_scores = keep_scores
        self._questions, self._methods, self._metrics = (
            {name: number for number, name in enumerate(names)} for names in (questions, methods, metrics)
        )
        self.digests = [[example.digest(name == "class") for name in questions] for example in examples]
        self._texts: dict[tuple[int, str], list[int]] = {}
        for number, digests in enumerate(self.digests):
            for question, digest in enumerate(digests):
                self._texts.setdefault((question, digest), []).append(number)

    def put(self, entry: Entry, at: int = -1) -> int:
        """Add an entry, which begins at position ``at`` of the journal; return the number of texts that share it."""
        question, method = self._questions.get(entry.question), self._methods.get(entry.method)
        if question is None or method is None:
            return 0
        texts = self._texts.get((question, entry.text), [])
        for text in texts:
            cell = (text, question, method)
            self._put(cell, entry)
            if entry.target is not None:
                self.targets[text] = entry.target
            if entry.scores:
                self.scores_at[cell] = at
                if self._keep_scores:
                    self.scores[cell] = np.array(entry.scores, np.float32)
        return len(texts)

    def _put(self, cell: Cell, entry: Entry) -> None:
        state, values = self._state[cell], self.values[cell]  # (K,) each, array views
        errors = dict(self.errors.pop(cell, {}))
        if "" in errors and entry.scores:  # it failed earlier and works now
            state[state == _FAILED] = _MISSING
            errors = {}
        if "" in entry.errors:
            state[state != _NOT_APPLICABLE] = _FAILED
        for name, value in {**dict.fromkeys(entry.errors, np.nan), **entry.values}.items():
            metric = self._metrics.get(name)
            if metric is not None and state[metric] != _NOT_APPLICABLE:
                values[metric] = np.nan if value is None else value
                state[metric] = _KNOWN if name in entry.values else _FAILED
        errors = {name: why for name, why in errors.items() if name not in entry.values}
        errors |= {name: why for name, why in entry.errors.items() if not name or name in self._metrics}
        if errors:
            self.errors[cell] = errors

    def missing(self) -> Iterator[tuple[Cell, list[int]]]:
        """Yield the trials to run: indices of text, question and method, and of the metrics that are missing."""
        for cell in np.ndindex(*self.scores_at.shape):
            metrics = np.flatnonzero(self._state[cell] == _MISSING)
            if len(metrics):
                yield cell, metrics.tolist()

    def count_missing(self) -> int:
        """Return the number of trials to run."""
        return int((self._state == _MISSING).any(-1).sum())

    def forget_failures(self) -> None:
        """Mark all failed results as missing."""
        self._state[self._state == _FAILED] = _MISSING
        self.errors.clear()

    def has_worked(self, question: int, method: int, metric: int | None = None) -> bool:
        """Return whether the method (and the metric) has a result for this question on any text."""
        states = self._state[:, question, method, slice(None) if metric is None else metric]
        return bool((states == _KNOWN).any())

    def leave_out(self, question: int, method: int, metric: int | None = None) -> int:
        """Leave out the method, or one metric of it, for this question; return the number of trials that this saves."""
        states = self._state[:, question, method]  # (N, K), an array view
        before = (states == _MISSING).any(1).sum()
        states[:, slice(None) if metric is None else metric] = _NOT_APPLICABLE
        return int(before - (states == _MISSING).any(1).sum())
