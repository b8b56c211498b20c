"""All layers of the default model in one call: what they save by starting from one another, and by a half first batch.

    python tests/benchmarks/layers_together.py --data TSV [--sentences 8]

In units of `state_std` of 100 texts, three seeds; the truth is a run of 1,680 passes with another seed.  Columns of
each layer: passes; r.m.s. error of log sigma against the truth and as reported, in percent; share of errors within two
standard errors; share converged; passes x error^2 by the true and by the reported error.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import covered, read_texts

from interp_plugin import Explanation, Solver, TextExplainer, huggingface
from interp_plugin.method import solver

LAYERS = (1, 2, 3, 4)


def from_closed_form(*given: Any, solve: Callable[..., Any] = solver.solve) -> Any:
    """Solve without the start that the layer before gives."""
    return solve(*given[:-1], None)


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "each from its closed form": {"solve": from_closed_form},
    "eight vectors in place of four": {"FEW_PROBES": 8},
    "a whole first batch": {"FIRST_BATCH": 1.0},
}


def line(found: list[Explanation], truth: Explanation, index: int) -> str:
    """The figures of one layer."""
    passes, errors, reported, within, converged = [], [], [], [], []
    for explanation in found:
        for item, true in zip(explanation, truth):
            row = item.rows[index]
            gap, error = (row.sigma / true.rows[index].sigma).log(), row.standard_error
            free = error > 0
            passes.append(float(row.n_backward))
            converged.append(float(row.converged))
            errors.append(float(gap[free].square().mean()))
            reported.append(float(error[free].square().mean()))
            within.append(covered(gap, error))
    spent, error, own, share, done = (sum(x) / len(x) for x in (passes, errors, reported, within, converged))
    return (
        f"{spent:6.1f} {100 * error**0.5:6.2f} {100 * own**0.5:6.2f} {share:6.3f} {done:5.2f} "
        f"{spent * error * 1e4:6.0f} {spent * own * 1e4:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="TSV whose first column holds texts")
    parser.add_argument("--sentences", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts = read_texts(arguments.data, 400)[1:]
    explainer = TextExplainer(*huggingface.load(huggingface.default_model_path()))
    explainer.calibrate(texts[200:300], show_progress=False)
    chosen = [text for text in texts if 6 <= len(text.split()) <= 14][: arguments.sentences]
    truth = explainer.explain(chosen, LAYERS, solver=Solver(seed=999_999, iterations=60, tolerance=1e-9))
    for name, changes in VARIANTS.items():
        with ExitStack() as stack:
            for attribute, value in changes.items():
                stack.enter_context(patch.object(solver, attribute, value))
            found = [explainer.explain(chosen, LAYERS, solver=Solver(seed=seed)) for seed in range(3)]
        for index, layer in enumerate(LAYERS):
            print(f"{name:<32} layer {layer} {line(found, truth, index)}", flush=True)


if __name__ == "__main__":
    main()
