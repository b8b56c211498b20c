"""``interp-plugin explain``: texts in, how much of each token every layer keeps out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.cli.options import (
    AsJson,
    Device,
    Encoding,
    ModelName,
    Page,
    PairColumn,
    Score,
    Side,
    TextColumn,
    TokenizerName,
    Truncation,
    TrustRemoteCode,
    WeightType,
    calibration,
    check_installed,
    check_outputs,
    check_tolerance,
    load_explainer,
    one_sentence,
    parse_layers,
    read_file,
    sample_texts,
    save_picture,
    say,
    say_left_out,
)

if TYPE_CHECKING:
    from interp_plugin.text.explainer import Text
    from interp_plugin.text.explanation import Explanation
    from interp_plugin.text.models import Label, TextModel

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

Exit status: 0, or 2 for what cannot be used as it was given, with one sentence that says why.
"""


def explain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts to explain; none: standard input, a text a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="File of texts: a table (.csv, .tsv, .jsonl, .parquet), or a text a line; - is standard input.",
            show_default=False,
        ),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    encoding: Encoding = "utf-8",
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Every text, or line of a file, is two sentences with a tab between."),
    ] = False,
    model: ModelName = None,
    tokenizer: TokenizerName = None,
    trust_remote_code: TrustRemoteCode = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="all, or numbers, ranges and names: 1,3-4 or all,output or encoder.1-3,decoder.2.",
            show_default="all; output with a class as target, or with --score erased",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Which output: a class, by name or number; for a language model the continuation, and its "
            "layers are watched where that is predicted.",
            show_default="all classes; the model's own next token",
        ),
    ] = None,
    chats: Annotated[
        bool,
        typer.Option(
            "--chats",
            help='Every text is a chat: messages as JSON, [{"role": "user", "content": "..."}], a chat a line.',
        ),
    ] = False,
    continuation: Annotated[
        str | None,
        typer.Option(
            help="What follows the text, of a language model: a row for each of its tokens.",
            show_default=False,
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1, help="Let the model go on for so many tokens: a row for each of them.", show_default=False
        ),
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="Parts that bear no noise, with commas: special, roles of a chat, characters as in 0-14; or one "
            "regular expression, re:...",
            show_default=False,
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="What shares one scale of noise: word, sentence, paragraph, message, or re:... for its matches.",
            show_default="every token has its own",
        ),
    ] = None,
    instead_of: Annotated[
        str | None,
        typer.Option(
            help="What the target is compared with: --target Paris --instead-of London.", show_default=False
        ),
    ] = None,
    function: Annotated[
        Watched | None,
        typer.Option(
            help="What is watched of the target.",
            show_default="log_probability of a language model, logit of a class",
        ),
    ] = None,
    score: Score = "kept",
    side: Side = "damage",
    ways: Annotated[
        str | None,
        typer.Option(
            help="With --score erased: how tokens go, some of mask,attention,delete.",
            show_default="mask; delete for the target of a decoder",
        ),
    ] = None,
    granularity: Annotated[Granularity, typer.Option(help="What a score is of.")] = "token",
    aggregate: Annotated[
        Aggregate, typer.Option(help="How the nats of a word or sentence come of its tokens'.")
    ] = "mean",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Watch a layer at single tokens: numbers, as in 0,-1, or each; all is together.",
            show_default="all tokens together; where a language model predicts its target",
        ),
    ] = None,
    html: Page = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture of layers x tokens; several texts are numbered: film-1.png, film-2.png.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write a .parquet file, for Explanation.load, or a table as .csv.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="Print standard errors, diagnostics, how to read the numbers, and the cost too."
        ),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="File of texts: the states' spread over them is the unit, so that layers compare.",
            show_default="each text is its own unit",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: WeightType = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at most in a batch.")] = 16,
    truncation: Truncation = False,
    rate: Annotated[float, typer.Option(help="Weight of entropy against distortion, > 0.")] = 0.1,
    tolerance: Annotated[
        float | None, typer.Option(help="Standard error of log sigma to reach.", show_default="the solver's")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="The closed form alone, in 8 passes (4 of several layers), exact for small noise."
        ),
    ] = False,
    max_passes: Annotated[
        int | None,
        typer.Option(
            min=28,
            help="Sample passes of a text and layer at most; with --score erased, about as many.",
            show_default="enough for most layers; 100 with --score erased",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
) -> None:
    """Print how much of each token every layer keeps, in nats."""
    with one_sentence():
        check_tolerance(tolerance)
        wanted: Any = _texts(texts, file, text_column, pair_column, encoding, pairs, chats)
        wanted = _chats(wanted) if chats else wanted
        parts = {"fixed": parse_fixed(fixed), "units": parse_units(units)}
        if generate is not None and (continuation is not None or target is not None):
            raise ValueError("--generate, --continuation and --target all say what follows; give one of them")
        sample = sample_texts(calibrate)
        labels = None if layers is None else parse_layers(layers)
        places = parse_positions(positions)
        check_outputs(html, png, save)
        _check_save(save)

        # torch and transformers take seconds to import: --help and bad input need not wait for them
        from interp_plugin.method.erasure import PASSES, check_ways
        from interp_plugin.method.solver import Solver

        Solver(
            seed=seed, max_passes=max_passes, tolerance=tolerance or Solver.tolerance
        )  # refused before loading
        explainer = load_explainer(model, tokenizer, device, dtype, trust_remote_code)
        solver = replace(explainer.usual_solver, seed=seed, iterations=0 if quick else None)
        solver = solver if max_passes is None else replace(solver, max_passes=max_passes)
        solver = solver if tolerance is None else replace(solver, tolerance=tolerance)
        chosen = _chosen(explainer.model, labels, target, score)
        progress = sys.stderr.isatty()
        if sample is not None:
            explainer.calibrate(_split(sample, pairs), chosen, batch_size=batch_size, show_progress=progress)
        elif calibrate is not None:
            explainer.calibration = calibration(explainer, calibrate, None, progress)
        removed = None if ways is None else check_ways(ways.split(","))
        options: dict[str, Any] = {
            "positions": places, "rate": rate, "solver": solver, "batch_size": batch_size,
            "internal_batch_size": "auto", "truncation": truncation, "show_progress": progress, "score": score,
            "side": side, "ways": removed, "passes": max_passes or PASSES, "function": function,
            **parts,
        }  # fmt: skip
        if generate is not None or continuation is not None:
            options["layers"] = "all" if layers is None else chosen
            [text] = _one(wanted)
        if generate is not None:
            explanation = explainer.generate(text, generate, **options)
        elif continuation is not None:
            explanation = explainer.explain(text, continuation=continuation, **options)
        else:
            explanation = explainer.explain(wanted, chosen, target, instead_of=instead_of, **options)
        written = _write(explanation, granularity, aggregate, html, png, save)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(granularity, aggregate), allow_nan=False))
    else:
        explanation.show(granularity=granularity, aggregate=aggregate, details=details)
    for path in written:
        say(f"wrote {path}")


def parse_positions(positions: str | None) -> Literal["each", "all"] | list[int] | None:
    """Token positions from "each", or from numbers with commas; negative ones count from the end.

    Raises:
        ValueError: anything else.

    Example::

        >>> parse_positions("0,-1")
        [0, -1]
    """
    if positions is None:
        return None
    if positions.strip() in ("each", "all"):
        return "each" if positions.strip() == "each" else "all"
    try:
        return [int(part) for part in positions.split(",")]
    except ValueError as error:
        raise ValueError(
            f"positions {positions!r} cannot be read: write each, all, or numbers as in 0,-1"
        ) from error


def _texts(
    texts: list[str] | None,
    file: Path | None,
    text_column: str | None,
    pair_column: str | None,
    encoding: str,
    pairs: bool,
    chats: bool = False,
) -> list[Text]:
    """The texts of the command line, of a file, or of standard input; pairs and chats are lines."""
    if texts and file is not None:
        raise ValueError(f"texts are given twice, on the command line and in {str(file)!r}; leave one out")
    if texts:
        return _split(texts, pairs)
    if file is None and sys.stdin.isatty():
        raise ValueError("there is no text: give one in quotes, --file, or a text a line on standard input")
    found = read_file(
        Path("-") if file is None else file, text_column, pair_column, encoding, as_lines=pairs or chats
    )
    say_left_out(found.left_out)
    return _split(found.texts, pairs)


def _one(texts: Sequence[Any]) -> Sequence[Any]:
    """The one text that a continuation follows."""
    if len(texts) != 1:
        raise ValueError(
            f"{len(texts)} texts are given, and --generate and --continuation take one; leave one"
        )
    return texts


def _chats(texts: Sequence[str]) -> list[Any]:
    """The messages of each chat, from JSON.

    Example::

        >>> _chats(['[{"role": "user", "content": "Hello"}]'])
        [[{'role': 'user', 'content': 'Hello'}]]
    """
    found = []
    for number, text in enumerate(texts):
        try:
            chat = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"chat {number} is no JSON ({error}); give a list of messages a line") from error
        chat = chat["messages"] if isinstance(chat, dict) and "messages" in chat else chat
        if not isinstance(chat, list) or not chat or not all(isinstance(message, dict) for message in chat):
            raise ValueError(f"chat {number} is no list of messages with role and content; write one a line")
        found.append(chat)
    return found


def parse_fixed(fixed: str | None) -> list[Any] | None:
    """Parts that bear no noise, from names, characters and an expression.

    Example::

        >>> parse_fixed("special,system,0-14")
        ['special', 'system', (0, 14)]
    """
    if fixed is None:
        return None
    if fixed.startswith("re:"):
        return [_pattern(fixed)]
    spans = [(part.strip(), re.fullmatch(r"(\d{1,9})-(\d{1,9})", part.strip())) for part in fixed.split(",")]
    return [(int(span[1]), int(span[2])) if span else part for part, span in spans]


def parse_units(units: str | None) -> Any:
    """A name of units, or an expression whose matches are units."""
    return _pattern(units) if units is not None and units.startswith("re:") else units


def _pattern(written: str) -> re.Pattern[str]:
    try:
        return re.compile(written.removeprefix("re:"), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{written!r} is no regular expression: {error}") from error


def _split(texts: Sequence[Text], pairs: bool) -> list[Text]:
    """The texts, or the pairs that their tabs separate."""
    if not pairs:
        return list(texts)
    found: list[Text] = []
    for text in texts:
        if not isinstance(text, str) or text.count("\t") != 1:
            count = text.count("\t")
            raise ValueError(f"text {text!r} has {count} tabs: with --pairs, one separates the two sentences")
        first, second = text.split("\t")
        found.append((first, second))
    return found


def _check_save(path: Path | None) -> None:
    """What cannot be saved is refused before any work."""
    if path is None:
        return
    if path.suffix not in (".parquet", ".csv", ""):
        raise ValueError(
            f"--save {str(path)!r} ends in {path.suffix}; give a name in .parquet (for Explanation.load) or .csv, or "
            "use --html or --json"
        )
    check_installed("pandas" if path.suffix == ".csv" else "pyarrow", "--save", "table")


def _chosen(
    model: TextModel, labels: Sequence[Label] | None, target: str | None, score: Score
) -> Sequence[Label]:
    """The layers: of a class, and of erasures, the output where no others are named."""
    of_class = target is not None and model.task != "next token"
    if labels is None:
        labels = ["output"] if of_class or (score == "erased" and model.task != "none") else ["all"]
    return labels


def _write(
    explanation: Explanation,
    granularity: Granularity,
    aggregate: Aggregate,
    html: Path | None,
    png: Path | None,
    save: Path | None,
) -> list[Path]:
    """Write the files that were chosen; returns their paths."""
    from interp_plugin.text.storage import replace_file

    written = []
    if save is not None and save.suffix == ".csv":
        table = explanation.to_pandas(granularity, aggregate)
        replace_file(save, table.to_csv(index=False).encode())
        written.append(save)
    elif save is not None:
        explanation.save(save)
        written.append(save)
    if html is not None:
        written.append(explanation.to_html(html, granularity, aggregate))
    for text, path in enumerate(_numbered(png, len(explanation)) if png is not None else []):
        figure = explanation.plot("layers", text=text, granularity=granularity, aggregate=aggregate)
        save_picture(figure, path)
        written.append(path)
    return written


def _numbered(path: Path, count: int) -> list[Path]:
    """A path for each of so many texts, in an order that sorts.

    Example::

        >>> [str(path) for path in _numbered(Path("a/film.png"), 2)]
        ['a/film-1.png', 'a/film-2.png']
    """
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{width}}") for number in range(1, count + 1)]
