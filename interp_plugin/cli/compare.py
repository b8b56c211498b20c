"""The command ``interp-plugin compare``: compare attribution methods on a model and a set of texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from interp_plugin.cli import options
from interp_plugin.cli.options import option

EXAMPLES = """
Examples:

    interp-plugin compare --list

    interp-plugin compare dev.tsv

    interp-plugin compare dev.tsv --methods "integrated*,LIME" --metrics "suff*" --limit 20

    interp-plugin compare dev.csv --layers all --no-class --html study.html

    interp-plugin compare prompts.csv --model llm --layers 15 --metrics "contrastive*,state*"

    interp-plugin compare glue:sst2 --split validation --full --output study

prompts.csv has the columns text, target and instead_of: a language model's next token, and what it is
compared with.  By default four methods and two metrics are run on 50 texts, which takes minutes; the
command estimates first how long --full would take.  With --output, a run that was stopped continues where
it was, and a run with more texts, methods or metrics computes only the missing results.

Exit status: 0, or 2 for input that cannot be used, with one sentence that says why.
"""
QUICK_TEXTS = 50
Target = Literal["predicted", "label"]


def compare(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="A .tsv, .csv, .jsonl, .parquet or .txt file, a folder of them, or the name of a data set.",
            show_default=False,
        ),
    ] = None,
    split: options.Split = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    label_column: Annotated[str | None, option("Column of true classes.", "detected")] = None,
    rationale_column: Annotated[
        str | None, option("Column of rationales: character spans, or masks of tokens.", "detected")
    ] = None,
    target_column: Annotated[
        str | None,
        option("Column of a language model's next token, such as ' Paris'.", "detected, or the model's own"),
    ] = None,
    instead_of_column: Annotated[
        str | None, option("Column of the token that the target is compared with.", "detected")
    ] = None,
    limit: Annotated[int | None, option("Use only the first texts.", "all", min=1)] = None,
    sample: Annotated[
        int | None, option("Number of random texts, by --seed.", "50; all with --full or --limit", min=1)
    ] = None,
    model: options.ModelName = None,
    tokenizer: options.TokenizerName = None,
    trust_remote_code: options.TrustRemoteCode = False,
    methods: Annotated[
        str | None, option("Names from --list, separated by commas; * matches any characters.", "four")
    ] = None,
    metrics: Annotated[str | None, option("Names of metrics, in the same form.", "two or four")] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Use all texts, and all methods and metrics that support the model."),
    ] = False,
    layers: Annotated[
        str | None, option("Explain states too: all, or numbers, ranges, names: 1,3-4.", "none")
    ] = None,
    no_class: Annotated[bool, typer.Option("--no-class", help="Explain only states.")] = False,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Rank and remove special tokens like other tokens.")
    ] = False,
    target: Annotated[Target, option("Class to explain.", True)] = "predicted",
    calibrate: options.Calibrate = None,
    truncation: options.Truncation = False,
    output: Annotated[Path | None, option("Folder for a checkpoint log, reports and result.parquet.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --output: run again what failed.")
    ] = False,
    html: options.Page = None,
    markdown: Annotated[Path | None, option("Write the tables to this Markdown file.")] = None,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.WeightType = "float32",
    seed: Annotated[int, option("Seed of random numbers and of --sample.", True, min=0)] = 0,
    list_all: Annotated[bool, typer.Option("--list", help="Print methods and metrics, and exit.")] = False,
) -> None:
    """Compare attribution methods on a model and texts, and print the tables."""
    if list_all:
        _print_list(as_json)
        return
    with options.one_sentence():
        if source is None:
            raise ValueError(
                "there is no INPUT: give a file, a folder, or the name of a data set (only --list needs none)"
            )
        if no_class and layers is None:
            raise ValueError("--no-class leaves nothing to explain; give --layers, or leave --no-class out")
        options.check_folder(output)
        options.check_outputs(html, markdown)
        options.check_installed("compare", "compare", "pandas", "pyarrow", "scipy", "sklearn")
        if html is not None or output is not None:
            options.check_installed("a report", "compare", "matplotlib")
        labels = () if layers is None else options.parse_layers(layers)

        from interp_plugin import data
        from interp_plugin.comparison.study import QUICK, Study
        from interp_plugin.files import replace_file

        columns = {
            "text": text_column, "label": label_column, "rationale": rationale_column, "pair": pair_column,
            "target": target_column, "foil": instead_of_column,
        }  # fmt: skip
        named: dict[str, Any] = {
            f"{kind}_column": options.column(source, each) for kind, each in columns.items()
        }
        found = data.read_texts(source, split, limit=limit, **named)
        texts = found.sample(QUICK_TEXTS if (sample, limit, full) == (None, None, False) else sample, seed)
        unit_texts = options.sample_texts(calibrate)
        explainer = options.load_explainer(
            model, tokenizer, device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        settings: dict[str, Any] = {
            "layers": labels, "explain_class": not no_class, "with_special": special_tokens, "seed": seed,
            "calibration": options.calibration(explainer, calibrate, unit_texts, sys.stderr.isatty()),
        }  # fmt: skip
        default = None if full else QUICK
        study = Study(explainer.model, None, methods or default, metrics or default, **settings)
        options.say(study.price(texts))
        whole = found if sample is None else texts
        if not (full or (methods and metrics and len(texts.texts) == len(whole.texts))):
            everything = Study(explainer.model, None, methods, metrics, **settings)
            options.say(f"with --full: {everything.price(whole)}")
        result = study.run(
            texts, target=target, output=output, truncation=truncation, skip_invalid=True,
            retry_failed=retry_failed, show_progress=True if sys.stderr.isatty() else "lines",
        )  # fmt: skip
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
        options.say(f"wrote {path}")


def _print_list(as_json: bool) -> None:
    """Print all methods and metrics: what they explain or evaluate, and their sources."""
    from interp_plugin.comparison import tables
    from interp_plugin.report import terminal

    if as_json:
        typer.echo(json.dumps({kind: tables.known(kind) for kind in ("methods", "metrics")}))
    else:
        terminal.show(tables.catalogue())
