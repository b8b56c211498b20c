"""Texts: explanations of single texts, read back from the parts of a study."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from interp_plugin.corpus.parts import Part, lines
from interp_plugin.corpus.quantities import BATCH
from interp_plugin.text.explanation import Row, TextExplanation
from interp_plugin.text.models import Label

_TEXT = tuple(field.name for field in fields(TextExplanation) if field.name != "rows")
_ROW = tuple(field.name for field in fields(Row) if field.name != "layer")


def explanations(
    parts: Sequence[Part], layers: Sequence[Label], rows: Collection[int] | None
) -> Iterator[tuple[int, TextExplanation]]:
    """Some texts in full, each after the number of its row; rows None: all."""
    labels = {str(label): label for label in layers}
    for part in parts:
        first, count = part.about.first_row, part.about.rows
        if rows is not None and not any(first <= row < first + count for row in rows):
            continue
        step = max(1, BATCH // len(labels)) * len(labels)
        for batch in lines(part, _TEXT + _ROW + ("row", "layer"), step):
            table = batch.to_pylist()
            for place in range(0, len(table), len(labels)):
                some = table[place : place + len(labels)]
                if rows is None or some[0]["row"] in rows:
                    yield some[0]["row"], _restored(some, labels)


def _restored(some: Sequence[Mapping[str, Any]], labels: Mapping[str, Label]) -> TextExplanation:
    """The explanation of a text from its lines."""
    rows = [
        Row(
            **{
                **{name: line[name] for name in _ROW},
                "layer": labels[line["layer"]],
                "sigma": torch.tensor(line["sigma"], dtype=torch.float32),
                "standard_error": torch.tensor(line["standard_error"], dtype=torch.float32),
            }
        )
        for line in some
    ]
    known = {name: some[0][name] for name in _TEXT}
    known["tokens"] = tuple(known["tokens"])
    known["offsets"] = tuple(None if offset is None else tuple(offset) for offset in known["offsets"])
    return TextExplanation(**known, rows=tuple(rows))
