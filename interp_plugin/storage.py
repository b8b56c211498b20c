"""Explanations in a Parquet file: one row of the table for each text and state."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2  # raise it when a reader of the old format would go wrong
_KEY = b"interp_plugin"  # of the file's metadata
FLOATS = ("sigma", "standard_error")  # columns with a list of float32 in each cell


def write(
    path: str | os.PathLike[str],
    texts: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    header: Mapping[str, Any],
) -> None:
    """Write texts, their rows (``text_index`` says whose) and a header of JSON values, all or nothing.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the file cannot be written; one that was there before stays as it was.
    """
    arrow, _ = load_pyarrow("a saved explanation")
    of_text, of_row = _schemas(arrow)
    owners = arrow.array([row["text_index"] for row in rows], arrow.int64())
    table = arrow.Table.from_pylist(rows, schema=of_row)
    repeated = arrow.Table.from_pylist(texts, schema=of_text).take(owners)
    for field in of_text:
        table = table.append_column(field, repeated[field.name])

    # statistics and dictionaries cost a small file kilobytes; zstd finds the repeated texts by itself
    content = parquet_bytes(
        table, _KEY, {"format": FORMAT, **header},
        use_dictionary=False, write_statistics=False, write_page_checksum=True,
    )  # fmt: skip
    replace_file(path, content)


def parquet_bytes(
    table: pa.Table, key: bytes, header: Mapping[str, Any], row_group_size: int | None = None, **options: Any
) -> pa.Buffer:
    """A Parquet file of rows that hold fits, without Arrow's copy of the schema; the header stands in its metadata."""
    arrow, parquet = load_pyarrow("a Parquet file")
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        store_schema=False,
        use_byte_stream_split=[f"{name}.list.element" for name in FLOATS],
        **options,
    ) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        writer.add_key_value_metadata({key: json.dumps(header)})
    return sink.getvalue()


def read(
    path: str | os.PathLike[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Texts, rows (sigma and standard_error as NumPy float32) and header of what `write` wrote.

    Raises:
        ImportError: pyarrow is missing.
        OSError: there is no such file.
        ValueError: the file holds something else, or comes from a newer version.
    """
    arrow, parquet = load_pyarrow("a saved explanation")
    of_text, of_row = _schemas(arrow)
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            content = parquet.ParquetFile(file, page_checksum_verification=True)
            header = _header(content.metadata.metadata, name)
            table = content.read(of_row.names + of_text.names)
            table.validate(full=True)
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(_foreign(name)) from error
    if dict(zip(table.schema.names, table.schema.types)) != {
        field.name: field.type for field in (*of_row, *of_text)
    }:
        raise ValueError(_foreign(name))
    owners = table["text_index"].to_pylist()
    firsts = [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
    texts = table.select(of_text.names).take(arrow.array(firsts, arrow.int64())).to_pylist()
    rows = table.select([column for column in of_row.names if column not in FLOATS]).to_pylist()
    for column in FLOATS:
        for row, cell in zip(rows, table[column], strict=True):
            row[column] = cell.values.to_numpy()
    return texts, rows, header


def replace_file(path: str | os.PathLike[str], data: Any) -> None:
    """Write bytes so that a reader, also after a crash, finds either the old file or the whole new one."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # same folder, so same file system
    try:
        with open(draft, "xb") as file:
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


def _foreign(name: str) -> str:
    return f"{name!r} holds no Explanation, or a damaged one: give a file that Explanation.save wrote"


def _header(metadata: Mapping[bytes, bytes] | None, name: str) -> dict[str, Any]:
    if _KEY not in (metadata or {}):
        raise ValueError(_foreign(name))
    header: dict[str, Any] = json.loads((metadata or {})[_KEY])
    if not isinstance(header.get("format"), int):
        raise ValueError(_foreign(name))
    if header["format"] < FORMAT:
        raise ValueError(
            f"{name!r} has format {header['format']}, which lacks input_std, and information kept cannot be counted "
            "without it: explain the texts again"
        )
    if header["format"] > FORMAT:
        raise ValueError(
            f"{name!r} has format {header['format']}, and this version reads up to {FORMAT}: "
            "pip install --upgrade interp-plugin"
        )
    return header


def _schemas(arrow: ModuleType) -> tuple[pa.Schema, pa.Schema]:
    """Columns of a text and of a row, named as the fields of TextExplanation and Row."""
    of_row = {
        "text_index": arrow.int64(),
        "layer": arrow.string(),
        "layer_is_number": arrow.bool_(),
        "position": arrow.int64(),
        **fit_columns(arrow),
    }
    return arrow.schema(text_columns(arrow)), arrow.schema(of_row)


def text_columns(arrow: ModuleType) -> dict[str, Any]:
    """What is stored of a text, by column, with its type."""
    return {
        "text": arrow.string(),
        "pair": arrow.string(),
        "tokens": arrow.list_(arrow.string()),
        "offsets": arrow.list_(arrow.list_(arrow.int32())),  # null for a special token
        "size": arrow.int64(),
        "predicted": arrow.string(),
        "probability": arrow.float64(),
        "target": arrow.string(),
    }


def fit_columns(arrow: ModuleType) -> dict[str, Any]:
    """What is stored of a fit, by column, with its type."""
    floats = arrow.list_(arrow.float32())
    return {
        "sigma": floats,
        "standard_error": floats,
        "common_error": arrow.float64(),
        "max_sigma": arrow.float64(),
        "input_std": arrow.float64(),
        "regime_index": arrow.float64(),
        "distortion": arrow.float64(),
        "converged": arrow.bool_(),
        "n_forward": arrow.int64(),
        "n_backward": arrow.int64(),
        "rate": arrow.float64(),
    }


def load_pyarrow(purpose: str, extra: str = "table") -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet.

    Raises:
        ImportError: it is not installed; says what needs it, and the extra that brings it.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs pyarrow, which is not installed: pip install interp-plugin[{extra}]"
        ) from error
    return pyarrow, parquet
