"""Findings of a study in a Parquet file: a line for each number."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from interp_plugin.comparison.findings import Contestant, Failure, Findings, StudyText
from interp_plugin.rendering.study import StudyColumn
from interp_plugin.storage import load_pyarrow, replace_file

FORMAT = 1  # raise it when a reader of the old format would go wrong
_KEY = b"interp_plugin study"  # of the file's metadata
_PARTS: Mapping[str, type] = {
    "texts": StudyText,
    "methods": Contestant,
    "metrics": StudyColumn,
    "failures": Failure,
}
_COLUMNS = ("question", "method", "metric")


def write(path: str | os.PathLike[str], findings: Findings) -> None:
    """Write the numbers (text, question, method, metric, value) and all else as metadata, all or nothing."""
    arrow, parquet = load_pyarrow("a saved study", "compare")
    places = np.nonzero(~np.isnan(findings.cells))
    columns = {
        name: arrow.DictionaryArray.from_arrays(
            arrow.array(codes, arrow.int32()), findings.names[name] or [""]
        )
        for name, codes in zip(_COLUMNS, places[1:], strict=True)
    }
    numbers = arrow.array(findings.cells[places], arrow.float64())
    table = arrow.table({"text": arrow.array(places[0], arrow.int32()), **columns, "value": numbers})
    header = {
        "format": FORMAT,
        "questions": findings.questions,
        "settings": dict(findings.settings),
        "left_out": dict(findings.left_out),
        **{name: [vars(item) for item in getattr(findings, name)] for name in _PARTS},
    }
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY: json.dumps(header)})
    replace_file(path, sink.getvalue())


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the findings that `write` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: the file holds something else, or comes from a newer version.
    """
    arrow, parquet = load_pyarrow("a saved study", "compare")
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            content = parquet.ParquetFile(file, page_checksum_verification=True)
            header = _header(content.metadata.metadata, name)
            table = content.read()
            return _fields(header, table)
        except (arrow.ArrowException, OSError, KeyError, TypeError, IndexError) as error:
            raise ValueError(_foreign(name)) from error


def _fields(header: Mapping[str, Any], table: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        part: tuple(kind(**{field.name: item[field.name] for field in fields(kind)}) for item in header[part])
        for part, kind in _PARTS.items()
    }
    found["questions"] = tuple(header["questions"])
    names = (
        header["questions"],
        [method.name for method in found["methods"]],
        [metric.name for metric in found["metrics"]],
    )
    places = [table["text"].to_numpy()]
    for column, known in zip(_COLUMNS, names, strict=True):
        numbers = {name: place for place, name in enumerate(known)}
        encoded = table[column].combine_chunks().dictionary_encode()
        codes = np.array([numbers[name] for name in encoded.dictionary.to_pylist()], np.int64)
        places.append(codes[encoded.indices.to_numpy()])
    cells = np.full((len(found["texts"]), *map(len, names)), np.nan)
    cells[tuple(places)] = table["value"].to_numpy()
    return {**found, "cells": cells, "settings": header["settings"], "left_out": header["left_out"]}


def _header(metadata: Mapping[bytes, bytes] | None, name: str) -> dict[str, Any]:
    if _KEY not in (metadata or {}):
        raise ValueError(_foreign(name))
    header: dict[str, Any] = json.loads((metadata or {})[_KEY])
    if header["format"] > FORMAT:
        raise ValueError(
            f"{name!r} has format {header['format']}, and this version reads up to {FORMAT}: "
            "pip install --upgrade interp-plugin"
        )
    return header


def _foreign(name: str) -> str:
    return f"{name!r} holds no StudyResult, or a damaged one: give a file that StudyResult.save wrote"
