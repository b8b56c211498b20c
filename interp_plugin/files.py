"""Atomic writes, files with a checksum, and digests of models and settings."""

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
from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin.optional import load

_BINARY = getattr(os, "O_BINARY", 0)  # exists on Windows only


def replace_file(path: str | os.PathLike[str], data: Any) -> None:
    """Write a file atomically: a reader finds either the old file or the complete new one, even after a crash.

    Symbolic links are followed.  The new file gets the mode and, where permitted, the owner of the old one.  Pipes and
    devices (such as /dev/stdout) and the file that standard output is redirected to are written in place.

    Raises:
        ValueError: the path is a URI.
        OSError: the file cannot be written; an existing regular file is left unchanged.
    """
    check_local(path)
    found = _stat(path)
    if found is not None and not _is_replaceable(found):
        _write_into(path, found, data)
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # same folder, so same file system
    # created private: the old file may be unreadable to others, and its mode is only copied afterwards
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666 if found is None else 0o600
    )
    try:
        with open(descriptor, "wb") as file:
            if found is not None:
                _keep_access(temporary, found)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise a power failure may undo the renaming
        finally:
            os.close(folder)


def check_output(path: str | os.PathLike[str]) -> None:
    """Check that `replace_file` can write to a path, before a long computation starts.

    Raises:
        ValueError: the path is a URI or a folder.
        OSError: no file can be created there, or the pipe or device cannot be written to.
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
    """Check that an output path is a local path and not a URI; a name with a colon, such as run:1, is local.

    Raises:
        ValueError: the path is a URI, for instance of an object store.

    Examples::
        >>> check_local("run:1/part.parquet")
        >>> check_local("s3://bucket/study")
        Traceback (most recent call last):
            ...
        ValueError: 's3://bucket/study' is a URI, and results go to a file system of this machine: give a path on it
    """
    # one slash suffices, because pathlib turns "//" into "/"; a single letter is a Windows drive
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)!r} is a URI, and results go to a file system of this machine: give a path on it"
        )


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of the file that a path leads to, or None if there is none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_replaceable(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and _own_stream(found) is None


def _own_stream(found: os.stat_result) -> int | None:
    """Return the descriptor of standard output or error if it writes to this file.

    Such a file must not be replaced: later output would go to the old, deleted file.
    """
    for descriptor in (1, 2):
        try:
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
        except OSError:  # closed
            continue
    return None


def _write_into(path: str | os.PathLike[str], found: os.stat_result, data: Any) -> None:
    """Write in place; if our standard output goes there, through its descriptor, which keeps the position."""
    descriptor = _own_stream(found)
    if descriptor is not None:
        sys.stdout.flush()
        sys.stderr.flush()
    with open(path if descriptor is None else os.dup(descriptor), "wb") as file:
        file.write(data)


def _keep_access(temporary: Path, found: os.stat_result) -> None:
    """Give a temporary file the owner and the mode of the file that it will replace."""
    if hasattr(os, "chown") and (found.st_uid, found.st_gid) != (os.getuid(), os.getgid()):
        with suppress(PermissionError):  # only root may give files away
            os.chown(temporary, found.st_uid, found.st_gid)
    os.chmod(temporary, stat.S_IMODE(found.st_mode))


BLANK = b"0" * 64  # placeholder for the digest while the digest is computed
MAX_SEALS = 100  # candidates that are verified: each costs one pass over the file
_SEAL = re.compile(rb"interp-plugin sha256 ([0-9a-f]{64})")


def blank_seal() -> str:
    """Return a unique placeholder for a checksum: write it once into the content, then call `sealed`.

    Examples::
        >>> blank = blank_seal()
        >>> content = sealed(b'{"n": 1, "seal": "%s"}' % blank.encode(), blank)
        >>> is_sealed(content), is_sealed(content.replace(b"n", b"m", 1)), is_sealed(b"{}")
        (True, False, False)
    """
    return f"interp-plugin sha256 {uuid.uuid4().hex}{uuid.uuid4().hex}"


def sealed(content: bytes, blank: str) -> bytes:
    """Replace the placeholder in the content by the digest of the content."""
    start = content.index(blank.encode()) + len(blank) - len(BLANK)
    return content[:start] + _digest(content, start).encode() + content[start + len(BLANK) :]


def is_sealed(content: bytes) -> bool:
    """Whether the content holds a valid digest of the rest of the content."""
    # a text in the file may look like a seal: several are tried, from the end, where Parquet stores its metadata
    found = list(_SEAL.finditer(content))[-MAX_SEALS:]
    return any(match[1].decode() == _digest(content, match.start(1)) for match in reversed(found))


def _digest(content: bytes, start: int) -> str:
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK)
    digest.update(view[start + len(BLANK) :])
    return digest.hexdigest()


Kinds = Mapping[str, type | tuple[type | None, ...]]
"""Allowed types of the members of a JSON object, by name; None stands for null."""


def write_tensors(
    path: str | os.PathLike[str], format_name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors and JSON values to a safetensors file, atomically.

    Args:
        path: path of the file.
        format_name: name and version number of the format.
        about: JSON values.
        tensors: name -> tensor.

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
    """Read the JSON values and the tensors that `write_tensors` wrote; every tensor is finite.

    Args:
        path: path of the file.
        format_name: the expected format.
        again: advice for the error message if the file cannot be used.

    Raises:
        OSError: there is no such file.
        ValueError: the file is of another kind or format, or is damaged.
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
        raise ValueError(f"{name!r} has no description of its tensors; {again}")
    return about, tensors


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: eight bytes give the length of the JSON header that follows."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])


def check_fields(about: Any, kinds: Kinds) -> None:
    """Check that a JSON value is an object with exactly these members, each of an allowed type.

    Raises:
        ValueError: members are missing, unknown or of another type.

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


EXPANSION = 1000  # largest accepted ratio of bytes in memory to bytes of the file
SMALL = 2**25  # bytes in memory that are accepted whatever the ratio


def open_sealed(
    path: str | os.PathLike[str], key: bytes, newest: int, what: str, again: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Open a Parquet file that has a checksum, and return it, not yet unpacked, with its header.

    Args:
        path: path of the file.
        key: key of the header in the file's metadata.
        newest: the format version that can be read.
        what: name of the class whose ``save`` wrote the file.
        again: advice for the error message if the format is older.
        options: further arguments of ``pyarrow.parquet.ParquetFile``.

    Raises:
        OSError: there is no such file.
        ValueError: the file is of another kind or format, is damaged, or would take far more memory than its size
            suggests.
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
    """Estimate the bytes that a Parquet file takes in memory: its values, and 8 bytes of levels for each value."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size + 8 * chunk.num_values for chunk in chunks)


def foreign(name: str, what: str) -> str:
    """Return the message for a file of another kind."""
    return f"{name!r} holds no {what}, or a damaged one: give a file that {what}.save wrote"


def load_pyarrow(purpose: str, extra: str = "table") -> tuple[ModuleType, ModuleType]:
    """Import pyarrow and pyarrow.parquet; arguments and errors as in :func:`load`."""
    return load("pyarrow", purpose, extra), load("pyarrow.parquet", purpose, extra)


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers depend on."""
    packages = ("interp-plugin", "captum", "torch", "transformers")
    return {name.replace("-", "_"): version(name) for name in packages}


def weights_digest(module: nn.Module) -> str:
    """Return a digest of a model's weights: equal for parameters and buffers of equal values and types.

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
    """Return a digest of token ids, which differ between tokenizers even where the tokens look alike."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], before: str = ""
) -> list[tuple[str, Any, Any]]:
    """List the settings that differ, as (name, our value, their value).

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
