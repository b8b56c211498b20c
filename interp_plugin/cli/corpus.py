"""``interp-plugin corpus``: a study of all texts of a file, on one process or several."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.cli.options import (
    SHOWN_FAILURES,
    AsJson,
    Calibrate,
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
    Ways,
    WeightType,
    calibration,
    check_folder,
    check_installed,
    check_outputs,
    check_tolerance,
    column,
    load_explainer,
    one_sentence,
    parse_layers,
    sample_texts,
    say,
)

if TYPE_CHECKING:
    from interp_plugin.corpus.result import CorpusResult
    from interp_plugin.corpus.study import CorpusStudy
    from interp_plugin.data import Text
    from interp_plugin.text.calibration import Calibration
    from interp_plugin.text.explainer import TextExplainer

Engine = Literal["local", "ray"]

EXAMPLES = """Examples:

    interp-plugin corpus reviews.txt --output corpus

    interp-plugin corpus dev.tsv --text-column 0 --layers 1,3-4 --output corpus --html corpus.html

    interp-plugin corpus reviews.csv --text-column review --score erased --layers output --output words

    interp-plugin corpus reviews.jsonl --model tuned --compare pretrained --calibrate sample.txt --output corpus

    interp-plugin corpus sample.txt --output sample --tolerance 0.1 --train-amortised head.safetensors

    interp-plugin corpus web.jsonl --output web --amortised head.safetensors

    torchrun --nproc-per-node 2 --no-python interp-plugin corpus reviews.txt --output corpus

    interp-plugin corpus reviews.txt --output corpus --engine ray --address auto --workers 8 --gpus 1 --device cuda

A run that was stopped, however it was, goes on where it was. A text that cannot be read or scored is recorded with its
reason, and the run goes on.

Exit status: 0, or 2 for what cannot be used as it was given, with one sentence that says why.
"""
COMPARED = "compared"
"""The folder, within that of the study, of the study of the other model."""


def corpus(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A .txt, .jsonl, .csv, .tsv or .parquet file, a folder of them, the URI of either (s3://...), or "
            "the name of a data set.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder on this machine for the results, written as they come.")
    ],
    model: ModelName = None,
    tokenizer: TokenizerName = None,
    trust_remote_code: TrustRemoteCode = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="all, or numbers, ranges and names: 1,3-4,output.",
            show_default="all; output with --score erased",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="Weight of entropy against distortion, above 0.")] = 0.1,
    score: Score = "kept",
    side: Side = "damage",
    ways: Ways = "mask",
    passes: Annotated[
        int | None,
        typer.Option(help="With --score erased: of each text and layer.", show_default="100"),
    ] = None,
    calibrate: Calibrate = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Folder or id of another model to score with the same draws.", show_default="none"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set.", show_default="train")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    tag_column: Annotated[
        str | None, typer.Option(help="Of word classes: a tag a text, or a word.", show_default="none")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The first so many rows; a later run adds more.", show_default="all"),
    ] = None,
    encoding: Encoding = "utf-8",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at most in a batch.")] = 16,
    window: Annotated[
        int, typer.Option(min=1, help="Rows in a part: what a killed run loses at most.")
    ] = 1024,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Stop when more texts fail.", show_default="however many")
    ] = None,
    truncation: Truncation = False,
    html: Page = None,
    as_json: AsJson = False,
    amortised: Annotated[
        Path | None,
        typer.Option(
            help="A head, .safetensors: it predicts the numbers from one forward a text, and the solver checks some.",
            show_default="the solver finds all",
        ),
    ] = None,
    train_amortised: Annotated[
        Path | None,
        typer.Option(help="Train a head on what the solver found, and write it here.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Standard error of log sigma to reach; 0.1 will do for a head.", show_default="the solver's"
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Who scores: this process, or actors of Ray.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster.", show_default="RAY_ADDRESS, or one of its own, here"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Actors of Ray.")] = 2,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each actor of Ray.")] = 0.0,
    device: Device = "cpu",
    dtype: WeightType = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Score a whole corpus, and print what each layer keeps of it, or which words it rests on."""
    with one_sentence():
        _check(output, html, engine, device, gpus)
        _check_heads(amortised, train_amortised, compare, score)
        check_tolerance(tolerance)
        columns: dict[str, Any] = {
            "text_column": column(source, text_column),
            "pair_column": column(source, pair_column),
            "tag_column": column(source, tag_column),
        }
        labels = parse_layers(layers or ("output" if score == "erased" else "all"))
        unit_texts = sample_texts(calibrate)

        from interp_plugin import data
        from interp_plugin.corpus.engines import Cluster, Processes, run_on_ray
        from interp_plugin.corpus.result import CorpusResult
        from interp_plugin.method.erasure import PASSES, check_ways
        from interp_plugin.method.solver import Solver

        progress = sys.stderr.isatty()
        options: dict[str, Any] = {
            "layers": labels, "rate": rate, "solver": Solver(seed=seed, tolerance=tolerance or Solver.tolerance),
            "batch_size": batch_size, "truncation": truncation, "score": score, "side": side,
            "ways": check_ways(ways.split(",")), "passes": passes or PASSES,
        }  # fmt: skip
        header = False if any(isinstance(each, int) for each in columns.values()) else None
        texts = partial(data.records, source, split, header, encoding, limit)
        head = None if amortised is None else amortised.absolute()
        loads = [
            partial(load_explainer, name, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
            for name in ([model] if compare is None else [model, compare])
        ]
        folders = [output, output / COMPARED][: len(loads)]
        cluster = Cluster(address, workers, gpus) if engine == "ray" else None
        with Processes.started() as processes:
            own_device = processes.device(device)
            here = own_device if cluster is None else "cpu"  # with Ray the GPUs are the workers'
            # before the first study runs: a model that cannot be loaded is an error now
            unit = partial(_unit, path=calibrate, texts=unit_texts, progress=progress)
            units = [processes.of_first(partial(unit, partial(load, device=here))) for load in loads]
            for load, of_model, folder in zip(loads, units, folders, strict=True):
                study: Callable[..., CorpusStudy] = partial(
                    _study, head=head, calibration=of_model, **options
                )
                mine, theirs = (partial(study, partial(load, device=each)) for each in (here, device))
                common = (folder.absolute(), max_errors, window, progress)
                with _sentences():
                    if cluster is None:
                        mine().run(texts(), *common, processes.rank, processes.count, **columns)
                    else:
                        run_on_ray(theirs, texts(), *common, cluster=cluster, study=mine(), columns=columns)
            processes.wait()
            if processes.rank:
                return
        results = [CorpusResult.load(folder, max_errors=max_errors) for folder in folders]
        written = [] if html is None else [results[0].to_html(html)]
        if train_amortised is not None:
            explainer = loads[0](device=own_device)
            written.append(_train(explainer, results[0], units[0], train_amortised, progress))
    _report(results, as_json)
    for path in written:
        say(f"wrote {path}")


def _unit(
    load: Callable[[], TextExplainer], path: Path | None, texts: list[Text] | None, progress: bool
) -> Calibration | None:
    """The calibration of the options, by a model that is not kept in memory."""
    return calibration(load(), path, texts, progress)


def _study(load: Callable[[], TextExplainer], head: Path | None, **options: Any) -> CorpusStudy:
    """The study, which workers of Ray make for themselves."""
    from interp_plugin.amortised import AmortisedEstimator
    from interp_plugin.corpus.study import CorpusStudy

    model = load().model
    found = None if head is None else AmortisedEstimator.load(head, model)
    return CorpusStudy(model, None, amortised=found, **options)


def _train(
    explainer: TextExplainer, result: CorpusResult, unit: Calibration | None, path: Path, progress: bool
) -> Path:
    """Train a head, write it and print how good it is, on standard error: the tables may be JSON."""
    from interp_plugin.amortised import AmortisedEstimator

    trained = AmortisedEstimator.train(explainer.model, None, result, unit, show_progress=progress)
    trained.save(path)
    held_out = trained.held_out
    for layer, error, spearman in zip(trained.layers, held_out.error, held_out.spearman):
        say(
            f"head, {held_out.texts} texts held out, layer {layer}: error of log sigma {error:.3g}, ranks of a text's "
            f"tokens (Spearman) {spearman:.3f}",
        )
    return path


@contextmanager
def _sentences() -> Iterator[None]:
    """A model or a worker that fails on everything is an error in a sentence, not a traceback."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _check(output: Path, html: Path | None, engine: Engine, device: str, gpus: float) -> None:
    """Refuse impossible options before anything is read."""
    check_folder(output)
    check_outputs(html)
    for package in ("pandas", "pyarrow", "scipy"):
        check_installed(package, "corpus", "compare")
    if html is not None:
        check_installed("matplotlib", "--html", "compare")
    if engine == "ray":
        check_installed("ray", "--engine ray", "ray")
        if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            raise ValueError(f"--engine ray has its own workers, and there are {count} processes; start one")
        if device.startswith("cuda") and not gpus:
            raise ValueError(
                f"--device is {device} and --gpus 0, and Ray shows a worker only the GPUs it is given; give --gpus 1, "
                "or a share of one"
            )


def _check_heads(
    amortised: Path | None, train_amortised: Path | None, compare: str | None, score: Score
) -> None:
    check_outputs(train_amortised)
    if score == "erased" and (amortised is not None or train_amortised is not None):
        raise ValueError(
            "a head learns the logarithm of sigma, and the scores of --score erased have both signs; leave --amortised "
            "and --train-amortised out"
        )
    if amortised is not None and not amortised.is_file():
        raise ValueError(f"--amortised {str(amortised)!r} is no file; give what --train-amortised wrote")
    if amortised is not None and train_amortised is not None:
        raise ValueError("--train-amortised learns from what the solver finds; leave --amortised out")
    if amortised is not None and compare is not None:
        raise ValueError(
            f"--amortised is a head for one model, and --compare {compare!r} is another; leave one of the two out"
        )


def _report(results: list[CorpusResult], as_json: bool) -> None:
    """Print the first study and, where there is another, how it differs from it."""
    first, other = results[0], results[1] if len(results) > 1 else None
    if as_json:
        typer.echo(json.dumps(first.to_dict(other), allow_nan=False))
        return
    first.show(other)
    failures = first.failures()
    for failure in failures[:SHOWN_FAILURES]:
        say(f"row {failure.row} left out: {failure.reason}")
    if len(failures) > SHOWN_FAILURES:
        say(f"and {len(failures) - SHOWN_FAILURES} more rows left out")
