"""Findings of a study in a Parquet file: a line for each number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from interp_plugin.comparison.findings import Contestant, Failure, Findings, StudyText
from interp_plugin.rendering.study import StudyColumn
from interp_plugin.text.storage import blank_seal, foreign, load_pyarrow, open_sealed, replace_file, sealed

FORMAT = 2  # raise it when a reader of the old format would go wrong
LARGEST = 2**20  # numbers in memory at most,
SPARSEST = 1000  # and so many more for each that is in the file
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
    blank = blank_seal()
    header["seal"] = blank
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY: json.dumps(header)})
    replace_file(path, sealed(sink.getvalue().to_pybytes(), blank))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the findings that `write` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: the file holds something else, is damaged, or comes from another version.
    """
    arrow, _ = load_pyarrow("a saved study", "compare")
    # read as dictionaries, for a short name may stand in very many rows
    content, header = open_sealed(
        path, _KEY, FORMAT, "StudyResult", "run the study again", read_dictionary=list(_COLUMNS)
    )
    try:
        return _fields(header, content.read())
    except (arrow.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(foreign(os.fspath(path), "StudyResult")) from error


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
    if math.prod([len(found["texts"]), *map(len, names)]) > LARGEST + SPARSEST * table.num_rows:
        raise ValueError("the header names far more results than there are")
    cells = np.full((len(found["texts"]), *map(len, names)), np.nan)
    cells[tuple(places)] = table["value"].to_numpy()
    return {**found, "cells": cells, "settings": header["settings"], "left_out": header["left_out"]}
