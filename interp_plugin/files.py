"""Files: written whole or not at all, with a digest of their bytes, and what stored numbers depend on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp_plugin.optional import load

if TYPE_CHECKING:
    pass

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


BLANK = b"0" * 64  # stands in the place of the digest while that is computed
TRIED = 100  # seals at most: each costs a reading of the file
_SEAL = re.compile(rb"interp-plugin sha256 ([0-9a-f]{64})")


def blank_seal() -> str:
    """A place for a seal, which no other file has: to be written once into the file that `sealed` then gets.

    Examples::
        >>> blank = blank_seal()
        >>> content = sealed(b'{"n": 1, "seal": "%s"}' % blank.encode(), blank)
        >>> is_sealed(content), is_sealed(content.replace(b"n", b"m", 1)), is_sealed(b"{}")
        (True, False, False)
    """
    return f"interp-plugin sha256 {uuid.uuid4().hex}{uuid.uuid4().hex}"


def sealed(content: bytes, blank: str) -> bytes:
    """The content with its digest in place of the blank seal."""
    start = content.index(blank.encode()) + len(blank) - len(BLANK)
    return content[:start] + _digest(content, start).encode() + content[start + len(BLANK) :]


def is_sealed(content: bytes) -> bool:
    """Whether the content holds the digest of all the rest of it."""
    # a text in the file may look like a seal, so several are tried, from the end, where Parquet has its header
    found = list(_SEAL.finditer(content))[-TRIED:]
    return any(match[1].decode() == _digest(content, match.start(1)) for match in reversed(found))


def _digest(content: bytes, start: int) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK)
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest()


Kinds = Mapping[str, type | tuple[type | None, ...]]
"""What the members of an object of JSON may be, by name; None is null."""


def write_tensors(
    path: str | os.PathLike[str], format_name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors and JSON values, whole or not at all.

    Args:
        path: of the file.
        format_name: what the file holds, with the number of its format at the end.
        about: JSON values.
        tensors: by name.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    blank = blank_seal()
    content = save(
        {name: value.contiguous().cpu() for name, value in tensors.items()},
        {"format": format_name, "about": json.dumps(about), "seal": blank},
    )
    replace_file(path, sealed(content, blank))


def read_tensors(
    path: str | os.PathLike[str], format_name: str, again: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values and the tensors that `write` wrote; every tensor is finite.

    Args:
        path: of the file.
        format_name: the format that is read.
        again: what to do where the file is another one.

    Raises:
        OSError: there is no such file.
        ValueError: it is another file, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = os.fspath(path)
    content = Path(path).read_bytes()
    try:
        metadata = _metadata(content)
        tensors = load(content) if is_sealed(content) else None
        about = json.loads(metadata["about"])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name!r} is not a safetensors file of ours, or is damaged; {again}") from error
    found = metadata.get("format")
    if found != format_name:
        raise ValueError(f"{name!r} is of format {found!r}, and {format_name!r} is needed; {again}")
    if tensors is None:
        raise ValueError(f"{name!r} is damaged: its digest is not that of its content; {again}")
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"{name!r} holds numbers in {key!r} that are not finite; {again}")
    if not isinstance(about, dict):
        raise ValueError(f"{name!r} says nothing of its numbers; {again}")
    return about, tensors


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: its length, eight bytes, then an object of JSON."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])


def check_fields(about: Any, kinds: Kinds) -> None:
    """See that JSON values are an object with these members and no others, each of its kind; None is null.

    Raises:
        ValueError: they are not.

    Examples::
        >>> check_fields({"texts": 2, "layer": None}, {"texts": int, "layer": (str, None)})
        >>> check_fields({"texts": "two"}, {"texts": int})
        Traceback (most recent call last):
            ...
        ValueError: texts is 'two', a str
    """
    if not isinstance(about, dict) or set(about) != set(kinds):
        there = ", ".join(map(str, about)) if isinstance(about, dict) else type(about).__name__
        raise ValueError(f"it has {there or 'nothing'} and should have {', '.join(kinds)}")
    for name, kind in kinds.items():
        value, allowed = about[name], kind if isinstance(kind, tuple) else (kind,)
        fits = any(value is None if one is None else isinstance(value, one) for one in allowed)
        if not fits or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"{name} is {value!r}, a {type(value).__name__}")


EXPANSION = 1000  # bytes in memory for a byte of a file, at most
SMALL = 2**25  # or so many bytes in memory, however small the file


def open_sealed(
    path: str | os.PathLike[str], key: bytes, newest: int, what: str, again: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A Parquet file with a sealed header, not unpacked yet; and the header.

    Args:
        path: of the file.
        key: of the header in the file's metadata.
        newest: the format that is read.
        what: the class whose ``save`` wrote it.
        again: what to do in place of reading an older format.
        options: of ``pyarrow.parquet.ParquetFile``.

    Raises:
        OSError: there is no such file.
        ValueError: it is another file, damaged, of another format, or far larger than it looks.
    """
    arrow, parquet = load_pyarrow(f"a saved {what}")
    name = os.fspath(path)
    data = Path(path).read_bytes()
    try:
        content = parquet.ParquetFile(arrow.BufferReader(data), **options)
        header = json.loads((content.metadata.metadata or {})[key])
        found = header["format"]
        newer = found > newest
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(foreign(name, what)) from error
    if newer:
        raise ValueError(
            f"{name!r} has format {found}, and this version reads up to {newest}: "
            "pip install --upgrade interp-plugin"
        )
    if found < newest:
        raise ValueError(
            f"{name!r} has format {found}, which an older version of this package wrote, and this one needs "
            f"{newest}: {again}"
        )
    if not is_sealed(data):
        raise ValueError(foreign(name, what))
    size = _unpacked(content.metadata)
    if size > max(SMALL, EXPANSION * len(data)):
        raise ValueError(
            f"{name!r} has {len(data)} bytes and would take {size} in memory: no file that {what}.save wrote does; "
            "give one that it wrote"
        )
    return content, header


def _unpacked(metadata: Any) -> int:
    """Bytes that a Parquet file takes in memory, about: its values and what says where each of them belongs."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size + 8 * chunk.num_values for chunk in chunks)


def foreign(name: str, what: str) -> str:
    """That a file is not what it should be."""
    return f"{name!r} holds no {what}, or a damaged one: give a file that {what}.save wrote"


def load_pyarrow(purpose: str, extra: str = "table") -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet; arguments and error as of :func:`load`."""
    return load("pyarrow", purpose, extra), load("pyarrow.parquet", purpose, extra)


@cache
def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    packages = ("interp-plugin", "captum", "torch", "transformers")
    return {name.replace("-", "_"): version(name) for name in packages}


def weights_digest(module: nn.Module) -> str:
    """A name for the very weights of a model: equal for equal parameters and buffers of equal types.

    Examples::
        >>> layer = nn.Linear(2, 1)
        >>> before = weights_digest(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> before == weights_digest(layer)
        False
    """
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def ids_digest(ids: Sequence[int]) -> str:
    """A name for the ids of a text: another tokenizer gives others, though the tokens may have the same names."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], before: str = ""
) -> list[tuple[str, Any, Any]]:
    """Names and values of the settings that differ.

    Examples::
        >>> differences({"rate": 0.1, "versions": {"torch": "2"}}, {"rate": 0.1, "versions": {"torch": "3"}})
        [('versions.torch', '2', '3')]
    """
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(name), theirs.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, before=f"{before}{name}.")
        elif here != there:
            found.append((before + name, here, there))
    return found
