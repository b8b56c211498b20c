"""The erasure channel: what more passes buy, whether seeds agree, and whether standard errors are right.

    python tests/benchmarks/erasures.py --data DEV_TSV [--model DIR] [--layer N] [--sentences 40] [--passes 32 64 ...]

A line for each budget, and for its rivals (`study_tables.py` has the studies with statistics):

    mask, delete, attention   comprehensiveness of the predicted class, or erasure of a layer's state, by each removal
    Spearman                  of the scores, between two seeds
    seeds in 2 s.e.           share of differences between two seeds within two standard errors of the difference
    truth in 2 s.e.           share of scores within two standard errors of the derivative of the multilinear extension
                              at p, by 600 masks of their own (whose error is counted)
    time                      of integrated gradients with 50 steps, on the same sentences, one after another
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from interp_plugin import ErasureFit, LayerInformationErased, TextExplainer, huggingface
from interp_plugin.comparison import METHODS
from interp_plugin.comparison.interface import REMOVALS, Answer, Inputs, Method, Trial
from interp_plugin.comparison.metrics import erasure
from interp_plugin.text.states import State

RIVALS = (
    "integrated gradients ([MASK], signed)",
    "KernelSHAP",
    "Shapley value sampling",
    "GIM",
    "noise path",
)
MASKS = 600


@dataclass
class Line:
    """What is collected for one line."""

    quality: dict[str, list[float]] = field(default_factory=lambda: {removal: [] for removal in REMOVALS})
    ranks: list[float] = field(default_factory=list)
    seeds: list[bool] = field(default_factory=list)
    truth: list[bool] = field(default_factory=list)
    seconds: float = 0.0

    def text(self, name: str, unit: float) -> str:
        cells = [
            *(np.mean(values) for values in self.quality.values()),
            *(np.mean(values) if values else np.nan for values in (self.ranks, self.seeds, self.truth)),
            self.seconds / unit,
        ]
        return f"{name:<38}" + "".join(f"{value:10.3f}" for value in cells)


@dataclass(frozen=True)
class Question:
    """One text, and what is asked about it."""

    inputs: Inputs
    target: int | None
    state: State | None

    def fit(self, passes: int, seed: int) -> ErasureFit:
        answer = Answer(self.inputs, self.target, self.state)
        ids, *others = self.inputs.arguments
        mask = torch.where(self.inputs.players, self.inputs.model.mask_id, ids)
        method = LayerInformationErased(answer.reading, self.inputs.model.embedding)
        return method.fit(ids, mask, additional_forward_args=tuple(others), passes=passes, seed=seed)

    def derivative(self, fit: ErasureFit) -> tuple[Tensor, Tensor]:
        """dDelta/dp of the players at the fit's p by other masks, and its standard error, (n,) each."""
        places = fit.token_mask[0].nonzero()[:, 0]
        p, scores = fit.probability[0, places].double(), fit.score[0, places].double()
        generator = torch.Generator().manual_seed(99)
        erased = (torch.rand(MASKS, len(p), generator=generator) < p).double()
        kept = torch.ones(MASKS + 1, self.inputs.length, dtype=torch.bool)
        kept[:-1, places] = erased == 0
        answers = Answer(self.inputs, self.target, self.state).of_kept(kept, "mask").double()
        rest = answers[-1] - answers[:-1] - erased @ scores
        each = (rest - rest.mean())[:, None] * (erased - p) / (p * (1 - p))
        return scores + each.mean(0), each.std(0) / MASKS**0.5

    def judge(self, line: Line, method: Method, scores: Tensor) -> None:
        judges = "class" if self.state is None else "state"
        for removal in REMOVALS:
            metric = erasure(removal, removal, judges=judges)
            found = metric(Trial(self.inputs, self.target, self.state, method, scores))
            if found is not None:
                line.quality[removal].append(found)


def of_budget(line: Line, question: Question, passes: int) -> None:
    start = time.perf_counter()
    first = question.fit(passes, 0)
    line.seconds += time.perf_counter() - start
    second = question.fit(passes, 1)
    question.judge(line, Method("erased", lambda *_: first.score[0]), first.score[0])
    places = first.token_mask[0].nonzero()[:, 0]
    if not first.standard_error.any():  # enumerated
        return
    one, two = (fit.score[0, places].double() for fit in (first, second))
    error, other = (fit.standard_error[0, places].double() for fit in (first, second))
    line.ranks.append(float(spearmanr(one, two).statistic))
    line.seeds += ((one - two).abs() <= 2 * error.hypot(other)).tolist()
    truth, noise = question.derivative(first)
    line.truth += ((one - truth).abs() <= 2 * error.hypot(noise)).tolist()


def of_method(line: Line, question: Question, method: Method) -> None:
    start = time.perf_counter()
    scores = method(question.inputs, question.target, question.state)
    line.seconds += time.perf_counter() - start
    question.judge(line, method, scores)


def questions(model: huggingface.HuggingFaceModel, texts: Sequence[str], layer: int | None) -> list[Question]:
    state = None if layer is None else TextExplainer(model).states(layer)[0]
    found = []
    for text in texts:
        inputs = Inputs(model, model.encode(text))
        with torch.no_grad():
            target = int(model(*inputs.arguments).argmax()) if state is None else None
        if int(inputs.players.sum()) > 1:
            found.append(Question(inputs, target, state))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="TSV with a sentence in its first column")
    parser.add_argument("--model", type=Path, help="folder of a classifier; default the embedded one")
    parser.add_argument("--layer", type=int, help="ask about a layer's state, not about the class")
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--passes", type=int, nargs="+", default=[32, 64, 100, 256])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with given.data.open(newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    path = given.model or huggingface.default_model_path()
    model = huggingface.HuggingFaceModel(*huggingface.load(path))
    asked = questions(model, rows[: given.sentences], given.layer)
    runs: dict[str, Callable[[Line, Question], None]] = {
        name: lambda line, question, name=name: of_method(line, question, METHODS[name]) for name in RIVALS
    }
    for passes in given.passes:
        runs[f"erased, {passes} passes"] = lambda line, question, n=passes: of_budget(line, question, n)
    print(
        f"{'':<38}{'mask':>10}{'delete':>10}{'attention':>10}{'Spearman':>10}{'seeds':>10}{'truth':>10}{'time':>10}"
    )
    unit = 1.0
    for name, run in runs.items():
        line = Line()
        for question in asked:
            run(line, question)
        if name == RIVALS[0]:
            unit = line.seconds
        print(line.text(name, unit), flush=True)


if __name__ == "__main__":
    main()
