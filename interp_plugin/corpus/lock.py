"""Lock: one study at a time writes to a folder; the processes that share its corpus share it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

DOOR = ".study.lock"  # held while the other locks are looked at; names with a dot are passed over by readers of Parquet
WAIT = 60.0  # seconds for those at the door, who need milliseconds


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
    with ExitStack() as undo:
        with _door(folder):
            for path in sorted(folder.glob(".study-*.lock")):
                if _is_held(path) and (path == mine or not path.name.startswith(f".study-{group}-")):
                    raise ValueError(
                        f"{_holder(path)} is running a study in {str(folder)!r}; wait for it, or give another folder"
                    )
            lock.acquire(blocking=False)
            undo.callback(lock.release)
            undo.callback(_clear, mine)
            here = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            }
            mine.write_text(json.dumps(here), encoding="utf-8")
        yield


@contextmanager
def _door(folder: Path) -> Iterator[None]:
    """One process at a time, for a moment: so that none sees the locks of others half taken."""
    door = _lock(folder / DOOR)
    try:
        door.acquire(timeout=WAIT)
    except Timeout as error:
        raise ValueError(
            f"{str(folder / DOOR)!r} is held by another process; wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        door.release()


def _lock(path: Path) -> FileLock:
    """Its file can be written by those who can write to the folder: any of them may go on with the study."""
    return FileLock(path, mode=stat.S_IMODE(path.parent.stat().st_mode) & 0o666)


def _is_held(path: Path) -> bool:
    """Whether a process holds this lock; what one that was killed left behind is cleared away."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _clear(path)  # held here, behind the door, so nobody else can be about to take it
    lock.release()
    return False


def _clear(path: Path) -> None:
    """Remove the file of a lock, which is no lock without a process that holds it."""
    with suppress(OSError):  # the disk may have become read-only, which is told where it matters
        path.unlink()


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    # it may be being written, or not be readable here
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    return "another process"
