"""Explanations in a Parquet file: one row of the table for each text and state."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp_plugin.seal import blank_seal, is_sealed, sealed
from interp_plugin.writing import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3  # raise it when a reader of the old format would go wrong
_KEY = b"interp_plugin"  # of the file's metadata
EXPANSION = 1000  # bytes in memory for a byte of a file, at most
SMALL = 2**25  # or so many bytes in memory, however small the file
FLOATS = ("sigma", "standard_error")  # columns with a list of float32 in each cell
ERASED_FLOATS = ("erased", "erasure_probability")  # the same, empty where noise was learned


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
    blank = blank_seal()
    content = parquet_bytes(
        table, _KEY, {"format": FORMAT, **header, "seal": blank}, use_dictionary=False, write_statistics=False
    )
    replace_file(path, sealed(content.to_pybytes(), blank))


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
        ValueError: the file holds something else, is damaged, or comes from another version.
    """
    arrow, _ = load_pyarrow("a saved explanation")
    of_text, of_row = _schemas(arrow)
    content, header = open_sealed(path, _KEY, FORMAT, "Explanation", "explain the texts again")
    name = os.fspath(path)
    try:
        _check_encodings(content.metadata)
        table = content.read(of_row.names + of_text.names)
        table.validate(full=True)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(foreign(name, "Explanation")) from error
    if dict(zip(table.schema.names, table.schema.types)) != {
        field.name: field.type for field in (*of_row, *of_text)
    }:
        raise ValueError(foreign(name, "Explanation"))
    owners = table["text_index"].to_pylist()
    firsts = [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
    try:
        texts = table.select(of_text.names).take(arrow.array(firsts, arrow.int64())).to_pylist()
        rows = table.select(
            [column for column in of_row.names if column not in (*FLOATS, *ERASED_FLOATS)]
        ).to_pylist()
        for column in (*FLOATS, *ERASED_FLOATS):
            for row, cell in zip(rows, table[column], strict=True):
                row[column] = cell.values.to_numpy()
    except (AttributeError, OverflowError, ValueError) as error:  # no list, no UTF-8, a null within a list
        raise ValueError(foreign(name, "Explanation")) from error
    return texts, rows, header


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


def _check_encodings(metadata: Any) -> None:
    """Refuse encodings that `write` does not use, under which few bytes stand for any number of long values."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            encodings = metadata.row_group(group).column(column).encodings
            if not set(encodings) <= {"PLAIN", "RLE", "BIT_PACKED", "BYTE_STREAM_SPLIT"}:
                raise OSError(f"column {column} is encoded as {encodings}")


def foreign(name: str, what: str) -> str:
    """That a file is not what it should be."""
    return f"{name!r} holds no {what}, or a damaged one: give a file that {what}.save wrote"


def _schemas(arrow: ModuleType) -> tuple[pa.Schema, pa.Schema]:
    """Columns of a text and of a row, named as the fields of TextExplanation and Row."""
    of_row = {
        "text_index": arrow.int64(),
        "layer": arrow.string(),
        "layer_is_number": arrow.bool_(),
        "position": arrow.int64(),
        **fit_columns(arrow),
        **{name: arrow.list_(arrow.float32()) for name in ERASED_FLOATS},
        "damage": arrow.float64(),
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
