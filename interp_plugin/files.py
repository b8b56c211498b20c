"""Files to read: of this machine, or of an object store that pyarrow or fsspec reads."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from interp_plugin.text.storage import load_pyarrow


@dataclass(frozen=True)
class File:
    """A file that is not open yet.

    Attributes:
        name: of the file alone.
        open: gives its bytes; seekable.
    """

    name: str
    open: Callable[[], BinaryIO]

    @property
    def suffix(self) -> str:
        """With its dot."""
        return PurePosixPath(self.name).suffix


def is_remote(source: str | PathLike[str]) -> bool:
    """Whether a source is written as a URI.

    Examples::
        >>> is_remote("s3://bucket/reviews.parquet"), is_remote("reviews.parquet"), is_remote("glue:sst2")
        (True, False, False)
    """
    return isinstance(source, str) and re.match(r"[A-Za-z][\w+.-]+://", source) is not None


def listed(source: str | PathLike[str], suffixes: Collection[str]) -> list[File]:
    """The file, or the files of a folder that end so, in the order of their names.

    Args:
        source: a path, or a URI: file://, s3://, gs:// and what else pyarrow reads, or fsspec (memory://, https://)
            where the package that it needs is installed.
        suffixes: of the files of a folder.

    Raises:
        ImportError: pyarrow is needed and not installed.
        OSError: a path where nothing is.
        ValueError: a URI where nothing is, or that cannot be reached.

    Examples::
        >>> [file.suffix for file in listed(__file__, ())]
        ['.py']
    """
    if is_remote(source):
        return _of_store(str(source), suffixes)
    path = Path(source)
    paths = sorted(each for each in path.iterdir() if each.suffix in suffixes) if path.is_dir() else [path]
    return [File(each.name, partial(_of_disk, each)) for each in paths]


def _of_disk(path: Path) -> BinaryIO:
    return path.open("rb")


def _of_store(uri: str, suffixes: Collection[str]) -> list[File]:
    arrow, _ = load_pyarrow(f"reading {uri!r}")
    from pyarrow import fs

    try:
        store, path = _store(uri)
        info = store.get_file_info(path)
        infos = [info]
        if info.type == fs.FileType.Directory:
            inside = store.get_file_info(fs.FileSelector(path))
            infos = sorted(
                (i for i in inside if PurePosixPath(i.path).suffix in suffixes), key=lambda i: i.path
            )
    except (arrow.ArrowException, OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"{uri!r} cannot be reached ({str(error).splitlines()[0]}); give the URI of a file or folder that pyarrow "
            "or fsspec reads, and what it needs to be let in"
        ) from error
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"there is no file {uri!r}; give one that is there")
    return [File(PurePosixPath(each.path).name, partial(_opened, store, each.path)) for each in infos]


def _store(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it: pyarrow's own, or one of fsspec's."""
    import fsspec
    from pyarrow import ArrowInvalid, fs

    try:
        store, path = fs.FileSystem.from_uri(uri)
    except ArrowInvalid:  # a scheme of which it knows nothing
        found, path = fsspec.core.url_to_fs(uri)
        store = fs.PyFileSystem(fs.FSSpecHandler(found))
    return store, path


def _opened(store: Any, path: str) -> BinaryIO:
    return io.BufferedReader(store.open_input_file(path))
