"""The command ``interp-plugin compare``: which attribution method explains a model best on a set of texts."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.cli.options import (
    AsJson,
    Calibrate,
    Device,
    ModelName,
    Page,
    TokenizerName,
    Truncation,
    TrustRemoteCode,
    WeightType,
    calibration,
    check_folder,
    check_installed,
    check_outputs,
    column,
    load_explainer,
    one_sentence,
    parse_layers,
    sample_texts,
    say,
)

if TYPE_CHECKING:
    from interp_plugin import comparison
    from interp_plugin.data import Texts

Target = Literal["predicted", "label"]

EXAMPLES = """
Examples:

    interp-plugin compare --list

    interp-plugin compare dev.tsv

    interp-plugin compare dev.tsv --methods "integrated*,LIME" --metrics "suff*" --limit 20

    interp-plugin compare dev.csv --layers all --no-class --html study.html

    interp-plugin compare glue:sst2 --split validation --full --output study

Without choices four methods and two metrics are run on 50 texts, which takes minutes; the command says
beforehand how long --full would take.  With --output a stopped run continues where it was, and one with
more texts, methods or metrics computes only the missing results.

Exit status: 0, or 2 for input that cannot be used, with one sentence that says why.
"""
QUICK_TEXTS = 50
_NEEDED = ("pandas", "pyarrow", "scipy", "sklearn")


def compare(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="A .tsv, .csv, .jsonl, .parquet or .txt file, a folder of them, or the name of a data set.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of a data set.", show_default="train, of a data set")
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="The column of the texts: its name; its number, from 0, in a file without a header.",
            show_default="found",
        ),
    ] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(help="The column of the second texts, where texts are pairs.", show_default=False),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="The column of the true classes (numbers or names).", show_default="found, if any"),
    ] = None,
    rationale_column: Annotated[
        str | None,
        typer.Option(
            help="The column of the rationales: spans of characters, or a mask of words or tokens.",
            show_default="found, if any",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first texts, this many.", show_default="all")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A random sample of the texts, by --seed.",
            show_default="50; all with --full or --limit",
        ),
    ] = None,
    model: ModelName = None,
    tokenizer: TokenizerName = None,
    trust_remote_code: TrustRemoteCode = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods by name, separated by commas, as --list shows them; * stands for anything.",
            show_default="four of them",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics in the same way.", show_default="two for the class, two for states"),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="All texts, and all methods and metrics that suit the model, unless chosen otherwise.",
        ),
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Explain states of layers too: all, or numbers, ranges and names: 1,3-4.",
            show_default="none",
        ),
    ] = None,
    no_class: Annotated[bool, typer.Option("--no-class", help="Do not explain the class.")] = False,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Rank and remove special tokens like others.")
    ] = False,
    target: Annotated[Target, typer.Option(help="Which class to explain.")] = "predicted",
    calibrate: Calibrate = None,
    truncation: Truncation = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a checkpoint log, and at the end for report.md, report.html, front.png and "
            "result.parquet.",
            show_default=False,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed in an earlier run into --output.")
    ] = False,
    html: Page = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables in Markdown to this file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    device: Device = "cpu",
    dtype: WeightType = "float32",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of methods that draw random numbers, and of --sample.")
    ] = 0,
    list_all: Annotated[
        bool, typer.Option("--list", help="Print all methods and metrics, and exit.")
    ] = False,
) -> None:
    """Compare attribution methods on a model and texts, and print the tables."""
    if list_all:
        _print_list(as_json)
        return
    with one_sentence():
        _check(source, layers, no_class, output, html, markdown)
        labels = () if layers is None else parse_layers(layers)
        found = _read(str(source), split, text_column, label_column, rationale_column, pair_column, limit)
        count = QUICK_TEXTS if sample is None and limit is None and not full else sample
        texts = sampled(found, count, seed)
        unit_texts = sample_texts(calibrate)

        from interp_plugin import comparison
        from interp_plugin.comparison.study import QUICK
        from interp_plugin.text.storage import replace_file

        explainer = load_explainer(model, tokenizer, device, dtype, trust_remote_code)
        progress: Any = True if sys.stderr.isatty() else "lines"
        unit = calibration(explainer, calibrate, unit_texts, sys.stderr.isatty())

        def study(methods: Any, metrics: Any) -> comparison.Study:
            return comparison.Study(
                explainer.model, None, methods, metrics, labels, explain_class=not no_class,
                with_special=special_tokens, calibration=unit, seed=seed,
            )  # fmt: skip

        some_methods = _names("method", methods, list(comparison.METHODS))
        some_metrics = _names("metric", metrics, list(comparison.METRICS))
        default = None if full else QUICK
        chosen = study(some_methods or default, some_metrics or default)
        say(_cost(chosen, texts))
        whole_texts = found if sample is None else texts
        if not (full or (some_methods and some_metrics and len(texts.texts) == len(whole_texts.texts))):
            say(f"with --full: {_cost(study(some_methods, some_metrics), whole_texts)}")
        result = chosen.run(
            list(texts.texts), texts.labels, texts.rationales, target, output, truncation=truncation,
            skip_invalid=True, retry_failed=retry_failed, show_progress=progress,
        )  # fmt: skip
        if found.left_out:
            first = "; ".join(found.left_out[:3])
            note = f"Records of {source} left out, as they have no text: {len(found.left_out)} ({first})."
            result = replace(result, notes=(note, *result.notes))
        written = [] if output is None else result.write_report(output)
        if markdown is not None:
            replace_file(markdown, result.to_markdown().encode())
            written.append(markdown)
        if html is not None:
            written.append(result.to_html(html))
    if as_json:
        typer.echo(json.dumps(result.to_dict(), allow_nan=False))
    else:
        result.show()
    for path in written:
        say(f"wrote {path}")


def _cost(study: comparison.Study, texts: Texts) -> str:
    from interp_plugin.comparison.study import in_words

    time = in_words(study.estimated_seconds(list(texts.texts)))
    return (
        f"{len(texts.texts)} texts, {len(study.methods)} methods, {len(study.metrics)} metrics: about {time}"
    )


def _names(kind: str, names: str | None, known: Sequence[str]) -> list[str] | None:
    return None if names is None else expanded(kind, split_names(names), known)


def split_names(names: str) -> list[str]:
    """Names separated by commas; a comma in brackets belongs to the name.

    Raises:
        ValueError: nothing between two commas.

    Example::

        >>> split_names("LIME, integrated gradients (zero, L2)")
        ['LIME', 'integrated gradients (zero, L2)']
    """
    parts = [part.strip() for part in re.split(r",(?![^()]*\))", names)]
    if not all(parts):
        raise ValueError(f"{names!r} cannot be read: write names with single commas between them")
    return parts


def expanded(kind: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names, each once; one with * is replaced by all known names that match.

    Raises:
        ValueError: a pattern that matches no name; names without * are not checked.

    Example::

        >>> expanded("method", ["S*", "LIME"], ["LIME", "SHAP", "Saliency"])
        ['SHAP', 'Saliency', 'LIME']
    """
    found: list[str] = []
    for name in names:
        pattern = ".*".join(map(re.escape, name.split("*")))
        fitting = [one for one in known if re.fullmatch(pattern, one)] if "*" in name else [name]
        if not fitting:
            raise ValueError(f"{kind} {name!r} fits none; choose from {', '.join(map(repr, known))}")
        found += fitting
    return list(dict.fromkeys(found))


def sampled(texts: Texts, count: int | None, seed: int) -> Texts:
    """A random sample of the texts, in their order; None: all."""
    if count is None or count >= len(texts.texts):
        return texts
    chosen = sorted(random.Random(seed).sample(range(len(texts.texts)), count))

    def some(values: tuple[Any, ...] | None) -> Any:
        return None if values is None else tuple(values[i] for i in chosen)

    return replace(
        texts, texts=some(texts.texts), labels=some(texts.labels), rationales=some(texts.rationales)
    )


def _check(
    source: str | None,
    layers: str | None,
    no_class: bool,
    output: Path | None,
    html: Path | None,
    markdown: Path | None,
) -> None:
    """Checks of the options before anything is read."""
    if source is None:
        raise ValueError(
            "there is no INPUT: give a file, a folder, or the name of a data set; --list needs none"
        )
    if no_class and layers is None:
        raise ValueError("--no-class leaves nothing to explain; give --layers, or leave it out")
    check_folder(output)
    check_outputs(html, markdown)
    for package in _NEEDED:
        check_installed(package, "compare", "compare")
    if html is not None or output is not None:
        check_installed("matplotlib", "a report", "compare")


def _read(
    source: str, split: str | None, text: str | None, label: str | None, rationale: str | None, pair: str | None,
    limit: int | None,
) -> Texts:  # fmt: skip
    from interp_plugin import data

    return data.read_texts(
        source, split, column(source, text), column(source, label), column(source, rationale),
        column(source, pair), limit,
    )  # fmt: skip


def _print_list(as_json: bool) -> None:
    """Prints all methods and metrics: what they explain or evaluate, and their sources."""
    from interp_plugin.comparison import METHODS, METRICS
    from interp_plugin.report import terminal
    from interp_plugin.report.model import Cell, Column, Report, Row, Section, Table

    if as_json:
        methods = [
            {"name": m.name, "explains": m.explains, "signed": m.signed, "source": m.source}
            for m in METHODS.values()
        ]
        metrics = [
            {"name": m.name, "judges": m.judges, "higher_is_better": m.higher_is_better, "source": m.source}
            for m in METRICS.values()
        ]
        typer.echo(json.dumps({"methods": methods, "metrics": metrics}))
    else:
        signs = [
            (m.name, m.explains, "signed" if m.signed else "unsigned", m.source) for m in METHODS.values()
        ]
        better = [(m.name, m.judges, "↓↑"[m.higher_is_better], m.source) for m in METRICS.values()]
        for names, rows in (
            (("method", "explains", "scores"), signs),
            (("metric", "judges", "better"), better),
        ):
            columns = tuple(Column(name, words=True) for name in (*names[1:], "source"))
            found = tuple(
                Row(name, (Cell(about), Cell(kind), Cell(source))) for name, about, kind, source in rows
            )
            terminal.show(Report("", (Section(tables=(Table("", names[0], columns, {"": found}),)),)))
