"""Options that the commands share: texts to read, layers, files to write, a model to load; checked before any work."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.report.numbers import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interp_plugin.data import Text, Texts
    from interp_plugin.text.calibration import Calibration
    from interp_plugin.text.explainer import TextExplainer

Dtype = Literal["float32", "bfloat16", "float16"]

Score = Annotated[
    Literal["kept", "erased"],
    typer.Option(
        help="kept: how precisely each layer knows each token; erased: which tokens carry the class, the "
        "continuation or the layer.",
    ),
]
Side = Annotated[
    Literal["damage", "keep"],
    typer.Option(help="With --score erased: what to look for in erasures, damage or harmlessness."),
]
Ways = Annotated[str, typer.Option(help="With --score erased: how tokens go, some of mask,attention,delete.")]

DPI = 200  # of pictures
SHOWN_FAILURES = 3

# options that the commands share
ModelName = Annotated[
    str | None, typer.Option(help="Folder or Hugging Face id of a model.", show_default="the one that ships")
]
TokenizerName = Annotated[
    str | None, typer.Option(help="Folder or id of its tokenizer.", show_default="the model's")
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Of texts: its name; its number, from 0, without a header.", show_default="found"),
]
PairColumn = Annotated[str | None, typer.Option(help="Of second texts.", show_default="none")]
Encoding = Annotated[str, typer.Option(help="Of text files, such as latin-1.")]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        help="File of texts: the states' spread over them is their unit; or a saved calibration, .safetensors.",
        show_default="each text is its own unit",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python files that come with the model.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
WeightType = Annotated[Dtype, typer.Option(help="Of the weights; scores are float32.")]
Truncation = Annotated[bool, typer.Option("--truncation", help="Cut off what the model cannot take.")]
Page = Annotated[Path | None, typer.Option(help="Write a page to this file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """An error that the user can mend is a sentence on standard error, with exit status 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        say(f"Error: {str(error).replace(chr(10), ' ')}")
        raise typer.Exit(2) from error


def say(line: str) -> None:
    """Print a line on standard error, with escape sequences in names and messages written out."""
    typer.echo(printable(line), err=True)


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


def read_file(
    path: Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    encoding: str = "utf-8",
    as_lines: bool = False,
) -> Texts:
    """The texts of a file (- is standard input): of a table by column, otherwise a text a line.

    Args:
        path: of the file.
        text_column, pair_column, encoding: as the options give them.
        as_lines: read the lines of a table as texts, too.

    Raises:
        ValueError: it cannot be read, or holds no text.
    """
    from interp_plugin import data

    named = repr(str(path))
    if str(path) == "-":
        return data.read_texts(data.lines(sys.stdin.buffer, "standard input", encoding))
    try:
        if path.suffix in data.TABLES and not as_lines:
            columns = column(str(path), text_column), column(str(path), pair_column)
            return data.read_texts(
                str(path), text_column=columns[0], pair_column=columns[1], encoding=encoding
            )
        if text_column is not None or pair_column is not None:
            raise ValueError(
                f"{named} has no columns; leave --text-column and --pair-column out, or give a table: "
                f"{', '.join(data.TABLES)}"
            )
        with path.open("rb") as opened:
            return data.read_texts(data.lines(opened, path.name, encoding))
    except OSError as error:
        raise ValueError(f"cannot read {named}: {error.strerror}; give a file of texts") from error


def say_left_out(reasons: Sequence[str]) -> None:
    """Print on standard error which records of a file hold no text."""
    for reason in reasons[:SHOWN_FAILURES]:
        say(f"left out: {reason}")
    if len(reasons) > SHOWN_FAILURES:
        say(f"and {len(reasons) - SHOWN_FAILURES} more left out")


def check_tolerance(tolerance: float | None) -> None:
    """See that a tolerance is one.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if tolerance is not None and not 0 < tolerance <= 1:
        raise ValueError(
            f"tolerance is {tolerance:g}, a standard error of log sigma, of which 1 is a factor of 2.7 already; give a "
            "number above 0 and at most 1, such as 0.1"
        )


def check_outputs(*paths: Path | None) -> None:
    """See that files can be written, before hours of work.

    Raises:
        ValueError: a path where no file can be written.
    """
    from interp_plugin.text.storage import check_output

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
    from interp_plugin.text.storage import check_local

    if path is None:
        return
    check_local(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a file; give a folder, which need not be there")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    from interp_plugin.text.storage import replace_file

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    replace_file(path, content.getvalue())


def check_installed(package: str, option: str, extra: str) -> None:
    """See that a package is installed, before hours of work.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec(package) is None:
        raise ValueError(
            f'{option} needs {package}, which is not installed: pip install "interp-plugin[{extra}]"'
        )


def load_explainer(
    model: str | None, tokenizer: str | None, device: str, dtype: Dtype, trust_remote_code: bool
) -> TextExplainer:
    """The model in a folder or of a name, None for the one that ships, ready to explain.

    Raises:
        ValueError: it cannot be loaded, or the device cannot be used.
    """
    from rich.console import Console
    from rich.text import Text as Words

    with Console(stderr=True).status(Words(printable("loading " + (model or "the default model")))):
        from interp_plugin import huggingface
        from interp_plugin.text.explainer import TextExplainer

        _check_device(device)
        source = huggingface.default_model_path() if model is None else model
        with huggingface.quiet():
            found = huggingface.load(
                source, tokenizer, device=device, dtype=dtype, trust_remote_code=trust_remote_code
            )
            return TextExplainer(*found)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, dtype=torch.float32, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device {device!r} cannot be used ({reason}); give cpu, or one that torch finds here"
        ) from error


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


def sample_texts(path: Path | None) -> list[Text] | None:
    """The texts that --calibrate names; None where it names a calibration that was saved, or nothing."""
    if path is None or path.suffix == ".safetensors":
        return None
    found = read_file(path)
    say_left_out(found.left_out)
    return list(found.texts)


def calibration(
    explainer: TextExplainer, path: Path | None, texts: list[Text] | None, progress: bool
) -> Calibration | None:
    """The calibration that --calibrate names, or one of its texts."""
    from interp_plugin.text.calibration import Calibration

    if texts is not None:
        return explainer.calibrate(texts, show_progress=progress)
    return None if path is None else Calibration.load(path)


def finite(value: Any) -> Any:
    """The same with None where a number is not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, (list, tuple)) else value
