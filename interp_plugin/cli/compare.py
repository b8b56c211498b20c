"""``interp-plugin compare``: texts in, which attribution method explains a model best out."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.cli.given import (
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
    finite,
    load_explainer,
    one_sentence,
    parse_layers,
    sample_texts,
    save_picture,
    say,
)
from interp_plugin.text.storage import replace_file

if TYPE_CHECKING:
    from interp_plugin.comparison import StudyResult
    from interp_plugin.data import Texts

Target = Literal["predicted", "label"]

EXAMPLES = """
Examples:

    interp-plugin compare --list

    interp-plugin compare dev.tsv --methods "integrated*,LIME" --limit 20

    interp-plugin compare dev.tsv --text-column 0 --output study

    interp-plugin compare dev.csv --layers all --no-class --html study.html

    interp-plugin compare glue:sst2 --split validation --sample 200

With --output a run that was stopped goes on where it was, and one with more texts, methods or metrics
computes only what is new.

Exit status: 0, or 2 for what cannot be used as it was given, with one sentence that says why.
"""
_NEEDED = ("pandas", "pyarrow", "scipy", "sklearn")
_TABLE = "result.parquet"  # in the folder of --output


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
        str | None, typer.Option(help="Of a data set.", show_default="train, where it is a data set")
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Of texts: its name; its number, from 0, in a file without a header.", show_default="found"
        ),
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Of second texts, where texts are pairs.", show_default=False)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Of the true classes, by number or name.", show_default="found, if any")
    ] = None,
    rationale_column: Annotated[
        str | None,
        typer.Option(
            help="Of what people hold to be the reason: spans of characters, or a mask of words or tokens.",
            show_default="found, if any",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many texts.", show_default="all")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many of them at random, by --seed.", show_default="all")
    ] = None,
    model: ModelName = None,
    tokenizer: TokenizerName = None,
    trust_remote_code: TrustRemoteCode = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names with commas, as --list has them; * stands for anything.",
            show_default="all that suit the model",
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="The same of metrics.", show_default="all that suit the model")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Ask about states too: all, or numbers, ranges and names: 1,3-4.", show_default="none"
        ),
    ] = None,
    no_class: Annotated[bool, typer.Option("--no-class", help="Do not ask about the class.")] = False,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Rank and remove special tokens like others.")
    ] = False,
    target: Annotated[Target, typer.Option(help="Which class to explain.")] = "predicted",
    calibrate: Calibrate = None,
    truncation: Truncation = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results as they come, and at the end for report.md, report.html, front.png and "
            f"{_TABLE}.",
            show_default=False,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed when --output was filled.")
    ] = False,
    html: Page = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write tables for GitHub to this file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    device: Device = "cpu",
    dtype: WeightType = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of methods that draw, and of --sample.")] = 0,
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
        texts = sampled(found, sample, seed)
        unit_texts = sample_texts(calibrate)

        from interp_plugin import comparison

        asked = _named("method", methods, comparison.METHODS), _named("metric", metrics, comparison.METRICS)
        explainer = load_explainer(model, tokenizer, device, dtype, trust_remote_code)
        progress = sys.stderr.isatty()
        study = comparison.Study(
            explainer.model, None, *asked, labels, explain_class=not no_class, with_special=special_tokens,
            calibration=calibration(explainer, calibrate, unit_texts, progress), seed=seed,
        )  # fmt: skip
        result = study.run(
            list(texts.texts), texts.labels, texts.rationales, target, output, truncation=truncation,
            retry_failed=retry_failed, show_progress=progress,
        )  # fmt: skip
        written = list(_write(result, output, html, markdown))
    if as_json:
        typer.echo(json.dumps(_plain(result), allow_nan=False))
    else:
        result.show()
    for path in written:
        say(f"wrote {path}")


def split_names(names: str) -> list[str]:
    """Names with commas between them; those in brackets belong to a name.

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
    """Names, each once, with those that a * stands for in the order of what is known.

    Raises:
        ValueError: a pattern that fits none; a name without * is not looked at.

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
    """So many of the texts at random, in their order; None: all."""
    if count is None or count >= len(texts.texts):
        return texts
    chosen = sorted(random.Random(seed).sample(range(len(texts.texts)), count))
    parts = (texts.texts, texts.labels, texts.rationales)
    return type(texts)(*(None if part is None else tuple(part[i] for i in chosen) for part in parts))  # type: ignore[arg-type]


def _check(
    source: str | None,
    layers: str | None,
    no_class: bool,
    output: Path | None,
    html: Path | None,
    markdown: Path | None,
) -> None:
    """What can be refused before anything is read."""
    if source is None:
        raise ValueError(
            "there is no INPUT: give a file, a folder, or the name of a data set; --list needs none"
        )
    if no_class and layers is None:
        raise ValueError("--no-class leaves nothing to ask about; give --layers, or leave it out")
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


def _named(kind: str, names: str | None, known: Mapping[str, Any]) -> list[str] | None:
    return None if names is None else expanded(kind, split_names(names), list(known))


def _write(
    result: StudyResult, output: Path | None, html: Path | None, markdown: Path | None
) -> Iterator[Path]:
    """Write what was asked for; yields the files."""
    if output is not None:
        result.save(output / _TABLE)
        yield output / _TABLE
    for path in filter(None, (markdown, output and output / "report.md")):
        replace_file(path, result.to_markdown().encode())
        yield path
    for path in filter(None, (html, output and output / "report.html")):
        yield result.to_html(path)
    for question in result.questions if output is not None else ():
        path = output / _front_name(question, len(result.questions))  # type: ignore[operator]
        if _has_front(result, question):
            save_picture(result.plot("front", question=question), path)
            yield path


def _front_name(question: str, count: int) -> str:
    """Of a question's picture.

    Example::

        >>> _front_name("class", 1), _front_name("layer 3", 2)
        ('front.png', 'front-layer-3.png')
    """
    name = re.sub(r"[^\w.-]+", "-", question)
    return "front.png" if count == 1 else f"front-{name}.png"


def _has_front(result: StudyResult, question: str) -> bool:
    from interp_plugin.report.figures import can_be_drawn

    table = result.tables()[result.number("question", question)]
    return bool(table.columns) and any(map(can_be_drawn, result.front(table.columns[0].name, question)))


def _plain(result: StudyResult) -> dict[str, Any]:
    """The tables and what they depend on, for JSON."""
    from interp_plugin.comparison.views import plain

    return {
        "settings": dict(result.settings),
        "texts": len(result.texts),
        "tables": [finite(table) for table in plain(result)],
        "failures": [asdict(failure) for failure in result.failures],
        "left_out": dict(result.left_out),
    }


def _print_list(as_json: bool) -> None:
    """All methods and metrics: what each is about, and where it comes from."""
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
