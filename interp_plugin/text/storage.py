"""Storage of explanations in Parquet files: one line for each row of each text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from interp_plugin.files import blank_seal, foreign, load_pyarrow, open_sealed, replace_file, sealed
from interp_plugin.text.rows import ErasedRow, Row, TextExplanation

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 4  # to be raised with every change that breaks older readers
_KEY = b"interp_plugin"  # key of the header in the file's metadata
FLOATS = ("sigma", "standard_error")  # columns with a list of float32 in each cell
ERASED_FLOATS = ("erased", "erasure_probability")  # the same; empty if noise was learned
NUMBERED = ("words", "units")  # fields of a text that are stored in the header, if a text has them
_ARRAYS = (*FLOATS, *ERASED_FLOATS)


def write(path: str | os.PathLike[str], items: Sequence[TextExplanation], header: Mapping[str, Any]) -> None:
    """Write texts, one line for each row, and a header of JSON values, atomically.

    Raises:
        ImportError: pyarrow is missing.
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    arrow, _ = load_pyarrow("a saved explanation")
    of_text, of_row = _schemas(arrow)
    rows = [_record(number, row) for number, item in enumerate(items) for row in item.rows]
    owners = arrow.array([row["text_index"] for row in rows], arrow.int64())
    table = arrow.Table.from_pylist(rows, schema=of_row)
    texts = [{name: getattr(item, name) for name in of_text.names} for item in items]
    repeated = arrow.Table.from_pylist(texts, schema=of_text).take(owners)
    for field in of_text:
        table = table.append_column(field, repeated[field.name])
    for name in NUMBERED:
        if any(getattr(item, name) for item in items):
            header = {**header, name: [getattr(item, name) for item in items]}

    # statistics and dictionaries add kilobytes to a small file; zstd compresses the repeated texts well
    blank = blank_seal()
    content = parquet_bytes(
        table, _KEY, {"format": FORMAT, **header, "seal": blank}, use_dictionary=False, write_statistics=False
    )
    replace_file(path, sealed(content.to_pybytes(), blank))


def parquet_bytes(
    table: pa.Table, key: bytes, header: Mapping[str, Any], row_group_size: int | None = None, **options: Any
) -> pa.Buffer:
    """Return a Parquet file of rows with fits, without Arrow's copy of the schema, with the header in its metadata."""
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


def _record(text_index: int, row: Row) -> dict[str, Any]:
    """Convert a row to a line of the file, which distinguishes layer 1 from a layer named "1"."""
    nothing = torch.empty(0, dtype=torch.float32)
    arrays = {name: getattr(row, name, nothing).numpy() for name in _ARRAYS}
    number = isinstance(row.layer, int)
    layer = {"layer": str(row.layer), "layer_is_number": number, "text_index": text_index}
    return {"damage": math.nan, **vars(row), **arrays, **layer}


def read(path: str | os.PathLike[str]) -> tuple[tuple[TextExplanation, ...], dict[str, Any]]:
    """Read the texts and the header that `write` wrote.

    Raises:
        ImportError: pyarrow is missing.
        OSError: there is no such file.
        ValueError: the file is of another kind, is damaged, or was written by another version.
    """
    arrow, _ = load_pyarrow("a saved explanation")
    of_text, of_row = _schemas(arrow)
    types = {field.name: field.type for field in (*of_row, *of_text)}
    content, header = open_sealed(path, _KEY, FORMAT, "Explanation", "explain the texts again")
    name = os.fspath(path)
    try:
        _check_encodings(content.metadata)
        table = content.read(list(types))
        table.validate(full=True)
        if dict(zip(table.schema.names, table.schema.types)) != types:
            raise ValueError(f"its columns are {table.schema.names}")
        return _restored(
            arrow, table, of_text.names, {name: header.pop(name, None) for name in NUMBERED}
        ), header
    except (
        arrow.ArrowException,
        OSError,
        AttributeError,  # a null instead of a list
        KeyError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(foreign(name, "Explanation")) from error


def _restored(
    arrow: ModuleType, table: pa.Table, of_text: Sequence[str], numbered: Mapping[str, Any]
) -> tuple[TextExplanation, ...]:
    """Rebuild the texts from the lines of a file."""
    owners = table["text_index"].to_pylist()
    firsts = [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
    texts = table.select(of_text).take(arrow.array(firsts, arrow.int64())).to_pylist()
    rows = table.drop_columns([*of_text, *_ARRAYS]).to_pylist()
    for column in _ARRAYS:
        for row, cell in zip(rows, table[column], strict=True):
            row[column] = torch.tensor(cell.values.to_numpy(), dtype=torch.float32)
    rows_of: dict[int, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row.pop("text_index"), []).append(_row(row))
    return tuple(
        TextExplanation(
            **{
                **text,
                "tokens": tuple(text["tokens"]),
                "offsets": tuple(None if offset is None else tuple(offset) for offset in text["offsets"]),
                "rows": tuple(its_rows),
                "words": tuple(map(tuple, its_words)),
                "units": tuple(map(int, its_units)),
            }
        )
        for text, its_rows, its_words, its_units in zip(
            texts, rows_of.values(), *(numbered[name] or [()] * len(texts) for name in NUMBERED), strict=True
        )
    )


def _row(stored: dict[str, Any]) -> Row:
    if stored.pop("layer_is_number"):
        stored["layer"] = int(stored["layer"])
    if len(stored["erased"]):
        return ErasedRow(**stored)
    return Row(**{name: value for name, value in stored.items() if name not in (*ERASED_FLOATS, "damage")})


def _check_encodings(metadata: Any) -> None:
    """Refuse encodings that `write` does not use: they can expand a few bytes to any number of long values."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            encodings = metadata.row_group(group).column(column).encodings
            if not set(encodings) <= {"PLAIN", "RLE", "BIT_PACKED", "BYTE_STREAM_SPLIT"}:
                raise OSError(f"column {column} is encoded as {encodings}")


def _schemas(arrow: ModuleType) -> tuple[pa.Schema, pa.Schema]:
    """Return the columns of a text and of a row, named as the fields of TextExplanation and Row."""
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
    """Return the stored columns of a text, with their types."""
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
    """Return the stored columns of a fit, with their types."""
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
        "saturated": arrow.bool_(),
    }
