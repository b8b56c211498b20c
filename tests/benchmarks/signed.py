"""How far information kept gets in comprehensiveness, unsigned and signed, against gradients.

    python tests/benchmarks/signed.py --data TSV [--classifier DIR] [--first 200] [--count 200] [--journal DIR] [--more]

Comprehensiveness (ERASER's bins, class probability of the predicted class) with [MASK] and with deletion, of
sentences of the TSV's first column; the default model unless another classifier is given. A method's mean has a
bootstrap 95 % interval; then come its mean paired difference from the best gradient method of its group, and
Wilcoxon's p, not corrected. `--more` adds what was looked at before the question of `information_signed` was chosen, on
sentences 0 to 99; `--journal` lets a run that was stopped go on.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from common import read_texts
from torch import Tensor
from torch.nn.functional import logsigmoid

from interp_plugin import LayerInformationLoss, huggingface
from interp_plugin.attribution import Score
from interp_plugin.comparison import Study
from interp_plugin.comparison.captum_methods import integrated_gradients
from interp_plugin.comparison.interface import Answer, Inputs, Method
from interp_plugin.comparison.methods import METHODS
from interp_plugin.comparison.result import StudyResult
from interp_plugin.statistics import paired as differences
from interp_plugin.text.states import State

METRICS = ("comprehensiveness (mask)", "comprehensiveness (delete)")
OURS = "information kept"
NAMES = (
    OURS,
    "information kept (last layer)",
    "information kept (log-probability)",
    "noise path",
    "gradient norm of the state",
    *(name for name in METHODS if name.startswith("integrated gradients")),
    "saliency (L2)",
    "input x gradient (absolute)",
    "SmoothGrad (L2)",
    "random",
)
WATCHED = {"log-odds": lambda x: x, "probability": torch.sigmoid, "log-probability": logsigmoid}


def kept(
    inputs: Inputs,
    target: int | None,
    state: State | None,
    *,
    watched: str,
    rate: float,
    score: Score = "kept",
) -> Tensor:
    """Information kept of the answer, its probability or its log-probability."""
    answer = Answer(inputs, target)
    ids, *others = inputs.arguments
    method = LayerInformationLoss(
        lambda *arguments: WATCHED[watched](answer.reading(*arguments)), inputs.model.embedding
    )
    values = method.attribute(
        ids,
        additional_forward_args=tuple(others),
        state_std=1.0 if watched == "log-probability" else None,
        rate=rate,
        score=score,
        return_input_shape=False,
    )
    assert isinstance(values, Tensor)
    return values[0]


def product(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information kept times integrated gradients: the magnitude that a sign leaves out."""
    push = integrated_gradients(inputs, target, state, baseline="[MASK]", reduction="signed")
    return kept(inputs, target, state, watched="log-odds", rate=0.1) * push


def candidates() -> list[Method]:
    rates = {
        "log-odds": (0.1, 0.3, 1.0),
        "probability": (0.03, 0.1, 0.3),
        "log-probability": (0.03, 0.3, 1.0),
    }
    unsigned = [
        Method(f"{watched}, rate {rate}", partial(kept, watched=watched, rate=rate), explains="class")
        for watched, some in rates.items()
        for rate in some
    ]
    signed = [
        Method(
            f"signed {watched}, rate {rate}",
            partial(kept, watched=watched, rate=rate, score="signed"),
            signed=True,
            explains="class",
        )
        for watched, rate in (("log-odds", 0.1), ("probability", 0.03), ("log-probability", 0.3))
    ]
    return [*unsigned, *signed, Method("kept x integrated gradients", product, signed=True, explains="class")]


def show(result: StudyResult) -> None:
    """A table for each metric and group, best first, each method against the best of the others."""
    values = result.values()
    for metric in METRICS:
        wide = values[values["metric"] == metric].pivot(index="text", columns="method", values="value")
        lines = result.table("class", metric)
        for group in ("unsigned", "signed"):
            table = lines[lines["group"] == group].sort_values("mean", ascending=False)
            rival = next(name for name in table["method"] if is_rival(name))
            print(f"\n{metric}, {group}; differences from {rival}, n = {len(wide)}")
            for line in table.itertuples():
                [paired] = differences((wide[line.method] - wide[rival]).to_numpy()[:, None])
                print(
                    f"{line.method:40} {line.mean:.3f} [{line.low:.3f}, {line.high:.3f}]   "
                    f"{paired.mean:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]  p = {paired.p:.2g}"
                )


def is_rival(name: str) -> bool:
    return name in NAMES and not name.startswith(OURS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--more", action="store_true")
    given = parser.parse_args()
    texts = read_texts(given.data, given.first + given.count)[given.first :]
    model, tokenizer = huggingface.load(given.classifier or huggingface.default_model_path())
    methods = [*(METHODS[name] for name in NAMES), *(candidates() if given.more else [])]
    show(Study(model, tokenizer, methods, METRICS).run(texts, output=given.journal))


if __name__ == "__main__":
    main()
