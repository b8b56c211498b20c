"""Pictures and page of a corpus study: curves over the layers, word classes, regimes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp_plugin.rendering import drawing, labels, page, shades, templates
from interp_plugin.rendering.labels import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layer = int | str
_MARKERS = "osv^D"
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """A mean for each of L layers, with both ends of its interval.

    Attributes:
        name: of the model.
        layers: L labels, in forward order.
        mean, low, high: L each, in nats; NaN where an end is not known.
    """

    name: str
    layers: Sequence[Layer]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Classes:
    """A number for each word class and layer: nats kept of a token, or what is lost when a word is erased.

    Attributes:
        layers: L labels.
        names: of C classes.
        tokens: of each class, C; or its words.
        kept, errors: (L, C), the numbers and their standard errors; NaN where not known.
        what: the numbers are, with their unit.
    """

    layers: Sequence[Layer]
    names: Sequence[str]
    tokens: Sequence[int]
    kept: Sequence[Sequence[float]]
    errors: Sequence[Sequence[float]]
    what: str = "kept, nats per token"


@dataclass(frozen=True)
class Regime:
    """The distribution of the regime index E over sentences.

    Attributes:
        layers: L labels.
        quantiles: 5, 25, 50, 75 and 95 % of each, (L, 5).
    """

    layers: Sequence[Layer]
    quantiles: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Page:
    """What a page says of a study.

    Attributes:
        model: its name.
        texts, failed: how many have numbers, and how many have none.
        seconds: that scoring took.
        layers, growth, knowledge: lines of the tables of the same names.
        classes, regime: what is drawn; regime None: it is not known.
        failures: row, reason and beginning of the first that failed.
        settings: by name.
        checks: lines of ``CorpusResult.check``, where numbers were predicted.
    """

    model: str
    texts: int
    failed: int
    seconds: float
    layers: Sequence[Mapping[str, Any]]
    growth: Sequence[Mapping[str, Any]]
    classes: Classes
    knowledge: Sequence[Mapping[str, Any]]
    regime: Regime | None
    failures: Sequence[tuple[int, str, str]]
    settings: Mapping[str, Any]
    checks: Sequence[Mapping[str, Any]] = ()


def plot_curves(curves: Sequence[Curve], unit: str) -> Figure:
    """Means by layer, a line for each model, with 95 % bands; models of other depths share the first layers' places.

    Examples::
        >>> figure = plot_curves([Curve("bert", [1, 2], [9.0, 5.0], [8.5, 4.6], [9.5, 5.4])], "nats per token")
        >>> [float(y) for y in figure.axes[0].lines[0].get_ydata()]
        [9.0, 5.0]
    """
    import numpy as np

    names = list(dict.fromkeys(label(layer) for curve in curves for layer in curve.layers))
    many = len(curves) > 1
    figure = drawing.new_figure(max(4.5, 2.0 + 0.4 * len(names)), 3.2 + drawing.room(names))
    axes = figure.add_subplot()
    colours = drawing.viridis()(np.linspace(0.0, 0.8, len(curves)))
    for number, (curve, colour) in enumerate(zip(curves, colours)):
        places = [names.index(label(layer)) for layer in curve.layers]
        style = {"marker": _MARKERS[number % 5], "linestyle": _STYLES[number % 4], "color": colour}
        axes.plot(places, curve.mean, markersize=4, label=drawing.drawable(curve.name), **style)
        axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)
    axes.set_ylabel(f"{unit}\n(band: 95 % of bootstrap means)", fontsize="small")
    _names_below(axes, names)
    axes.spines[["top", "right"]].set_visible(False)
    if many:
        legend = figure.legend(loc="outside upper right", frameon=False, ncols=min(3, len(curves)))
        for text in legend.get_texts():
            text.set_parse_math(False)
    elif curves:
        axes.set_title(drawing.drawable(curves[0].name), fontsize="medium", parse_math=False)
    return figure


def plot_classes(classes: Classes) -> Figure:
    """Map of word classes x layers, nats kept of a token, the first layer on the left.

    Examples::
        >>> figure = plot_classes(Classes([1, 2], ["stop word"], [7], [[3.0], [1.0]], [[0.1], [0.1]]))
        >>> figure.axes[0].images[0].get_array().tolist()
        [[3.0, 1.0]]
    """
    import numpy as np

    kept = np.array(classes.kept, dtype=float).T  # (C, L)
    columns = [label(layer) for layer in classes.layers]
    rows = [f"{name} ({count})" for name, count in zip(classes.names, classes.tokens)]
    low, span = shades.scale(_known(classes.kept), _known(classes.errors), 0.0)
    size = (
        2.4 + 0.08 * max(map(len, rows)) + 0.75 * len(columns),
        1.2 + 0.4 * len(rows) + drawing.room(columns),
    )
    figure = drawing.new_figure(*size)
    axes = figure.add_subplot()
    axes.set_facecolor("0.8")
    image = axes.imshow(kept, aspect="auto", cmap=drawing.colours(), vmin=low, vmax=low + span)
    for c, line in enumerate(kept):
        for layer, value in enumerate(line):
            if math.isfinite(value):
                _, ink = shades.shade((value - low) / span)
                colour = tuple(part / 255 for part in ink)
                axes.text(layer, c, f"{value:.3g}", ha="center", va="center", fontsize="small", color=colour)
    _names_below(axes, columns)
    axes.set_yticks(
        range(len(rows)), [_plain(name) for name in rows], fontsize="small", parse_math=False,
        family=drawing.families(),
    )  # fmt: skip
    figure.colorbar(image, ax=axes, label=classes.what, fraction=0.05, aspect=15)
    return figure


def plot_regime(regime: Regime) -> Figure:
    """Boxes of E by layer: quartiles and median, whiskers from 5 to 95 % of the sentences.

    Examples::
        >>> figure = plot_regime(Regime([1], [[0.9, 0.95, 1.0, 1.1, 1.3]]))
        >>> figure.axes[0].get_ylabel().startswith("regime index")
        True
    """
    names = [label(layer) for layer in regime.layers]
    figure = drawing.new_figure(max(4.5, 2.0 + 0.4 * len(names)), 2.8 + drawing.room(names))
    axes = figure.add_subplot()
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [{**dict(zip(keys, quantiles)), "fliers": []} for quantiles in regime.quantiles]
    drawn = axes.bxp(boxes, positions=range(len(names)), showfliers=False, patch_artist=True)
    for patch in drawn["boxes"]:
        patch.set_facecolor("#9ecae1")
    for line in drawn["medians"]:
        line.set_color("black")
    axes.axhline(1.0, color="#b3261e", linewidth=1, linestyle="--")
    axes.set_ylabel(
        "regime index E over sentences\n(box: quartiles; whiskers: 5 to 95 %;\ndashed: 1, small noise)",
        fontsize="small",
    )
    _names_below(axes, names)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def to_html(study: Page) -> str:
    """One self-contained page without any script: curves, tables, word classes, regimes, failures, settings."""
    layers, of = curves_of(study.layers)
    settings = dict(study.settings)
    versions = settings.pop("versions", {})
    settings.pop("held_out", None)  # the table of checks has it
    calibrated = settings.get("state_std")
    erased = is_erased(study.layers)
    subject = "what is lost with erased words" if erased else "information kept"
    return templates.template("page.corpus.html").render(
        title=printable(f"{study.model}: {subject}, layer by layer, of {study.texts} texts"),
        erased=erased,
        names=ERASED_LAYERS if erased else PAGE_LAYERS,
        class_caption=f"{study.classes.what}, ± standard error, by layer",
        style=templates.source("page.css") + templates.shade_rules(),
        facts=[
            ("texts", str(study.texts)),
            ("failed", str(study.failed)),
            ("scoring", duration(study.seconds)),
        ],
        yardstick=None if calibrated else labels.yardstick({"settings": {"state_std": False}}),
        curve=_image(plot_curves([_curve(study.model, layers, of)], study.classes.what)),
        regime=None if study.regime is None else _image(plot_regime(study.regime)),
        checks=[check_cells(line) for line in study.checks],
        checked=study.checks[0]["texts"] if study.checks else 0,
        check_names=CHECKS,
        layers=[layer_cells(layer, of) for layer in layers],
        growth=[_growth_cells(line) for line in study.growth],
        violations=sum(bool(line["violation"]) for line in study.growth),
        classes=_class_rows(study.classes),
        class_layers=[printable(label(layer)) for layer in study.classes.layers],
        knowledge=[_knowledge_cells(line) for line in study.knowledge],
        threshold=number(study.knowledge[0]["threshold"], 3) if study.knowledge else "-",
        failures=[
            (row, printable(reason), printable(beginning)) for row, reason, beginning in study.failures
        ],
        unlisted=study.failed - len(study.failures),
        settings=list(page.settings_shown(settings)),
        versions=list(page.settings_shown(versions)),
    )


def curves_of(
    lines: Sequence[Mapping[str, Any]],
) -> tuple[list[Layer], dict[Any, Mapping[str, Any]]]:
    """The layers, in their order, and the lines of ``CorpusResult.layers`` by quantity, unit and layer."""
    of = {(line["quantity"], line["per"], line["layer"]): line for line in lines}
    return list(dict.fromkeys(line["layer"] for line in lines)), of


def _curve(name: str, layers: Sequence[Layer], of: Mapping[Any, Mapping[str, Any]]) -> Curve:
    quantity = ("erased", "word") if ("erased", "word", layers[0]) in of else ("kept", "token")
    lines = [of[(*quantity, layer)] for layer in layers]
    return Curve(name, layers, *([line[key] for line in lines] for key in ("mean", "low", "high")))


PAGE_LAYERS = (
    "layer",
    "kept per token",
    "kept per sentence",
    "kept per token and dimension",
    "H(X|S) per sentence",
    "E (median)",
    "converged",
    "forward + backward passes",
)
ERASED_LAYERS = ("layer", "lost per word", "per sentence", "damage", "unit", "passes")


def is_erased(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these lines of ``CorpusResult.layers`` are of erasures."""
    return any(line["quantity"] == "erased" for line in lines)


def layer_cells(layer: Layer, of: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """A layer's line of a table: I of a token, a sentence and a dimension, H, E, share converged, passes.

    Of erasures it is the score of a word and a sentence, the damage, the unit of these and the passes.
    """

    def mean(quantity: str, per: str, digits: int = 4) -> str:
        line = of[quantity, per, layer]
        return f"{number(line['mean'], digits)} ({number(line['low'], digits)} to {number(line['high'], digits)})"

    passes = of["n_forward", "sentence", layer]["mean"], of["n_backward", "sentence", layer]["mean"]
    if ("erased", "word", layer) in of:
        return [
            printable(label(layer)),
            mean("erased", "word", 3),
            mean("erased", "sentence", 3),
            mean("damage", "sentence", 3),
            "nats" if layer == "output" else "D",
            f"{passes[0]:.0f} + {passes[1]:.0f}",
        ]
    converged = of["converged", "sentence", layer]["converged"]
    return [
        printable(label(layer)),
        mean("kept", "token"),
        mean("kept", "sentence"),
        mean("kept", "dimension", 3),
        mean("loss", "sentence"),
        number(of["regime_index", "median sentence", layer]["mean"], 3),
        "predicted" if math.isnan(converged) else f"{100 * converged:.0f} %",
        f"{passes[0]:.0f} + {passes[1]:.0f}",
    ]


CHECKS = (
    "layer",
    "error of log sigma",
    "when trained",
    "ranks (Spearman)",
    "within 2 s.e.",
    "shift, nats a token",
    "drift",
)


def check_cells(line: Mapping[str, Any]) -> list[str]:
    """What a table says of predictions at a layer, in the order of ``CHECKS``."""
    return [
        printable(label(line["layer"])),
        number(line["error"], 3),
        number(line["held_out"], 3),
        number(line["spearman"], 3),
        "-" if math.isnan(line["covered"]) else f"{100 * line['covered']:.0f} %",
        f"{number(line['shift'], 3)} ±{number(line['shift_error'], 2)}",
        f"yes (p {number(line['p_holm'], 2)})" if line["drift"] else "no",
    ]


def _growth_cells(line: Mapping[str, Any]) -> tuple[list[str], bool]:
    interval = f"{number(line['low'])} to {number(line['high'])}"
    cells = [
        f"{printable(label(line['after']))} to {printable(label(line['layer']))}",
        f"{number(line['growth'])} ({interval})",
        f"{100 * line['share']:.0f} %",
        number(line["p_holm"], 2),
        "grows" if line["violation"] else "no growth beyond chance",
    ]
    return cells, bool(line["violation"])


def _knowledge_cells(line: Mapping[str, Any]) -> list[str]:
    def known(name: str) -> str:
        return f"{number(line[name], 3)} ±{number(line[name + '_error'], 2)}"

    return [
        printable(label(line["layer"])),
        number(line["background"]),
        known("concentration"),
        number(line["concentration_ratio"], 3),
        known("foreground_points"),
        known("background_points"),
        known("foreground_share"),
    ]


def _class_rows(classes: Classes) -> Iterator[tuple[str, int, list[tuple[str, str, int]]]]:
    low, span = shades.scale(_known(classes.kept), _known(classes.errors), 0.0)
    for c, (name, tokens) in enumerate(zip(classes.names, classes.tokens)):
        cells = []
        for kept, errors in zip(classes.kept, classes.errors):
            share = (kept[c] - low) / span if math.isfinite(kept[c]) else 0.0
            cells.append(
                (
                    number(kept[c]),
                    f"±{number(errors[c], 2)}",
                    round(templates.SHADES * min(max(share, 0.0), 1.0)),
                )
            )
        yield printable(name), tokens, cells


def _image(figure: Figure) -> str:
    """The figure as an address that holds it."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "interp_plugin"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def _known(values: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in values for value in row if math.isfinite(value)]


def _names_below(axes: Axes, names: Sequence[str]) -> None:
    short = max(map(len, names), default=0) <= 3
    style: dict[str, Any] = {} if short else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    drawing.name_ticks(axes.set_xticks, names, **style)
    if all(name.isdecimal() for name in names):
        axes.set_xlabel("layer", fontsize="small")


def label(layer: Layer) -> str:
    return str(layer)


def _plain(name: str) -> str:
    """A name that no font need be looked up for letter by letter, in full: the figure is as wide as it needs."""
    return printable(name)


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits that a reader needs; "-" where it is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
