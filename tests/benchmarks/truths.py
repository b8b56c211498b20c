"""Methods evaluated by truths that are known by construction; prints the tables.

    python tests/benchmarks/truths.py [known] [counting] [reversal] [single] [context] [pair] [--data SST2.tsv]

Without names it runs all of them.  The planted shortcuts need sentences: ``--data`` is a file of lines with a
sentence, a tab, and 0 or 1 (SST-2's); the first 1,500 are used, with the default model.  ``--methods`` names some of
METHODS, with semicolons; ``fast`` leaves out those that need hundreds of passes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from known_truths import counting, known, reversal, shortcuts, teaching
from known_truths.evaluation import Mean
from known_truths.planting import Kind

from interp_plugin import huggingface
from interp_plugin.comparison.interface import Method, chosen
from interp_plugin.comparison.methods import METHODS
from interp_plugin.method.solver import Solver

NEEDS_MORE = (
    "[MASK]",
    "ablation",
    "occlusion",
    "LIME",
    "SHAP",
    "Shapley",
    "attention rollout",
    "value zeroing",
    "leave",
)
"""What needs a mask token, attention or deletion, which the small models of our own do not have."""
SLOW = ("LIME", "KernelSHAP", "Shapley value sampling")
OURS = "information kept"
KINDS: dict[str, Kind] = {"single": "single token", "context": "token in context", "pair": "ordered pair"}


@contextmanager
def timed(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"\n({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)


def run_known(methods: Sequence[Method]) -> None:
    for kind in known.TRUTHS:
        with timed(kind):
            print(known.known_optimum(kind, methods).to_markdown())
            solvers = {
                "default": Solver(),
                "tolerance 0.005": Solver(tolerance=0.005),
                "closed form": Solver(iterations=0),
            }
            for name, solver in solvers.items():
                print(f"\nerror of log sigma, {name}: {Mean.of(known.sigma_errors(kind, solver))}")


def run_counting(methods: Sequence[Method], seeds: int, texts: int) -> None:
    ours = [m for m in methods if m.name.startswith(OURS) and "last layer" not in m.name]
    published = [counting.as_published(), *(counting.inverse_sigma(method) for method in ours)]
    for seed in range(seeds):
        with timed(f"training, seed {seed}"):
            task = counting.train(seed=seed)
        with timed("judging"):
            print(f"seed {seed}: {counting.counting(task, [*published, *methods], texts).to_markdown()}")
        if not seed:
            for noise, watched in (("hidden", "state"), ("embedding", "logit"), ("embedding", "state")):
                with timed("judging"):
                    some = [*published[1:], *methods]
                    print(counting.counting(task, some, texts, noise, watched).to_markdown())  # type: ignore[arg-type]


def run_reversal(methods: Sequence[Method], texts: int) -> None:
    def earliest(inputs, target, state):  # type: ignore[no-untyped-def]
        return -torch.arange(float(inputs.length))

    with timed("training"):
        task = reversal.train()
    print("what a linear probe reads of each token (columns) at each step (rows):")
    for row in task.probed().tolist():
        print("  " + " ".join(f"{value:.2f}" for value in row))
    with timed("judging"):
        print(
            reversal.reversal(
                task, [reversal.replacement(), *methods, Method("earliest first", earliest)], texts
            ).to_markdown()
        )


def run_planted(kind: Kind, methods: Sequence[Method], data: Path, evaluated: int, words: list[str]) -> None:
    lines = data.read_text(encoding="utf-8").splitlines()[:1500]
    rows = [line.rsplit("\t", 1) for line in lines]
    model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
    texts, labels = [row[0] for row in rows], [int(row[1]) for row in rows]
    with timed(f"training, {kind}"):
        taught = teaching.teach(model, texts, labels, kind, words=words or None)
    print(f"{taught.epochs} epochs")
    with timed("judging"):
        print(shortcuts.find(taught, methods, evaluated).evaluation.to_markdown())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("truths", nargs="*", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of the counting toy")
    parser.add_argument("--texts", type=int, default=200, help="sequences or sentences evaluated")
    parser.add_argument("--words", default="", help="zero, one and context; rare words if none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.methods == "fast":
        methods = chosen(METHODS, [name for name in METHODS if name not in SLOW])
    else:
        methods = chosen(METHODS, arguments.methods.split(";") if arguments.methods else None)
    plain = [
        m for m in methods if m.name == "gradient SHAP" or not any(word in m.name for word in NEEDS_MORE)
    ]
    wanted = arguments.truths or ["known", "counting", "reversal", *(KINDS if arguments.data else ())]
    for name in wanted:
        if name == "known":
            run_known(plain)
        elif name == "counting":
            run_counting(plain, arguments.seeds, arguments.texts)
        elif name == "reversal":
            run_reversal(plain, arguments.texts)
        elif arguments.data is None:
            parser.error(f"{name} needs --data")
        else:
            run_planted(KINDS[name], methods, arguments.data, arguments.texts, arguments.words.split())


if __name__ == "__main__":
    main()
