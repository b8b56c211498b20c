"""Writing: files of this machine, whole or not at all, in the place of others or into pipes and devices."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_BINARY = getattr(os, "O_BINARY", 0)  # of Windows


def replace_file(path: str | os.PathLike[str], data: Any) -> None:
    """Write bytes so that a reader, also after a crash, finds either the old file or the whole new one.

    Links are followed, and a file that was there keeps its mode and, where that is allowed, its owner.  What is no
    regular file (a pipe, a device, /dev/stdout) and the file that standard output goes to are written to as they are.

    Raises:
        ValueError: the path is a URI.
        OSError: it cannot be written; a regular file that was there stays as it was.
    """
    check_local(path)
    found = _stat(path)
    if found is not None and not _is_replaceable(found):
        _write_into(path, found, data)
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # same folder, so same file system
    # a draft of what others may not read must not be readable before it has the mode of the old file
    created = os.open(
        draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666 if found is None else 0o600
    )
    try:
        with open(created, "wb") as file:
            if found is not None:
                _keep_access(draft, found)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the new name may be lost with the power
        finally:
            os.close(folder)


def check_output(path: str | os.PathLike[str]) -> None:
    """See that `replace_file` can write there, before the work is done that it is to hold.

    Raises:
        ValueError: the path is a URI, or a folder.
        OSError: no file can be made there, or the pipe or device cannot be written to.
    """
    check_local(path)
    if os.path.isdir(path):
        raise ValueError(f"cannot write {os.fspath(path)!r}: it is a folder; give the name of a file")
    found = _stat(path)
    if found is None or _is_replaceable(found):
        TemporaryFile(dir=Path(os.path.realpath(path)).parent).close()
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def check_local(path: str | os.PathLike[str]) -> None:
    """See that an output path is one of this machine's file systems; a name with a colon, such as run:1, is.

    Raises:
        ValueError: it is the URI of an object store, which files cannot be written to.

    Examples::
        >>> check_local("run:1/part.parquet")
        >>> check_local("s3://bucket/study")
        Traceback (most recent call last):
            ...
        ValueError: 's3://bucket/study' is a URI, and results go to a file system of this machine: give a path on it
    """
    # pathlib makes one slash of two, so one is enough here; a single letter is a drive of Windows
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)!r} is a URI, and results go to a file system of this machine: give a path on it"
        )


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Of what a path leads to; None: nothing is there."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_replaceable(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and _own_stream(found) is None


def _own_stream(found: os.stat_result) -> int | None:
    """The descriptor of standard output or error that goes to this file: another in its place would take no more."""
    for descriptor in (1, 2):
        try:
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
        except OSError:  # closed
            continue
    return None


def _write_into(path: str | os.PathLike[str], found: os.stat_result, data: Any) -> None:
    """Write to what cannot be replaced; through our own descriptor where there is one, which keeps its position."""
    descriptor = _own_stream(found)
    if descriptor is not None:
        sys.stdout.flush()
        sys.stderr.flush()
    with open(path if descriptor is None else os.dup(descriptor), "wb") as file:
        file.write(data)


def _keep_access(draft: Path, found: os.stat_result) -> None:
    """Give a new file the owner and the mode of the one whose place it takes."""
    if hasattr(os, "chown") and (found.st_uid, found.st_gid) != (os.getuid(), os.getgid()):
        with suppress(PermissionError):  # only root may give files away
            os.chown(draft, found.st_uid, found.st_gid)
    os.chmod(draft, stat.S_IMODE(found.st_mode))
