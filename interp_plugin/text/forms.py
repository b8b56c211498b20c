"""Forms: what is known of texts as plain values for JSON, lines of a table and records of a file; and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from interp_plugin.text.rows import ErasedRow, Row, TextExplanation
from interp_plugin.text.scores import Aggregate, Granularity, Scores

LABELS = ("layer", "position")
FACTS = (
    *("max_sigma", "input_std", "regime_index", "distortion", "converged", "n_forward", "n_backward"),
    "rate",
)
ABOUT = ("predicted", "target")  # of the text
COLUMNS = (
    *("text_index", "text", "pair", "unit_index", "unit", "segment", "start", "end", *LABELS),
    *("kept", "loss", "sigma", "standard_error", "loss_standard_error", "tied", *FACTS, *ABOUT),
)
ERASED_FACTS = ("damage", "n_forward", "n_backward")
ERASED_COLUMNS = (*COLUMNS[:10], "erased", "standard_error", "tied", *ERASED_FACTS, *ABOUT)
ERASED_ONLY = ("erased", "erasure_probability", "damage")
ARRAYS = ("sigma", "standard_error", "erased", "erasure_probability")  # of rows


def text_dict(
    item: TextExplanation, granularity: Granularity, aggregate: Aggregate = "sum"
) -> dict[str, Any]:
    """A text as lists, strings and numbers, ready for strict JSON."""
    if item.is_erased:
        return _erased_dict(item, item.scores("erased", granularity, aggregate))
    kept, loss, sigma = _all_scores(item, granularity, aggregate)
    total, total_error = item.total()  # (R,)
    rows = [
        {
            **{name: getattr(row, name) for name in LABELS},
            "sigma": sigma.values[i],
            "loss": loss.values[i],
            "kept": kept.values[i],
            "standard_error": kept.standard_error[i],
            "loss_standard_error": loss.standard_error[i],
            "sigma_standard_error": sigma.values[i] * sigma.standard_error[i],
            "tied": kept.tied[i],
            "total": total[i],
            "total_standard_error": total_error[i],
            **{name: getattr(row, name) for name in FACTS},
        }
        for i, row in enumerate(item.rows)
    ]
    return _with_text(item, kept, rows)


def _erased_dict(item: TextExplanation, scores: Scores) -> dict[str, Any]:
    rows = [
        {
            **{name: getattr(row, name) for name in LABELS},
            "erased": scores.values[i],
            "standard_error": scores.standard_error[i],
            "tied": scores.tied[i],
            "converged": row.converged,
            **{name: getattr(row, name) for name in ERASED_FACTS},
        }
        for i, row in enumerate(item.rows)
    ]
    return _with_text(item, scores, rows)


def _with_text(item: TextExplanation, scores: Scores, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("text", "pair", "predicted", "probability", "target")
    texts = {name: getattr(item, name) for name in names}
    found: dict[str, Any] = plain({**texts, "units": scores.units, "offsets": scores.offsets, "rows": rows})
    return found


def lines(
    number: int, item: TextExplanation, granularity: Granularity, aggregate: Aggregate = "sum"
) -> Iterator[tuple[Any, ...]]:
    """The lines of the table of one text, in the order of COLUMNS, or of ERASED_COLUMNS."""
    columns: tuple[Tensor, ...]  # (R, U) each
    of_row: tuple[str, ...]
    if item.is_erased:
        kept, of_row = item.scores("erased", granularity, aggregate), ERASED_FACTS
        columns = (kept.values, kept.standard_error, kept.tied)
    else:
        kept, loss, sigma = _all_scores(item, granularity, aggregate)
        errors, of_row = (kept.standard_error, loss.standard_error), FACTS
        columns = (kept.values, loss.values, sigma.values, *errors, kept.tied)
    for row, *scores in zip(item.rows, *(column.tolist() for column in columns), strict=True):
        labels, facts = ([getattr(row, name) for name in names] for names in (LABELS, of_row))
        about = [getattr(item, name) for name in ABOUT]
        units = zip(kept.units, kept.offsets, *scores, strict=True)
        for u, (unit, offset, *values) in enumerate(units):
            place = (None, None, None) if offset is None else offset
            yield (number, item.text, item.pair, u, unit, *place, *labels, *values, *facts, *about)


def _all_scores(
    item: TextExplanation, granularity: Granularity, aggregate: Aggregate
) -> tuple[Scores, Scores, Scores]:
    """Kept, loss and sigma."""
    return (
        item.scores("kept", granularity, aggregate),
        item.scores("loss", granularity, aggregate),
        item.scores("sigma", granularity, aggregate),
    )


def records(items: Sequence[TextExplanation]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The texts and their rows, which have sigma and its error as arrays: the lines of a file."""
    names = [field.name for field in fields(TextExplanation) if field.name not in ("rows", "words")]
    texts = [{name: getattr(item, name) for name in names} for item in items]
    return texts, [_record(number, row) for number, item in enumerate(items) for row in item.rows]


def _record(text_index: int, row: Row) -> dict[str, Any]:
    """A row as a line of the file; a layer's number is told apart from a name that looks like one."""
    nothing = torch.empty(0, dtype=torch.float32)
    arrays = {name: getattr(row, name, nothing).numpy() for name in ARRAYS}
    number = isinstance(row.layer, int)
    layer = {"layer": str(row.layer), "layer_is_number": number, "text_index": text_index}
    return {"damage": math.nan, **vars(row), **arrays, **layer}


def restored(
    texts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[TextExplanation, ...]:
    """What :func:`records` was made of.

    Raises:
        ValueError, TypeError, KeyError: these are no such lines.
    """
    rows_of: dict[int, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row["text_index"], []).append(_row(row))
    for text, its_rows in zip(texts, rows_of.values(), strict=True):
        counts = {len(values) for row in its_rows for values in (row.sigma, row.standard_error)}
        if counts - {len(text["tokens"])} or len(text["offsets"]) != len(text["tokens"]):
            raise ValueError(f"a text of {len(text['tokens'])} tokens has rows of {counts}")
    return tuple(
        TextExplanation(
            **{
                **text,
                "tokens": tuple(text["tokens"]),
                "offsets": tuple(None if offset is None else tuple(offset) for offset in text["offsets"]),
                "rows": tuple(its_rows),
            }
        )
        for text, its_rows in zip(texts, rows_of.values(), strict=True)
    )


def _row(stored: Mapping[str, Any]) -> Row:
    values = {name: value for name, value in stored.items() if name != "text_index"}
    if values.pop("layer_is_number"):
        values["layer"] = int(values["layer"])
    for name in ARRAYS:
        values[name] = torch.tensor(values[name], dtype=torch.float32)
    if len(values["erased"]):
        return ErasedRow(**values)
    return Row(**{name: value for name, value in values.items() if name not in ERASED_ONLY})


def plain(value: Any) -> Any:
    """Tensors and tuples become lists, and what is not finite becomes None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
