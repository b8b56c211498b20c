"""The command ``interp-plugin corpus``: a study of all texts of a file, in one process or several."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp_plugin.cli import options
from interp_plugin.cli.options import option

if TYPE_CHECKING:
    from interp_plugin.corpus.result import CorpusResult
    from interp_plugin.corpus.study import CorpusStudy
    from interp_plugin.text.explainer import TextExplainer
    from interp_plugin.text.states import Calibration

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

A run that was stopped for any reason continues where it was. A text that cannot be read or scored is recorded with the
reason, and the run continues.

Exit status: 0, or 2 for input that cannot be used, with one sentence that says why.
"""
COMPARED = "compared"
"""Name of the folder, inside the study's folder, for the study of the other model."""

Layers = option("Layers: all, or numbers, ranges and names: 1,3-4,output.", "all; output with --score erased")
Ways = option("With --score erased: how tokens are removed: mask, attention, delete, or several.", True)
Compared = option("Folder or id of another model to score with the same draws.", "none")
Limit = option("Number of rows to use, from the first; a later run can add more.", "all", min=1)
Window = option("Rows in a part; a killed run loses at most this many.", True, min=1)
Amortised = option(
    "Trained head (.safetensors): it predicts the numbers with one forward pass per text, and the solver checks some.",
    "the solver computes all",
)
TrainAmortised = option("Train a head on the solver's results, and write it to this file.")
Tolerance = option("Standard error of log sigma to reach; 0.1 is enough to train a head.", "the solver's")
Address = option("Address of a Ray cluster.", "RAY_ADDRESS, or a new cluster on this machine")


def corpus(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A .txt, .jsonl, .csv, .tsv or .parquet file, a folder of them, the URI of either (s3://...), or "
            "the name of a data set.",
        ),
    ],
    output: Annotated[Path, option("Folder on this machine for the results.", True)],
    model: options.ModelName = None,
    tokenizer: options.TokenizerName = None,
    trust_remote_code: options.TrustRemoteCode = False,
    layers: Annotated[str | None, Layers] = None,
    rate: Annotated[float, option("Weight of entropy against distortion, above 0.", True)] = 0.1,
    score: options.Score = "kept",
    side: options.Side = "damage",
    ways: Annotated[str, Ways] = "mask",
    passes: Annotated[
        int | None, option("With --score erased: passes for each text and layer.", "100")
    ] = None,
    calibrate: options.Calibrate = None,
    compare: Annotated[str | None, Compared] = None,
    split: options.Split = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    tag_column: Annotated[
        str | None, option("Column of word classes: a tag for each text, or for each word.", "none")
    ] = None,
    limit: Annotated[int | None, Limit] = None,
    encoding: options.Encoding = "utf-8",
    batch_size: options.BatchSize = 16,
    window: Annotated[int, Window] = 1024,
    max_errors: Annotated[int | None, option("Stop if more texts than this fail.", "no limit", min=0)] = None,
    truncation: options.Truncation = False,
    html: options.Page = None,
    as_json: options.AsJson = False,
    amortised: Annotated[Path | None, Amortised] = None,
    train_amortised: Annotated[Path | None, TrainAmortised] = None,
    tolerance: Annotated[float | None, Tolerance] = None,
    engine: Annotated[Engine, option("Score in this process, or in actors of Ray.", True)] = "local",
    address: Annotated[str | None, Address] = None,
    workers: Annotated[int, option("Number of Ray actors.", True, min=1)] = 2,
    gpus: Annotated[float, option("GPUs of each Ray actor.", True, min=0)] = 0.0,
    device: options.Device = "cpu",
    dtype: options.WeightType = "float32",
    seed: Annotated[int, option("Seed of the noise.", True, min=0)] = 0,
) -> None:
    """Score a whole corpus, and print what each layer keeps of it, or which words an output depends on."""
    with options.one_sentence():
        _check(output, html, engine, device, gpus)
        _check_heads(amortised, train_amortised, compare, score)
        columns: dict[str, Any] = {
            "text_column": options.column(source, text_column),
            "pair_column": options.column(source, pair_column),
            "tag_column": options.column(source, tag_column),
        }
        labels = options.parse_layers(layers or ("output" if score == "erased" else "all"))
        unit_texts = options.sample_texts(calibrate)

        from interp_plugin import data
        from interp_plugin.corpus.engines import Cluster, Processes, run_on_ray
        from interp_plugin.corpus.result import CorpusResult
        from interp_plugin.method.erasure import PASSES, check_ways
        from interp_plugin.method.solver import Solver

        progress = sys.stderr.isatty()
        solver = Solver(seed=seed, tolerance=Solver.tolerance if tolerance is None else tolerance)
        settings: dict[str, Any] = {
            "layers": labels, "rate": rate, "solver": solver,
            "batch_size": batch_size, "truncation": truncation, "score": score, "side": side,
            "ways": check_ways(options.parse_ways(ways)), "passes": passes or PASSES,
        }  # fmt: skip
        header = False if any(isinstance(each, int) for each in columns.values()) else None
        texts = partial(data.records, source, split, header, encoding, limit)
        head = None if amortised is None else amortised.absolute()
        loads = [
            partial(options.load_explainer, name, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
            for name in ([model] if compare is None else [model, compare])
        ]

        def unit(load: Callable[..., TextExplainer], device: str) -> Calibration | None:
            """Compute the calibration that the options request, with a model that is not kept in memory."""
            return options.calibration(load(device=device), calibrate, unit_texts, progress)

        folders = [output, output / COMPARED][: len(loads)]
        cluster = Cluster(address, workers, gpus) if engine == "ray" else None
        with Processes.started() as processes:
            own_device = processes.device(device)
            here = own_device if cluster is None else "cpu"  # with Ray, the workers use the GPUs
            # load all models before the first study runs, so that a model that cannot be loaded is an error now
            units = [processes.of_first(partial(unit, load, here)) for load in loads]
            for load, of_model, folder in zip(loads, units, folders, strict=True):
                study: Callable[..., CorpusStudy] = partial(
                    _study, head=head, calibration=of_model, **settings
                )
                mine, theirs = (partial(study, partial(load, device=each)) for each in (here, device))
                common = (folder.absolute(), max_errors, window, progress)
                # RuntimeError: the model or a worker fails on all texts
                with options.one_sentence(RuntimeError):
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
        options.say(f"wrote {path}")


def _study(load: Callable[[], TextExplainer], head: Path | None, **settings: Any) -> CorpusStudy:
    """Make the study; each Ray worker makes its own."""
    from interp_plugin.amortised import AmortisedEstimator
    from interp_plugin.corpus.study import CorpusStudy

    model = load().model
    found = None if head is None else AmortisedEstimator.load(head, model)
    return CorpusStudy(model, None, amortised=found, **settings)


def _train(
    explainer: TextExplainer, result: CorpusResult, unit: Calibration | None, path: Path, progress: bool
) -> Path:
    """Train a head, write it, and print its quality on standard error (standard output may be JSON)."""
    from interp_plugin.amortised import AmortisedEstimator

    trained = AmortisedEstimator.train(explainer.model, None, result, unit, show_progress=progress)
    trained.save(path)
    held_out = trained.held_out
    for layer, error, spearman in zip(trained.layers, held_out.error, held_out.spearman):
        options.say(
            f"head, {held_out.texts} texts held out, layer {layer}: error of log sigma {error:.3g}, Spearman "
            f"correlation of a text's tokens {spearman:.3f}",
        )
    return path


def _check(output: Path, html: Path | None, engine: Engine, device: str, gpus: float) -> None:
    """Raise an error for impossible options before anything is read."""
    options.check_folder(output)
    options.check_outputs(html)
    options.check_installed("corpus", "compare", "pandas", "pyarrow", "scipy")
    if html is not None:
        options.check_installed("--html", "compare", "matplotlib")
    if engine == "ray":
        options.check_installed("--engine ray", "ray", "ray")
        if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            raise ValueError(
                f"--engine ray has its own workers, but there are {count} processes; start only one"
            )
        if device.startswith("cuda") and not gpus:
            raise ValueError(
                f"--device is {device} but --gpus is 0, and a Ray worker can use only the GPUs that it is given; give "
                "--gpus 1, or a fraction"
            )


def _check_heads(
    amortised: Path | None, train_amortised: Path | None, compare: str | None, score: options.Score
) -> None:
    options.check_outputs(train_amortised)
    if score == "erased" and (amortised is not None or train_amortised is not None):
        raise ValueError(
            "a head learns log sigma, but --score erased learns no sigma; leave --amortised and --train-amortised out"
        )
    if amortised is not None and not amortised.is_file():
        raise ValueError(
            f"--amortised {str(amortised)!r} is not a file; give a file that --train-amortised wrote"
        )
    if amortised is not None and train_amortised is not None:
        raise ValueError("--train-amortised learns from the solver's results; leave --amortised out")
    if amortised is not None and compare is not None:
        raise ValueError(
            f"--amortised is a head for one model, but --compare {compare!r} is another model; leave one of them out"
        )


def _report(results: list[CorpusResult], as_json: bool) -> None:
    """Print the first study and, if there is another, how the two differ."""
    first, other = results[0], results[1] if len(results) > 1 else None
    if as_json:
        typer.echo(json.dumps(first.to_dict(other), allow_nan=False))
        return
    first.show(other)
    failures = [f"row {failure.row} left out: {failure.reason}" for failure in first.failures()]
    options.say_first(failures, "more rows left out")
