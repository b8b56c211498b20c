"""Figures: matplotlib pictures of an explanation, unknown to pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from interp_plugin.rendering import drawing, labels, rows, shades

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Kind = Literal["layers", "tokens", "flow"]

_BAR = "#4292c6"


def plot(
    explanation: Mapping[str, Any], kind: Kind = "layers", text: int = 0, layer: rows.Choice | None = None
) -> Figure:
    """A figure of one text, or of all of them ("flow").

    * "layers": map of R rows (layers, or time steps) x T units on one scale in nats (where tokens were erased, each
      row on its own), the first row on top; with ``layer`` only that layer's rows.
    * "tokens": one row's T values as bars, with whiskers of one standard error; default the last row.
    * "flow": information kept of all units together, by layer, a line per text with a band of one standard
      error; ``text`` has no part in it.

    Args:
        explanation: what ``Explanation.to_dict()`` gives.
        kind: "layers", "tokens" or "flow".
        text: index of the text, from 0.
        layer: a layer, or a pair (layer, position) where its rows have positions.

    Raises:
        ValueError: no such kind, text or layer; the message names those that exist.

    Example::

        >>> row = {"layer": 3, "position": None, "kept": [8.0, 2.0], "standard_error": [0.1, 0.1],
        ...        "converged": True}
        >>> text = {"text": "good film", "units": ["good", "film"], "rows": [row]}
        >>> figure = plot({"texts": [text]}, kind="tokens")
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [8.0, 2.0]
    """
    kinds = {"layers": _draw_layers, "tokens": _draw_tokens}
    if kind == "flow":
        if labels.is_erased(explanation):
            raise ValueError(
                "kind 'flow' shows information kept by layer, and tokens were erased; draw 'layers'"
            )
        return _draw_flow(explanation["texts"], layer)
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} is not known; there are: {', '.join([*kinds, 'flow'])}")
    return kinds[kind](_text(explanation, text), layer, labels.quantity(explanation))


def draw_words_heatmap(
    sigma: NDArray[np.floating], words: Sequence[str], figure: Figure | None = None
) -> Figure:
    """One row of cells, a cell per word: dark where the word bears little noise, so where it matters.

    Args:
        sigma: (words,).
        words: their names.
        figure: an empty figure to draw in; default a new one, unknown to pyplot.
    """
    figure = drawing.new_figure(max(4.0, 0.7 * len(words)), 1.8, figure)
    axes = figure.add_subplot()
    image = axes.imshow(sigma.reshape(1, -1), aspect="auto", cmap="Blues_r")
    axes.set_yticks([])
    _name_units(axes, words)
    figure.colorbar(image, ax=axes, label="sigma")
    return figure


def _draw_layers(text: Mapping[str, Any], layer: rows.Choice | None, quantity: str) -> Figure:
    import numpy as np

    chosen = rows.of_layer(text, layer)
    erased = "erased" in chosen[0]
    # nats of the output and D of a layer have no common scale
    values = [labels.shares(row) if erased else labels.values(row) for row in chosen]
    kept = np.array(values, dtype=float)  # (R, T), a missing value is NaN
    if erased:
        low, span, quantity = -1.0, 2.0, f"{quantity}, share of the row's largest"
    else:
        low, span = shades.scale(
            [value for row in values for value in row],
            [error for row in chosen for error in row["standard_error"]],
            0.0,
        )
    names = [labels.row_label(row) for row in chosen]
    figure = drawing.new_figure(
        max(4.0, 1.5 + 0.3 * kept.shape[1] + drawing.room(names)),
        max(2.6, 0.6 + 0.28 * len(chosen) + drawing.room(text["units"])),
    )
    axes = figure.add_subplot()
    axes.set_facecolor("0.8")  # a missing value shows the ground, which is on no shade's hue
    image = axes.imshow(kept, aspect="auto", cmap=drawing.colours(signed=erased), vmin=low, vmax=low + span)
    _name_units(axes, text["units"])
    drawing.name_ticks(axes.set_yticks, names)
    figure.colorbar(image, ax=axes, label=quantity, fraction=0.05, aspect=15)
    return figure


def _draw_tokens(text: Mapping[str, Any], layer: rows.Choice | None, quantity: str) -> Figure:
    import numpy as np

    row = rows.one(text, layer)
    kept = np.array(labels.values(row), dtype=float)  # (T,), NaN draws no bar
    errors = np.nan_to_num(np.array(row["standard_error"], dtype=float))
    figure = drawing.new_figure(max(4.0, 1.5 + 0.3 * len(kept)), 2.8 + drawing.room(text["units"]))
    axes = figure.add_subplot()
    axes.bar(range(len(kept)), kept, yerr=errors, color=_BAR, ecolor="black", capsize=2)
    axes.set_xlim(-0.6, len(kept) - 0.4)
    if "erased" in row:
        axes.axhline(0, color="black", linewidth=0.8)
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{quantity}\n(whiskers: ± 1 standard error)", fontsize="small")
    _name_units(axes, text["units"])
    tied = labels.tied(row)
    for t, height in enumerate(kept + errors):
        if tied[t]:
            axes.annotate(labels.TIED, (t, height), (0, 1), textcoords="offset points", ha="center")
    note = f"  ({labels.TIED}: not told apart from the next in rank)" if any(tied) else ""
    axes.set_title(drawing.drawable(labels.row_label(row)) + note, fontsize="medium", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_flow(texts: Sequence[Mapping[str, Any]], layer: rows.Choice | None) -> Figure:
    import numpy as np

    chosen = [rows.of_layer(text, layer) for text in texts if text["rows"] or layer is not None]
    names = list(dict.fromkeys(labels.row_label(row) for found in chosen for row in found))  # in their order
    figure = drawing.new_figure(max(4.5, 2.0 + 0.4 * len(names)), 2.8 + drawing.room(names))
    axes = figure.add_subplot()
    # viridis short of its yellow end: told apart in grey and by every kind of colour vision, and dark enough
    colours = drawing.viridis()(np.linspace(0.0, 0.8, max(1, len(chosen))))
    for number, (found, colour) in enumerate(zip(chosen, colours, strict=False), start=1):
        places = [names.index(labels.row_label(row)) for row in found]
        kept, error = np.array([rows.total(row) for row in found]).T  # (R,) each
        marker = "osv^D"[number % 5]
        axes.plot(places, kept, marker=marker, markersize=4, color=colour, label=f"text {number}")
        axes.fill_between(places, kept - error, kept + error, color=colour, alpha=0.25, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("information kept of all units, nats\n(band: ± 1 standard error)", fontsize="small")
    drawing.name_ticks(axes.set_xticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.spines[["top", "right"]].set_visible(False)
    if len(chosen) > 1:
        figure.legend(loc="outside right upper", frameon=False, ncols=1 + (len(chosen) - 1) // 14)
    return figure


def _text(explanation: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    texts: Sequence[Mapping[str, Any]] = explanation["texts"]
    if not -len(texts) <= index < len(texts):
        raise ValueError(f"text {index} does not exist; there are {len(texts)}, counted from 0")
    return texts[index]


def _name_units(axes: Axes, units: Sequence[str]) -> None:
    # turned about its end, a label stays under its own cell
    drawing.name_ticks(axes.set_xticks, units, rotation=45, ha="right", rotation_mode="anchor")
