"""The renderer of records for Captum's ``visualize_text``."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from interp_plugin.report import explanations
from interp_plugin.report.explanations import Choice, Values
from interp_plugin.report.numbers import UNKNOWN, known, printable

if TYPE_CHECKING:
    from captum.attr import visualization


def captum_records(
    explanation: Values, layer: Choice | None = None
) -> list[visualization.VisualizationDataRecord]:
    """Make one record per text, for ``captum.attr.visualization.visualize_text``.

    Attributions are on the scale of the shades, 0 to 1 (-1 to 1 if tokens were erased) and 0 for special tokens,
    because ``visualize_text`` clips to [-1, 1]. attr_score is the total of the text, in nats if noise was learned.
    convergence_score is 1 if the row converged, else 0. All strings are escaped, because ``visualize_text`` escapes
    nothing. Unknown values are "-"; an unknown probability is NaN, because ``visualize_text`` needs a number.

    Args:
        explanation: the result of ``Explanation.to_dict()``.
        layer: a layer, or a pair (layer, position) if its rows have positions; None: each text's last row.

    Raises:
        ValueError: a text has no such row, or its information kept is not known for a unit
            (``visualize_text`` would show the unit as important).

    Example::

        >>> row = {"layer": 3, "position": None, "kept": [8.0, 0.0], "standard_error": [0.1, 0.1],
        ...        "regime_index": 1.0, "converged": True}
        >>> text = {"units": ["good", "<s>"], "offsets": [[0, 0, 4], None], "rows": [row], "predicted": "positive",
        ...         "probability": 0.9, "target": None}
        >>> [record] = captum_records({"texts": [text]})
        >>> record.raw_input_ids, record.word_attributions.tolist(), record.attr_score
        (['good', '&lt;s&gt;'], [1.0, 0.0], 8.0)
    """
    return [_record(text, explanations.one_row(text, layer)) for text in explanation["texts"]]


def _record(text: Values, row: Values) -> visualization.VisualizationDataRecord:
    import torch
    from captum.attr import visualization

    for unit, value in zip(text["units"], explanations.values(row), strict=True):
        if not known(value):
            raise ValueError(
                f"information kept of {unit!r} by {explanations.row_label(row)} is {value}, but a record needs every "
                "value; choose another layer, or leave this text out"
            )
    target = text["predicted"] if text["target"] is None else text["target"]
    return visualization.VisualizationDataRecord(
        word_attributions=torch.tensor([share or 0.0 for share in explanations.shares(text, row)]),
        pred_prob=math.nan if text["probability"] is None else text["probability"],
        pred_class=_escaped(text["predicted"]),
        true_class=UNKNOWN,
        attr_class=_escaped(target),
        attr_score=float(explanations.total(row)[0]),
        raw_input_ids=[_escaped(unit) for unit in text["units"]],
        convergence_score=float(row["converged"]),
    )


def _escaped(data: str | None) -> str:
    return UNKNOWN if data is None else html.escape(printable(data))
