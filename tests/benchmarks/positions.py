"""Single positions, `explain(positions="each")` on the default model: do the rows converge, and do seeds agree?

    python tests/benchmarks/positions.py --data TSV [--sentences 5] [--layers 1 3 4] [--rate-as-asked]

The sentences are the first of the file with five to nine words.  Two seeds.  Columns: rows; share converged; passes;
regime index, least and most; of rows that converged with both seeds at one rate, Spearman's correlation between the
seeds (mean, least) and the share of differences of log sigma within two standard errors; and how many rows were solved
at which rate.  With `--rate-as-asked` no state that saturates is solved at a smaller one.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from common import covered, read_texts
from scipy.stats import spearmanr

from interp_plugin import Solver, TextExplainer, huggingface


def line(explainer: TextExplainer, texts: Sequence[str], layer: int, lower_rate: bool) -> str:
    """The figures of one layer."""
    solvers = [Solver(seed=seed, lower_rate=lower_rate) for seed in (0, 1)]
    found = [explainer.explain(texts, layer, positions="each", solver=solver) for solver in solvers]
    pairs = [pair for items in zip(*found) for pair in zip(items[0].rows, items[1].rows)]
    rows = [row for pair in pairs for row in pair]
    ranks, within = [], []
    for one, other in pairs:
        if one.converged and other.converged and one.rate == other.rate:
            ranks.append(float(spearmanr(one.sigma, other.sigma).statistic))
            error = one.standard_error.hypot(other.standard_error)
            within.append(covered((one.sigma / other.sigma).log(), error))
    rates = Counter(f"{row.rate:.1g}" for row in rows)
    indices = [row.regime_index for row in rows]
    return (
        f"layer {layer}: {len(rows)} rows, converged {sum(row.converged for row in rows) / len(rows):.2f}, "
        f"{sum(row.n_backward for row in rows) / len(rows):.0f} passes, E {min(indices):.2f} to {max(indices):.2f}; "
        f"{len(ranks)} pairs: Spearman {torch.tensor(ranks).mean():.3f} (least {min(ranks, default=torch.nan):.2f}), "
        f"within two standard errors {torch.tensor(within).mean():.3f}; rates {dict(sorted(rates.items()))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="TSV whose first column holds texts")
    parser.add_argument("--sentences", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3, 4])
    parser.add_argument("--rate-as-asked", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts = [text for text in read_texts(arguments.data, 200)[1:] if 5 <= len(text.split()) <= 9]
    explainer = TextExplainer(*huggingface.load(huggingface.default_model_path()))
    for layer in arguments.layers:
        print(
            line(explainer, texts[: arguments.sentences], layer, not arguments.rate_as_asked),
            flush=True,
        )


if __name__ == "__main__":
    main()
