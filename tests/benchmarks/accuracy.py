"""How far our log sigma is from the truth, and whether the reported standard errors say so.

    python tests/benchmarks/accuracy.py --data TSV [--classifier DIR] [--seeds 20] [--passes 20000] [--json OUT]

Pretrained MiniLM, noise at the embedding output, states = layers 1 to 6 with `state_std` per dimension of
100 texts (the TSV's first column; without it some built-in ones). With `--classifier` also the last layer
and the logits (no `state_std`) of a fine-tuned classifier, which is made by

    python tutorials/train_default_model.py --data DIR_WITH_SST2 --output ELSEWHERE --teacher DIR

The truth is the mean of two independent long runs of `--passes` each by plain code (common.py); "halves" is
their r.m.s. difference, of which about half is in every error shown. Errors are of log sigma in percent,
over tokens, seeds and sentences; "in 2 s.e." is the share of them within two reported standard errors, and
"ranks" the mean Spearman correlation of tokens from seed to seed.  Below each state stands how small independent errors
of log sigma must be for ranks of 0.97 and 0.99, by simulation on the truth: tokens that differ by less change places.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from common import SENTENCES, Bert, Case, case, read_texts, rms
from scipy.stats import spearmanr
from torch import Tensor

from interp_plugin import Solver


@dataclass(frozen=True)
class Row:
    """One state at one setting."""

    model: str
    state: str
    setting: str
    regime_index: float
    halves: float
    rms_error: float
    bias: float
    reported: float
    coverage: float
    converged: float
    passes: float
    ranks: float
    seconds: float

    HEADER = (
        f"{'model':<11} {'state':<8} {'setting':<15} {'E':>5} {'halves%':>7} {'rms%':>6} {'bias%':>6} {'s.e.%':>6} "
        f"{'in 2 s.e.':>9} {'converged':>9} {'passes':>6} {'ranks':>6} {'s/fit':>7}"
    )

    def __str__(self) -> str:
        return (
            f"{self.model:<11} {self.state:<8} {self.setting:<15} {self.regime_index:5.2f} {100 * self.halves:7.2f} "
            f"{100 * self.rms_error:6.2f} {100 * self.bias:6.2f} {100 * self.reported:6.2f} {self.coverage:9.3f} "
            f"{self.converged:9.2f} {self.passes:6.0f} {self.ranks:6.3f} {self.seconds:7.3f}"
        )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def seed_to_seed(log_sigma: Tensor) -> float:
    """Mean Spearman correlation over pairs of seeds; (seeds, T)."""
    pairs = list(combinations(log_sigma.tolist(), 2))
    return mean([float(spearmanr(a, b).statistic) for a, b in pairs]) if pairs else float("nan")


def error_for(ranks: float, truth: Tensor, pairs: int = 400) -> float:
    """The standard deviation of independent errors of log sigma at which two fits' ranks agree that well."""
    noise = torch.randn(2, pairs, len(truth), generator=torch.Generator().manual_seed(0))

    def agreement(error: float) -> float:
        first, second = (truth + error * noise).tolist()
        return mean([float(spearmanr(a, b).statistic) for a, b in zip(first, second)])

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if agreement(middle) > ranks else (low, middle)
    return low


def judge(
    model: str,
    cases: Sequence[Case],
    truths: Sequence[tuple[Tensor, float]],
    name: str,
    tolerance: float,
    seeds: int,
) -> Row:
    """One row: the same state of several sentences."""
    errors, reported, within, ranks, regime = [], [], [], [], []
    converged, passes, wall = [], [], 0.0
    for item, (truth, _) in zip(cases, truths):
        found = []
        for seed in range(seeds):
            start = time.perf_counter()
            fit = item.fit(Solver(tolerance=tolerance, seed=seed))
            wall += time.perf_counter() - start
            found.append(fit.sigma[0].log())
            error, standard_error = found[-1] - truth, fit.standard_error[0]
            free = standard_error > 0  # at the cap sigma is exact
            errors.append(error[free])
            reported.append(standard_error[free])
            within.append((error.abs() <= 2 * standard_error)[free].float())
            converged.append(float(fit.converged[0]))
            passes.append(float(fit.n_backward[0]))
            regime.append(fit.regime_index[0].item())
        ranks.append(seed_to_seed(torch.stack(found)))
    return Row(
        model=model,
        state=cases[0].name,
        setting=name,
        regime_index=mean(regime),
        halves=mean([halves for _, halves in truths]),
        rms_error=rms(torch.cat(errors)),
        bias=torch.cat(errors).mean().item(),
        reported=rms(torch.cat(reported)),
        coverage=torch.cat(within).mean().item(),
        converged=mean(converged),
        passes=mean(passes),
        ranks=mean(ranks),
        seconds=wall / len(passes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--sentences", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--passes", type=int, default=20_000, help="of each half of the reference")
    parser.add_argument("--data", type=Path, help="TSV whose first column holds texts for state_std")
    parser.add_argument("--classifier", type=Path, help="folder of a fine-tuned BERT classifier")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    texts = read_texts(arguments.data)
    jobs: list[tuple[str, Bert, int | None]] = []
    if arguments.layers:
        minilm = Bert.minilm()
        jobs += [("pretrained", minilm, depth) for depth in arguments.layers]
    if arguments.classifier:
        tuned = Bert.classifier(arguments.classifier)
        jobs += [("fine-tuned", tuned, depth) for depth in (len(tuned.layers), None)]
    rows: list[Row] = []
    print(f"{arguments.seeds} seeds, truth of 2 x {arguments.passes} passes, state_std of {len(texts)} texts")
    print(Row.HEADER)
    for model, bert, depth in jobs:
        cases = [case(bert, depth, sentence, texts) for sentence in SENTENCES[: arguments.sentences]]
        truths = [item.reference(arguments.passes) for item in cases]
        for name, tolerance in (
            ("default", Solver().tolerance),
            ("tolerance=0.03", 0.03),
            ("tolerance=0.01", 0.01),
        ):
            rows.append(judge(model, cases, truths, name, tolerance, arguments.seeds))
            print(rows[-1], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        needed = [mean([error_for(ranks, truth) for truth, _ in truths]) for ranks in (0.97, 0.99)]
        print(
            f"{'':<20} ranks of 0.97 and 0.99 need errors of {', '.join(f'{100 * e:.2f} %' for e in needed)}"
        )


if __name__ == "__main__":
    main()
