"""Options shared by the commands: texts to read, layers, files to write, a model to load; checked before any work."""

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
    from interp_plugin.text.explainer import TextExplainer
    from interp_plugin.text.states import Calibration

Dtype = Literal["float32", "bfloat16", "float16"]


def option(help: str, default: bool | str = False, **rules: Any) -> Any:
    """Describe an option; ``default`` is the default shown in its help (True: the value itself, False: nothing)."""
    return typer.Option(help=help, show_default=default, **rules)


SHOWN_FAILURES = 3

# options that the commands share
ModelName = Annotated[str | None, option("Folder or Hugging Face id of a model.", "the default model")]
TokenizerName = Annotated[str | None, option("Folder or id of a tokenizer.", "the model's")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python files that come with the model.")
]
Device = Annotated[str, option("Device: cpu, cuda, cuda:1, mps.", True)]
DeviceMap = Annotated[
    str | None,
    option(
        "Spread the model over several devices, instead of --device: auto, or JSON with a device per part."
    ),
]
LoadIn = Annotated[Literal["8bit", "4bit"] | None, option("Load the weights in 8 or 4 bits (bitsandbytes).")]
WeightType = Annotated[Dtype, option("Type of the weights; scores are float32.", True)]
ForwardArgs = Annotated[
    str | None,
    option(
        'Further arguments of the model\'s forward, as JSON: {"langs": 1}, or a list with one value per text.'
    ),
]
Split = Annotated[str | None, option("Split of a data set.", "train")]
TextColumn = Annotated[
    str | None, option("Column of texts: its name, or without a header its number, from 0.", "detected")
]
PairColumn = Annotated[str | None, option("Column of second texts.", "none")]
LabelColumn = Annotated[str | None, option("Column of targets: a class, by name or number.", "none")]
Encoding = Annotated[str, option("Encoding of text files, such as latin-1.", True)]
BatchSize = Annotated[int, option("Largest number of texts in a batch.", True, min=1)]
Truncation = Annotated[
    bool, typer.Option("--truncation", help="Truncate texts that are too long for the model.")
]
Calibrate = Annotated[
    Path | None,
    option(
        "File of texts: the standard deviation of states over them is the unit; or a saved calibration, .safetensors.",
        "the size of each text's state",
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
    option(
        "With --score erased: search for erasures that damage the answer, or for those that keep it.", True
    ),
]
Page = Annotated[Path | None, option("Write an HTML page to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]


@contextmanager
def one_sentence(*kinds: type[Exception]) -> Iterator[None]:
    """Print errors of these kinds as one sentence on standard error and exit with status 2.

    The default is the kinds of errors that a user can fix.
    """
    caught = kinds or (ValueError, ImportError, OSError)
    try:
        yield
    except caught as error:
        say(f"Error: {str(error).replace(chr(10), ' ')}")
        raise typer.Exit(2) from error


IN_OPTIONS = {
    "truncation=True": "--truncation",
    "is_split_into_words=True": "--words",
    "layers='output'": "--layers output",
    "score='erased'": "--score erased",
    "score='kept'": "--score kept",
}
"""Python arguments in messages -> options of the command line."""


def say(line: str) -> None:
    """Print a line on standard error, with escape sequences in it made visible."""
    for python, words in IN_OPTIONS.items():
        line = line.replace(python, words)
    typer.echo(printable(line), err=True)


def say_first(lines: Sequence[str], more: str) -> None:
    """Print the first lines, and how many more there are."""
    for line in lines[:SHOWN_FAILURES]:
        say(line)
    if len(lines) > SHOWN_FAILURES:
        say(f"and {len(lines) - SHOWN_FAILURES} {more}")


def parse_layers(layers: str) -> list[int | str]:
    """Parse layers given as numbers, ranges and names, separated by commas.

    Raises:
        ValueError: a part is empty, or a range runs backwards.

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
                f"layers {layers!r} cannot be read: give all, or numbers, ranges and names as in 1,3-4,output"
            )
        numbers = range(first, last + 1)
        labels.extend([part] if not match else [f"{match[1]}{n}" for n in numbers] if match[1] else numbers)
    return labels


def read_texts(path: Path, encoding: str = "utf-8", as_lines: bool = False, **columns: str | None) -> Texts:
    """Read texts from the columns of a table, or from the lines of another file; - is standard input.

    Records without a text are reported on standard error.

    Args:
        path: path of the file.
        encoding: encoding of text files.
        as_lines: read a table line by line, too.
        columns: arguments of ``data.read_texts``.

    Raises:
        ValueError: the file cannot be read, or holds no text.
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
    """Check that files can be written, before hours of work.

    Raises:
        ValueError: a file cannot be written.
    """
    from interp_plugin.files import check_output

    for path in filter(None, paths):
        try:
            check_output(path)
        except OSError as error:
            raise ValueError(
                f"cannot write {str(path)!r}: no file can be created in {str(path.parent)!r} ({error.strerror}); "
                "give an existing folder that you can write to"
            ) from error


def check_folder(path: Path | None) -> None:
    """Check that results can be written to a folder, before hours of work.

    Raises:
        ValueError: the path is a file, or the URI of an object store.
    """
    from interp_plugin.files import check_local

    if path is None:
        return
    check_local(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a file; give a folder, which need not exist")


def check_installed(option: str, extra: str, *packages: str) -> None:
    """Check that packages are installed, before hours of work.

    Raises:
        ValueError: a package is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(
                f'{option} needs {package}, which is not installed: pip install "interp-plugin[{extra}]"'
            )


def check_save(path: Path | None) -> None:
    """Check that an explanation can be saved to this path, before hours of work.

    Raises:
        ValueError: the type of the file is unknown, or the package that writes it is not installed.
    """
    if path is None:
        return
    if path.suffix not in (".parquet", ".csv", ""):
        raise ValueError(
            f"--save {str(path)!r} ends in {path.suffix}; give a name that ends in .parquet (for Explanation.load) or "
            ".csv, or use --html or --json"
        )
    check_installed("--save", "table", "pandas" if path.suffix == ".csv" else "pyarrow")


def check_png(path: Path | None) -> None:
    """Check that a picture can be written under this name, before hours of work.

    Raises:
        ValueError: the name has the extension of another format.
    """
    if path is not None and path.suffix.lower() not in ("", ".png"):
        raise ValueError(f"--png {str(path)!r} ends in {path.suffix}; give a name that ends in .png")


def load_explainer(
    model: str | None, tokenizer: str | None, device: str, device_map: str | None = None, **options: Any
) -> TextExplainer:
    """Load a model by folder or name, and make an explainer for it.

    Args:
        model: folder or Hugging Face id; None: the default model.
        tokenizer: folder or id of its tokenizer; None: the model's.
        device, device_map: where the model goes.
        options: further arguments of ``huggingface.load``.

    Raises:
        ValueError: the model cannot be loaded, or the device cannot be used.
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


def parse_json(text: str | None) -> Any:
    """Parse JSON; None stays None."""
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text!r} is not valid JSON: {error}") from error


def column(source: str, name: str | None) -> str | int | None:
    """Return a column's name, or its number if the source may have no header.

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
    """Return the kind of texts that is requested; at most one of these options may be given.

    Example::

        >>> one_kind(pairs=False, chats=True)
        'chats'
    """
    chosen = [kind for kind, is_chosen in kinds.items() if is_chosen]
    if len(chosen) > 1:
        raise ValueError(f"--{' and --'.join(chosen)} are different kinds of texts; give one of them")
    return chosen[0] if chosen else None


def input_texts(
    texts: list[str] | None, file: Path | None, encoding: str, kind: str | None, **columns: str | None
) -> tuple[list[Any], list[Any] | None]:
    """Return the texts of the command line, a file or standard input, and the labels of --label-column.

    Pairs, choices and chats are read line by line; ``columns`` are those of :func:`read_texts`.
    """
    from interp_plugin import data

    if texts and file is not None:
        raise ValueError(f"texts are given twice, on the command line and in {str(file)!r}; leave one out")
    has_labels = columns.get("label_column") is not None
    if has_labels and file is None:
        raise ValueError(
            "--label-column names a column of a table, but there is no table; give --file, or use --target"
        )
    found: list[Any] = list(texts or [])
    labels: list[Any] | None = None
    if not texts:
        if file is None and sys.stdin.isatty():
            raise ValueError(
                "there is no text: give one in quotes, or --file, or one text per line on standard input"
            )
        as_lines = kind in ("pairs", "choices", "chats")
        read = read_texts(Path("-") if file is None else file, encoding, as_lines, **columns)
        found = list(read.texts)
        labels = [_class(label) for label in read.labels or ()] if has_labels else None
    if kind == "chats":
        found = data.chats(found)
    elif kind == "words":
        found = [text.split() if isinstance(text, str) else tuple(map(str.split, text)) for text in found]
    elif kind is not None:
        found = list(data.parted(found, kind == "choices"))
    return found, labels


def _class(label: Any) -> str | int:
    """A class of --label-column; a table with missing numbers holds 1.0 for 1."""
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise ValueError(
            f"--label-column holds {label!r}, a {type(label).__name__}; a class is a name or a number"
        )
    return label


def sample_texts(path: Path | None, pairs: bool = False) -> list[Text] | None:
    """Read the texts of --calibrate; None if it is not given or names a saved calibration."""
    from interp_plugin import data

    if path is None or path.suffix == ".safetensors":
        return None
    texts = list(read_texts(path).texts)
    return list(data.parted(texts)) if pairs else texts


def calibration(
    explainer: TextExplainer, path: Path | None, texts: list[Text] | None, progress: bool, **options: Any
) -> Calibration | None:
    """Load the calibration of --calibrate, or compute it from texts; ``options`` are arguments of ``calibrate``."""
    from interp_plugin.text.states import Calibration

    if texts is not None:
        return explainer.calibrate(texts, show_progress=progress, **options)
    return None if path is None else Calibration.load(path)


def parse_positions(positions: str | None) -> Literal["each", "all"] | list[int] | None:
    """Parse token positions: "each", "all", or numbers separated by commas; negative ones count from the end.

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
            f"positions {positions!r} cannot be read: give each, all, or numbers as in 0,-1"
        ) from error


def parse_ways(ways: str | None) -> Any:
    """Parse ways to remove tokens, separated by commas.

    Example::

        >>> parse_ways("mask, delete")
        ['mask', 'delete']
    """
    return None if ways is None else [way.strip() for way in ways.split(",")]


def parse_fixed(fixed: str | None) -> list[Any] | None:
    """Parse the parts that get no noise: names, character spans, or a regular expression.

    Example::

        >>> parse_fixed("special,system,0-14")
        ['special', 'system', (0, 14)]
    """
    if fixed is None or fixed.startswith("re:"):
        return None if fixed is None else [parse_units(fixed)]
    spans = [(part.strip(), re.fullmatch(r"(\d{1,9})-(\d{1,9})", part.strip())) for part in fixed.split(",")]
    return [(int(span[1]), int(span[2])) if span else part for part, span in spans]


def parse_units(units: str | None) -> Any:
    """Parse the name of a kind of unit, or a regular expression whose matches are units."""
    if units is None or not units.startswith("re:"):
        return units
    try:
        return re.compile(units.removeprefix("re:"), re.DOTALL)
    except re.error as error:
        raise ValueError(f"{units!r} is not a regular expression: {error}") from error
