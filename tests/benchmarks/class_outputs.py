"""Class outputs and states of few elements: do fits that say "converged" deserve it?

    python tests/benchmarks/class_outputs.py --data DEV_TSV [--classifier DIR] [--sentences 50] [--fresh 4096]
    python tests/benchmarks/class_outputs.py --small [--nets 40] [--states 60]

The first prints a line for each model (the embedded one; with `--classifier` a fine-tuned MiniLM, made by
`tutorials/train_default_model.py --teacher DIR`), function of the predicted class (logit, log-probability, probability)
and place of the noise (word embeddings, the embedding block's output):

    converged   share of the fits of four seeds at the default settings
    passes      sample passes, mean and most; integrated gradients with 50 steps take 50
    rate        median of the rates that were solved; the one asked for is 0.1
    Spearman    of log sigma between seeds, mean and least
    in 2 s.e.   share of the differences between two seeds within two standard errors of the difference
    tolerances  the same between the tolerances 0.05, 0.02 and 0.01 (three seeds)
    D           largest ratio of D as reported to D on fresh draws, or of its inverse; 1 where they are within three
                standard errors of the fresh draws
    residual    share of tokens whose stationarity on fresh draws is within 0.1, or within three standard errors
                (of the draws and of log sigma)

Of converged fits only, but for the first three. `--small` prints the share converged, in 2 s.e. and the largest
error in standard errors, of log sigma of 40 random networks (10 inputs of one element, 32 hidden units, 3 classes)
and of 60 quadratic states of 1, 2 and 8 elements a token, against long runs of plain code at the rate that was solved,
and the largest error of linear states of one number against the closed form.
"""

from __future__ import annotations

import argparse
import csv
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from interp_plugin import InformationLoss, LayerInformationLoss, NoiseFit, Solver, huggingface

RATE, SEEDS, TOLERANCES = 0.1, 4, (0.05, 0.02, 0.01)
Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "logit": lambda logits: logits,
    "log-prob": lambda logits: logits.log_softmax(-1),
    "prob": lambda logits: logits.softmax(-1),
}


@dataclass
class Line:
    """What is collected for one line of the table."""

    fits: list[NoiseFit] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    apart: list[Tensor] = field(default_factory=list)  # differences between seeds in their standard errors
    tolerances: list[Tensor] = field(default_factory=list)
    distortion: list[float] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)

    HEADER = (
        f"{'model':<9} {'function':<9} {'noise at':<9} {'converged':>9} {'passes':>11} {'rate':>8} {'Spearman':>11} "
        f"{'in 2 s.e.':>9} {'tolerances':>10} {'D':>5} {'residual':>8}"
    )

    def text(self, *names: str) -> str:
        passes = torch.tensor([float(fit.n_backward) for fit in self.fits])
        rate = torch.tensor([float(fit.rate) for fit in self.fits]).median()
        converged = [bool(fit.converged) for fit in self.fits]
        model, function, place = names
        residual = float(torch.cat(self.residual).float().mean()) if self.residual else math.nan
        worst = min(self.ranks, default=math.nan)
        return (
            f"{model:<9} {function:<9} {place:<9} {sum(converged) / len(converged):9.3f} "
            f"{passes.mean():5.0f} {passes.max():5.0f} {rate:8.1e} {mean(self.ranks):5.3f} {worst:5.3f} "
            f"{within(self.apart):9.3f} {within(self.tolerances):10.3f} {max(self.distortion, default=1):5.2f} "
            f"{residual:8.3f}"
        )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def within(apart: Sequence[Tensor], errors: float = 2.0) -> float:
    """Share of the differences, in standard errors, that are at most so many."""
    return float((torch.cat(list(apart)).abs() <= errors).float().mean()) if apart else math.nan


def difference(a: NoiseFit, b: NoiseFit) -> Tensor:
    """Of log sigma in its standard errors, (T,)."""
    gap = a.sigma[0].log() - b.sigma[0].log()
    error = (a.standard_error[0].square() + b.standard_error[0].square()).sqrt()
    return torch.where(gap == 0, 0.0, gap / error)


@dataclass(frozen=True)
class Plain:
    """A class output by plain code: from what the noise is added to, x (T, K), to one number a row."""

    x: Tensor
    phi: Callable[[Tensor], Tensor]

    def fresh(self, fit: NoiseFit, draws: int) -> tuple[Tensor, Tensor]:
        """Each draw's D, (S,), and sigma_i dD/dsigma_i over its share of the rate less 1, (S, T)."""
        sigma, generator = fit.sigma[0][:, None], torch.Generator().manual_seed(12345)
        with torch.no_grad():
            clean = self.phi(self.x[None])
        values, slopes = [], []
        for count in [64] * (draws // 64):
            eps = torch.randn(count, *self.x.shape, generator=generator)
            points = (self.x + sigma * eps).requires_grad_()
            value = ((self.phi(points) - clean) / clean).square()
            (slope,) = torch.autograd.grad(value.sum(), points)
            values.append(value.detach())
            slopes.append((slope * sigma * eps).sum(-1) * len(self.x) / float(fit.rate) - 1)
        return torch.cat(values), torch.cat(slopes)


def judge(line: Line, fit: Callable[[Solver], NoiseFit], plain: Plain, draws: int) -> None:
    """One sentence."""
    found = [fit(Solver(seed=seed)) for seed in range(SEEDS)]
    line.fits += found
    good = [each for each in found if each.converged]
    for a, b in combinations(good, 2):
        line.ranks.append(float(spearmanr(a.sigma[0], b.sigma[0]).statistic))
        line.apart.append(difference(a, b))
    others = [fit(Solver(seed=10 + i, tolerance=tolerance)) for i, tolerance in enumerate(TOLERANCES)]
    line.tolerances += [difference(a, b) for a, b in combinations([o for o in others if o.converged], 2)]
    for each in good[:1] if draws else ():
        values, slopes = plain.fresh(each, draws)
        ratio, error = (
            float(values.mean() / each.distortion),
            float(values.std() / values.mean() / draws**0.5),
        )
        line.distortion.append(max(ratio, 1 / ratio) if abs(ratio - 1) > 3 * error else 1.0)
        residual, noise = slopes.mean(0), slopes.std(0) / draws**0.5
        noise = (noise.square() + (2 * each.standard_error[0]).square()).sqrt()
        line.residual.append((residual.abs() < 0.1) | (residual.abs() < 3 * noise) | each.at_cap[0])


def class_output(model: Any, apply: Function, target: int, ids: Tensor) -> Tensor:
    return apply(model(ids).logits)[:, target]


def after_noise(model: Any, apply: Function, target: int, place: str, x: Tensor) -> Tensor:
    """The same by plain code, from what the noise is added to."""
    base = model.base_model
    hidden = base.embeddings(inputs_embeds=x) if place == "words" else x
    hidden = base.encoder(hidden).last_hidden_state
    return apply(model.classifier(base.pooler(hidden)))[:, target]


def fit_of(method: LayerInformationLoss, ids: Tensor, solver: Solver) -> NoiseFit:
    return method.fit(ids, solver=solver)


def classes(name: str, path: Path, texts: Sequence[str], draws: int, functions: Sequence[str]) -> None:
    model, tokenizer = huggingface.load(path)
    model.requires_grad_(False)
    base: Any = model.base_model
    for function in functions:
        apply = FUNCTIONS[function]
        for place in ("words", "block"):
            line = Line()
            for text in texts:
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
                with torch.no_grad():
                    target = int(model(ids).logits.argmax())
                    words = base.embeddings.word_embeddings(ids)
                    x = (words if place == "words" else base.embeddings(ids))[0]

                forward = partial(class_output, model, apply, target)
                phi = partial(after_noise, model, apply, target, place)
                layer = base.embeddings.word_embeddings if place == "words" else base.embeddings
                fit = partial(fit_of, LayerInformationLoss(forward, layer), ids)
                judge(line, fit, Plain(x, phi), draws)
            print(line.text(name, function, place), flush=True)


def long_run(phi: Callable[[Tensor], Tensor], fit: NoiseFit, x: Tensor, draws: int = 2**19) -> Tensor:
    """log sigma by Newton steps from the fit on many pairs of draws in double precision, (T,).

    The state is one number, and tokens have one element.  What the linear model says of the same draws is replaced by
    its known mean: otherwise the draws' own noise, 0.005, would be the largest error of a fit that is exact.
    """
    generator, theta = torch.Generator().manual_seed(7), fit.sigma[0].double().log()
    n, start = fit.sigma.shape[1], x.clone().requires_grad_()
    clean = phi(start)
    (jacobian,) = torch.autograd.grad(clean.sum(), start)
    clean, v2 = clean.detach(), float(clean.detach().square())
    for _ in range(3):
        sigma = theta.exp()
        linear = jacobian[0] * sigma  # (T,)
        slopes, total = 2 * linear.square() / v2, float(linear.square().sum() / v2)
        for _ in range(draws // 2**15):
            half = torch.randn(2**14, *x.shape[1:], generator=generator, dtype=torch.float64)
            eps = torch.cat([half, -half])
            points = (x + sigma * eps).requires_grad_()
            value = (phi(points) - clean).square().flatten() / v2
            (slope,) = torch.autograd.grad(value.sum(), points)
            moved = (linear * eps).sum(1, keepdim=True)
            known = 2 * moved * linear * eps / v2
            slopes = slopes + (slope * sigma * eps - known).sum(0) / draws
            total += float((value.detach() - moved[:, 0].square() / v2).sum()) / draws
        ratio = (slopes * n / float(fit.rate)).clamp(min=0.05).log()
        shared = float(slopes.sum()) / float(fit.rate)
        power = min(max(float(slopes.sum()) / total, 2.0), 30.0)
        theta = theta - (math.log(shared) / power + (ratio - math.log(shared)) / 2).clamp(-0.5, 0.5)
    return theta


def small(nets: int, states: int) -> None:
    """States of few elements with known or computable optima."""
    lines: dict[str, list[tuple[bool, Tensor]]] = {"networks, K = 1": []}
    for seed in range(nets):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, 32), nn.Tanh() if seed % 2 else nn.ReLU(), nn.Linear(32, 3))
        x, target = torch.randn(1, 10), seed % 3
        fit = InformationLoss(net).fit(x, target=target, solver=Solver(seed=seed))
        net.double()
        truth = long_run(lambda x, net=net, t=target: net(x)[:, t : t + 1], fit, x.double())
        lines["networks, K = 1"].append((bool(fit.converged), in_errors(fit, truth)))
    for seed in range(states):
        size = (1, 2, 8)[seed % 3]
        x = torch.randn(1, 6, size, generator=torch.Generator().manual_seed(seed))
        fit = InformationLoss(lambda x: x**2).fit(x, max_sigma=100.0, solver=Solver(seed=seed))
        truth = quadratic_optimum(x, float(fit.rate))
        lines.setdefault(f"quadratic, K = {size}", []).append((bool(fit.converged), in_errors(fit, truth)))
    print(f"{'state':<16} {'converged':>9} {'in 2 s.e.':>9} {'largest':>8}")
    for name, found in lines.items():
        errors = [error for converged, error in found if converged]
        share = mean([float(converged) for converged, _ in found])
        largest = float(torch.cat(errors).abs().max()) if errors else math.nan
        print(f"{name:<16} {share:9.3f} {within(errors):9.3f} {largest:8.2f}")
    print(f"linear states of one number, largest error of sigma: {100 * linear_error():.4f} %")


def in_errors(fit: NoiseFit, truth: Tensor) -> Tensor:
    """The error of log sigma below the cap, in standard errors; rounding, 0.001, is no error."""
    error = fit.sigma[0].double().log() - truth
    return (error / fit.standard_error[0].double().clamp(min=1e-3))[~fit.at_cap[0]]


def quadratic_optimum(x: Tensor, rate: float) -> Tensor:
    """log sigma where sigma dD/dsigma = rate / n for s = x^2: D_i = (4 sum x^2 s^2 + 3 K s^4) / (M v^2)."""
    x = x[0].double()
    m, v2, square = x.numel(), x.pow(4).mean(), x.square().sum(1)
    goal, k = rate / len(x), x.shape[1]  # 8 square s^2 + 12 K s^4 = goal M v^2
    root = (-8 * square + (64 * square.square() + 48 * k * goal * m * v2).sqrt()) / (24 * k)
    return root.log() / 2


def linear_error(count: int = 40) -> float:
    """Largest relative error of sigma over linear states of one number, one to eight elements a token."""
    worst = 0.0
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        x, weights = torch.randn(2, 1, 5, 1 + seed % 8, generator=generator)
        fit = InformationLoss(lambda x, w=weights: (w * x).sum((1, 2))).fit(
            x, max_sigma=1e4, solver=Solver(seed=seed)
        )
        v = float((weights * x).sum())
        truth = (RATE / 10 / (weights.square().sum(2) / v**2)).sqrt()
        worst = max(worst, float((fit.sigma / truth - 1).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="TSV with a sentence in its first column")
    parser.add_argument("--classifier", type=Path, help="folder of a fine-tuned BERT classifier")
    parser.add_argument("--sentences", type=int, default=50)
    parser.add_argument("--fresh", type=int, default=4096, help="draws that check a fit; 0: none")
    parser.add_argument("--small", action="store_true", help="states of few elements with known optima")
    parser.add_argument("--nets", type=int, default=40)
    parser.add_argument("--states", type=int, default=60)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of smaller rates: the table says which
    if given.small:
        small(given.nets, given.states)
    if given.data:
        with given.data.open(newline="", encoding="utf-8") as file:
            rows = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
        texts = rows[: given.sentences]
        print(Line.HEADER)
        classes("default", huggingface.default_model_path(), texts, given.fresh, given.functions)
        if given.classifier:
            classes("MiniLM", given.classifier, texts, given.fresh, given.functions)


if __name__ == "__main__":
    main()
