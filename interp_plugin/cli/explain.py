"""The command ``interp-plugin explain``: how much every layer keeps of each token of some texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from interp_plugin.cli import options
from interp_plugin.cli.options import option

Granularity = Literal["token", "word", "sentence"]
Aggregate = Literal["sum", "mean", "max"]
Watched = Literal["logit", "log_probability", "probability", "log_odds", "margin"]

EXAMPLES = """
Examples:

    interp-plugin explain "a funny film with more than enough charm"

    interp-plugin explain "not a bad film" "not bad" --layers 1,3-4,output

    interp-plugin explain "not a bad film" --html film.html --png film.png

    interp-plugin explain --file reviews.csv --text-column comment --save reviews.parquet

    echo "not a bad film" | interp-plugin explain --granularity word --json

    interp-plugin explain "Paris is in" --model gpt2 --target " France"

    interp-plugin explain "I am" --target " old" --instead-of " new" --model gpt2

    interp-plugin explain "Once upon" --model gpt2 --generate 20 --html grid.html

    interp-plugin explain --file a.jsonl --chats --model NAME --fixed special

    interp-plugin explain "not a bad film" --score erased

Exit status: 0, or 2 for input that cannot be used, with one sentence that says why.
"""

File = option(
    "File of texts: a table (.csv, .tsv, .jsonl, .parquet), or one text per line; - is standard input."
)
Layers = option(
    "Layers: all, or numbers, ranges and names: 1,3-4 or all,output or encoder.1-3,decoder.2.",
    "all; output with a class as target, or with --score erased",
)
Target = option(
    "Output to explain: a class or choice, by name or number, or each; start, end or both for an answer; for a "
    "language model the next tokens, with layers watched at the positions that predict them.",
    "all classes; both; the model's own next token",
)
Chats = option(
    'Every text is a chat: messages as JSON, [{"role": "user", "content": "..."}], one chat per line.'
)
Continuation = option("For a language model, the text that follows: a row for each of its tokens.")
Generate = option("Let a language model generate this many tokens: a row for each of them.", min=1)
Fixed = option(
    "Parts without noise, separated by commas: special, roles of a chat, characters as in 0-14; or one regular "
    "expression, re:..."
)
Units = option(
    "Units with one noise scale each: word, sentence, paragraph, message, or re:... for the matches of an expression.",
    "token",
)
Foil = option("What the target is compared with: --target Paris --instead-of London.")
Function = option(
    "Function of the target to watch.", "log_probability for a language model or answer, logit for a class"
)
Removal = option(
    "With --score erased: how tokens are removed: mask, attention, delete, or several.",
    "mask; delete for the target of a decoder",
)
Aggregated = option("How the nats of a word or sentence are computed from those of its tokens.", True)
Positions = option(
    "Watch a layer at single tokens: numbers, as in 0,-1, or each; all: all tokens together.",
    "all; for a language model, the positions that predict its target",
)
Picture = option("Write a picture of layers x tokens; several texts are numbered: film-1.png, film-2.png.")
Saved = option("Write a .parquet file, for Explanation.load, or a table as .csv.")
Details = option("Also print standard errors, diagnostics, how to read the numbers, and the cost.")
Calibrate = option(
    "File of texts: the standard deviation of states over them is the unit, which makes layers comparable.",
    "the size of each text's state",
)
Tolerance = option("Standard error of log sigma to reach.", "the solver's")
Quick = option("Use only the closed form, in 8 passes (4 with several layers), exact for small noise.")
MaxPasses = option(
    "Largest number of sample passes for a text and layer; with --score erased, the approximate number.",
    "enough for most layers; 100 with --score erased",
    min=28,
)


def explain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts to explain; without any, standard input is read, one text per line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[Path | None, File] = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = None,
    encoding: options.Encoding = "utf-8",
    pairs: Annotated[bool, option("Every text is two sentences, separated by a tab.")] = False,
    choices: Annotated[bool, option("Every text is followed by its choices, separated by tabs.")] = False,
    chats: Annotated[bool, Chats] = False,
    words: Annotated[bool, option("Every text is already split into words, separated by spaces.")] = False,
    forward_args: options.ForwardArgs = None,
    model: options.ModelName = None,
    tokenizer: options.TokenizerName = None,
    trust_remote_code: options.TrustRemoteCode = False,
    layers: Annotated[str | None, Layers] = None,
    target: Annotated[str | None, Target] = None,
    continuation: Annotated[str | None, Continuation] = None,
    generate: Annotated[int | None, Generate] = None,
    fixed: Annotated[str | None, Fixed] = None,
    units: Annotated[str | None, Units] = None,
    instead_of: Annotated[str | None, Foil] = None,
    function: Annotated[Watched | None, Function] = None,
    score: options.Score = "kept",
    side: options.Side = "damage",
    ways: Annotated[str | None, Removal] = None,
    granularity: Annotated[Granularity, option("Units that are scored.", True)] = "token",
    aggregate: Annotated[Aggregate, Aggregated] = "mean",
    positions: Annotated[str | None, Positions] = None,
    html: options.Page = None,
    png: Annotated[Path | None, Picture] = None,
    save: Annotated[Path | None, Saved] = None,
    as_json: options.AsJson = False,
    details: Annotated[bool, Details] = False,
    calibrate: Annotated[Path | None, Calibrate] = None,
    device: options.Device = "cpu",
    device_map: options.DeviceMap = None,
    dtype: options.WeightType = "float32",
    load_in: options.LoadIn = None,
    batch_size: options.BatchSize = 16,
    truncation: options.Truncation = False,
    rate: Annotated[float, option("Weight of entropy against distortion, > 0.", True)] = 0.1,
    tolerance: Annotated[float | None, Tolerance] = None,
    quick: Annotated[bool, Quick] = False,
    max_passes: Annotated[int | None, MaxPasses] = None,
    seed: Annotated[int, option("Seed of the noise.", True)] = 0,
) -> None:
    """Print how much of each token every layer keeps, in nats."""
    with options.one_sentence():
        kind = options.one_kind(pairs=pairs, choices=choices, chats=chats, words=words)
        if label_column is not None and target is not None:
            raise ValueError("--target and --label-column both choose the output; leave one out")
        inputs: Any
        columns = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column}
        inputs, labels = options.input_texts(texts, file, encoding, kind, **columns)
        targets: Any = target if labels is None else labels
        if sum(value is not None for value in (generate, continuation, targets)) > 1:
            raise ValueError(
                "--generate, --continuation and --target all choose what follows; give one of them"
            )
        if (generate is not None or continuation is not None) and len(inputs) != 1:
            raise ValueError(
                f"{len(inputs)} texts are given, but --generate and --continuation take only one; give one text"
            )
        settings: dict[str, Any] = {
            "layers": None if layers is None else options.parse_layers(layers), "rate": rate, "batch_size": batch_size,
            "positions": options.parse_positions(positions), "fixed": options.parse_fixed(fixed),
            "units": options.parse_units(units),
            "truncation": truncation, "show_progress": sys.stderr.isatty(), "score": score, "side": side,
            "is_split_into_words": words, "forward_args": options.parse_json(forward_args),
            "ways": options.parse_ways(ways), "function": function, "instead_of": instead_of,
        }  # fmt: skip
        sample = options.sample_texts(calibrate, pairs)
        options.check_outputs(html, png, save)
        options.check_save(save)
        options.check_png(png)
        explainer = options.load_explainer(
            model,
            tokenizer,
            device,
            device_map,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            load_in=load_in,
        )
        settings["solver"] = explainer.solver(tolerance, max_passes, seed, quick)
        settings |= {} if max_passes is None else {"passes": max_passes}
        if calibrate is not None:
            sizes = {"layers": settings["layers"] or "all", "batch_size": batch_size}
            explainer.calibration = options.calibration(
                explainer, calibrate, sample, sys.stderr.isatty(), **sizes
            )
        if generate is not None:
            explanation = explainer.generate(inputs, generate, **settings)
        else:
            explanation = explainer.explain(inputs, target=targets, continuation=continuation, **settings)
        written = [path for path in (save, html) if path is not None]
        if save is not None:
            explanation.save(save, granularity, aggregate)
        if html is not None:
            explanation.to_html(html, granularity, aggregate)
        written += [] if png is None else explanation.save_pictures(png, granularity, aggregate)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(granularity, aggregate), allow_nan=False))
    else:
        explanation.show(granularity=granularity, aggregate=aggregate, details=details)
    for path in written:
        options.say(f"wrote {path}")
