"""Options that the commands share: texts to read, layers, files to write, a model to load; checked before any work."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.report.numbers import printable

if TYPE_CHECKING:
    from interp_plugin.data import Text, Texts
    from interp_plugin.text.calibration import Calibration
    from interp_plugin.text.explainer import TextExplainer

Dtype = Literal["float32", "bfloat16", "float16"]


def option(help: str, default: bool | str = False, **rules: Any) -> Any:
    """What an option is for, and what its help calls the default; True: the value itself, False: nothing."""
    return typer.Option(help=help, show_default=default, **rules)


SHOWN_FAILURES = 3

# options that the commands share
ModelName = Annotated[str | None, option("Folder or Hugging Face id of a model.", "the one that ships")]
TokenizerName = Annotated[str | None, option("Folder or id of its tokenizer.", "the model's")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python files that come with the model.")
]
Device = Annotated[str, option("cpu, cuda, cuda:1, mps.", True)]
DeviceMap = Annotated[
    str | None,
    option("Spread the model over several devices, in --device's place: auto, or JSON, a device by part."),
]
LoadIn = Annotated[Literal["8bit", "4bit"] | None, option("Weights in fewer bits, by bitsandbytes.")]
WeightType = Annotated[Dtype, option("Of the weights; scores are float32.", True)]
ForwardArgs = Annotated[
    str | None,
    option(
        'Further arguments of the model\'s forward, as JSON: {"langs": 1}, or a list with a value a text.'
    ),
]
Split = Annotated[str | None, option("Of a data set.", "train")]
TextColumn = Annotated[
    str | None, option("Of texts: its name; its number, from 0, without a header.", "found")
]
PairColumn = Annotated[str | None, option("Of second texts.", "none")]
LabelColumn = Annotated[str | None, option("Of each text's target: a class, by name or number.", "none")]
Encoding = Annotated[str, option("Of text files, such as latin-1.", True)]
BatchSize = Annotated[int, option("Texts at most in a batch.", True, min=1)]
Truncation = Annotated[bool, typer.Option("--truncation", help="Cut off what the model cannot take.")]
Calibrate = Annotated[
    Path | None,
    option(
        "File of texts: the states' spread over them is their unit; or a saved calibration, .safetensors.",
        "each text is its own unit",
    ),
]
Score = Annotated[
    Literal["kept", "erased"],
    option(
        "kept: how precisely each layer knows each token; erased: which tokens carry the class, the "
        "continuation or the layer.",
        True,
    ),
]
Side = Annotated[
    Literal["damage", "keep"],
    option("With --score erased: what to look for in erasures, damage or harmlessness.", True),
]
Page = Annotated[Path | None, option("Write a page to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@contextmanager
def one_sentence(*kinds: type[Exception]) -> Iterator[None]:
    """An error of these kinds, or one that the user can mend, is a sentence on standard error, with exit status 2."""
    caught = kinds or (ValueError, ImportError, OSError)
    try:
        yield
    except caught as error:
        say(f"Error: {str(error).replace(chr(10), ' ')}")
        raise typer.Exit(2) from error


def say(line: str) -> None:
    """Print a line on standard error, with escape sequences in names and messages written out."""
    typer.echo(printable(line), err=True)


def say_first(lines: Sequence[str], more: str) -> None:
    """The first lines, and how many more there are."""
    for line in lines[:SHOWN_FAILURES]:
        say(line)
    if len(lines) > SHOWN_FAILURES:
        say(f"and {len(lines) - SHOWN_FAILURES} {more}")


def parse_layers(layers: str) -> list[int | str]:
    """Layers from numbers, ranges and names with commas.

    Raises:
        ValueError: nothing between two commas, or a range that runs backwards.

    Example::

        >>> parse_layers("1,3-5,decoder.1-2,output")
        [1, 3, 4, 5, 'decoder.1', 'decoder.2', 'output']
    """
    labels: list[int | str] = []
    for part in map(str.strip, layers.split(",")):
        match = re.fullmatch(
            r"((?:hidden_states\.)?(?:encoder\.|decoder\.)?)(\d{1,4})(?:\s*-\s*(\d{1,4}))?", part
        )
        first, last = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
        if not part or first > last:
            raise ValueError(
                f"layers {layers!r} cannot be read: write all, or numbers, ranges and names as in 1,3-4,output"
            )
        numbers = range(first, last + 1)
        labels.extend([part] if not match else [f"{match[1]}{n}" for n in numbers] if match[1] else numbers)
    return labels


def read_texts(path: Path, encoding: str = "utf-8", as_lines: bool = False, **columns: str | None) -> Texts:
    """The texts of a file (- is standard input): of a table by column, otherwise a text a line.

    What records hold no text is printed on standard error.

    Args:
        as_lines: whether a table is read line by line, too.
        columns: as of ``data.read_texts``.

    Raises:
        ValueError: it cannot be read, or holds no text.
    """
    from interp_plugin import data

    named = "standard input" if str(path) == "-" else repr(str(path))
    try:
        if path.suffix in data.TABLES and not as_lines:
            found_columns: dict[str, Any] = {kind: column(str(path), name) for kind, name in columns.items()}
            found = data.read_texts(str(path), encoding=encoding, **found_columns)
        elif any(name is not None for name in columns.values()):
            raise ValueError(
                f"{named} is read line by line, without columns; leave --text-column, --pair-column and --label-column "
                f"out, or give a table: {', '.join(data.TABLES)}"
            )
        else:
            is_input = str(path) == "-"
            with nullcontext(sys.stdin.buffer) if is_input else path.open("rb") as opened:
                found = data.read_texts(data.lines(opened, named if is_input else path.name, encoding))
    except OSError as error:
        raise ValueError(f"cannot read {named}: {error.strerror}; give a file of texts") from error
    say_first([f"left out: {reason}" for reason in found.left_out], "more left out")
    return found


def check_outputs(*paths: Path | None) -> None:
    """See that files can be written, before hours of work.

    Raises:
        ValueError: a path where no file can be written.
    """
    from interp_plugin.files import check_output

    for path in filter(None, paths):
        try:
            check_output(path)
        except OSError as error:
            raise ValueError(
                f"cannot write {str(path)!r}: no file can be made in {str(path.parent)!r} ({error.strerror}); "
                "give a folder that is there and yours"
            ) from error


def check_folder(path: Path | None) -> None:
    """See that results can be written to a folder, before hours of work.

    Raises:
        ValueError: it is a file, or the URI of an object store.
    """
    from interp_plugin.files import check_local

    if path is None:
        return
    check_local(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a file; give a folder, which need not be there")


def check_installed(option: str, extra: str, *packages: str) -> None:
    """See that packages are installed, before hours of work.

    Raises:
        ValueError: one is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(
                f'{option} needs {package}, which is not installed: pip install "interp-plugin[{extra}]"'
            )


def check_save(path: Path | None) -> None:
    """See that an explanation can be saved there, before hours of work.

    Raises:
        ValueError: another kind of file, or what writes it is not installed.
    """
    if path is None:
        return
    if path.suffix not in (".parquet", ".csv", ""):
        raise ValueError(
            f"--save {str(path)!r} ends in {path.suffix}; give a name in .parquet (for Explanation.load) or .csv, or "
            "use --html or --json"
        )
    check_installed("--save", "table", "pandas" if path.suffix == ".csv" else "pyarrow")


def load_explainer(
    model: str | None, tokenizer: str | None, device: str, device_map: str | None = None, **options: Any
) -> TextExplainer:
    """The model in a folder or of a name, None for the one that ships, ready to explain.

    Args:
        options: further ones of ``huggingface.load``.

    Raises:
        ValueError: it cannot be loaded, or the device cannot be used.
    """
    from rich.console import Console
    from rich.text import Text as Words

    if device_map is not None and device != "cpu":
        raise ValueError("--device and --device-map both say where the model goes; give one")
    with Console(stderr=True).status(Words(printable("loading " + (model or "the default model")))):
        from interp_plugin import huggingface
        from interp_plugin.text.explainer import TextExplainer

        by_part = device_map is not None and device_map.startswith("{")
        with huggingface.quiet():
            found = huggingface.load(
                huggingface.default_model_path() if model is None else model,
                tokenizer,
                device=device if device_map is None else None,
                device_map=parse_json(device_map) if by_part else device_map,
                **options,
            )
            return TextExplainer(*found)


def parse_json(written: str | None) -> Any:
    """What is written as JSON; None where nothing is."""
    try:
        return None if written is None else json.loads(written)
    except json.JSONDecodeError as error:
        raise ValueError(f"{written!r} is not valid JSON: {error}") from error


def column(source: str, name: str | None) -> str | int | None:
    """A column by its name, or by its number where there may be no header.

    Example::

        >>> column("dev.tsv", "0"), column("dev.jsonl", "0"), column("s3://bucket/reviews", "0")
        (0, '0', 0)
    """
    from interp_plugin.data import is_remote

    path = Path(source)
    folder = path.is_dir() or (is_remote(source) and not path.suffix)
    numbered = path.suffix in (".csv", ".tsv") or folder
    return int(name) if numbered and name is not None and name.isdecimal() else name


def one_kind(**kinds: bool) -> str | None:
    """The kind of texts that is asked for, of options of which one at most may be given.

    Example::

        >>> one_kind(pairs=False, chats=True)
        'chats'
    """
    chosen = [kind for kind, is_chosen in kinds.items() if is_chosen]
    if len(chosen) > 1:
        raise ValueError(f"--{' and --'.join(chosen)} are different kinds of texts; give one of them")
    return chosen[0] if chosen else None


def given_texts(
    texts: list[str] | None, file: Path | None, encoding: str, kind: str | None, **columns: str | None
) -> tuple[list[Any], list[Any] | None]:
    """The texts of the command line, of a file, or of standard input, and the labels of --label-column.

    Pairs, choices and chats are lines; ``columns`` as of :func:`read_texts`.
    """
    from interp_plugin import data

    if texts and file is not None:
        raise ValueError(f"texts are given twice, on the command line and in {str(file)!r}; leave one out")
    has_labels = columns.get("label_column") is not None
    if has_labels and file is None:
        raise ValueError(
            "--label-column names a column of a table, and there is none; give --file, or --target"
        )
    found: list[Any] = list(texts or [])
    labels: list[Any] | None = None
    if not texts:
        if file is None and sys.stdin.isatty():
            raise ValueError(
                "there is no text: give one in quotes, --file, or a text a line on standard input"
            )
        as_lines = kind in ("pairs", "choices", "chats")
        read = read_texts(Path("-") if file is None else file, encoding, as_lines, **columns)
        found = list(read.texts)
        labels = list(read.labels or ()) if has_labels else None
    if kind == "chats":
        found = data.chats(found)
    elif kind == "words":
        found = [text.split() if isinstance(text, str) else tuple(map(str.split, text)) for text in found]
    elif kind is not None:
        found = list(data.parted(found, kind == "choices"))
    return found, labels


def sample_texts(path: Path | None, pairs: bool = False) -> list[Text] | None:
    """The texts that --calibrate names; None where it names a calibration that was saved, or nothing."""
    from interp_plugin import data

    if path is None or path.suffix == ".safetensors":
        return None
    texts = list(read_texts(path).texts)
    return list(data.parted(texts)) if pairs else texts


def calibration(
    explainer: TextExplainer, path: Path | None, texts: list[Text] | None, progress: bool, **options: Any
) -> Calibration | None:
    """The calibration that --calibrate names, or one of its texts; ``options`` are of ``calibrate``."""
    from interp_plugin.text.calibration import Calibration

    if texts is not None:
        return explainer.calibrate(texts, show_progress=progress, **options)
    return None if path is None else Calibration.load(path)


def parse_positions(positions: str | None) -> Literal["each", "all"] | list[int] | None:
    """Token positions from "each" or "all", or from numbers with commas; negative ones count from the end.

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


def parse_fixed(fixed: str | None) -> list[Any] | None:
    """Parts that bear no noise, from names, characters and an expression.

    Example::

        >>> parse_fixed("special,system,0-14")
        ['special', 'system', (0, 14)]
    """
    if fixed is None or fixed.startswith("re:"):
        return None if fixed is None else [parse_units(fixed)]
    spans = [(part.strip(), re.fullmatch(r"(\d{1,9})-(\d{1,9})", part.strip())) for part in fixed.split(",")]
    return [(int(span[1]), int(span[2])) if span else part for part, span in spans]


def parse_units(units: str | None) -> Any:
    """A name of units, or an expression whose matches are units."""
    if units is None or not units.startswith("re:"):
        return units
    try:
        return re.compile(units.removeprefix("re:"), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{units!r} is no regular expression: {error}") from error
