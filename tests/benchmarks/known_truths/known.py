"""States whose optimal noise is known: linear states in closed form, quadratic ones by one-dimensional root finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from interp_plugin.attribution import LayerInformationLoss
from interp_plugin.comparison.interface import Inputs, Method
from interp_plugin.method.perturbation import LayerCall
from interp_plugin.method.solver import Solver
from interp_plugin.text.models import PlainModel
from interp_plugin.text.states import State
from known_truths.evaluation import Evaluation, Measure, Question, evaluate, spearman

RATE = 0.1
CAP = 10.0  # in standard deviations of the embedding's weights: the default of max_sigma
SPREAD = 10.0  # of the tokens' weights: the largest over the smallest


@dataclass(frozen=True)
class Known:
    """One text, a state of it, and the optimal noise.

    Attributes:
        inputs: T tokens of K dimensions.
        state: of M elements, with its v.
        sigma: the optimum of the objective with rate 0.1, (T,).
        max_sigma: the cap, by the package's default rule.
    """

    inputs: Inputs
    state: State
    sigma: Tensor
    max_sigma: float

    @property
    def kept(self) -> Tensor:
        """Information kept, (T,), in nats: K / 2 log(1 + tau^2 / sigma^2), less the same at the cap of 10 tau."""
        passed = (self.max_sigma / CAP / self.sigma).square().log1p() - math.log1p(CAP**-2)
        return self.inputs.embeddings.shape[-1] / 2 * passed


class _Linear(nn.Module):
    """s = sum_i W_i x_i, (B, M)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (T, M, K)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("tmk,btk->bm", self.weight, x)


class _Quadratic(nn.Module):
    """s = sum_i q_i |x_i|^2, (B, 1)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (T,)

    def forward(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) * self.weight).sum(1, keepdim=True)


def linear(tokens: int = 8, width: int = 32, elements: int = 6, seed: int = 0) -> Known:
    """A state s = sum_i W_i x_i whose tokens differ in weight by up to a factor of ten.

    D is quadratic, so ``sigma_i^2 = rate / (2 n c_i)`` with ``c_i = ||W_i / v||_F^2 / M`` is the optimum
    (Guan et al., 2019, eq. 7), and the small-noise closed form is exact.

    Args:
        tokens, width, elements: T, K and M.
        seed: of the weights and the text.

    Examples::
        >>> known = linear(tokens=4)
        >>> known.sigma.shape, bool((known.sigma < known.max_sigma).all())
        (torch.Size([4]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    size = _spread(tokens, generator)
    weight = size[:, None, None] * torch.randn(
        tokens, elements, width, generator=generator, dtype=torch.float32
    )
    embedding = torch.randn(tokens, width, generator=generator, dtype=torch.float32)
    std = weight.square().sum((0, 2)).sqrt()  # of s over texts of standard normal embeddings, (M,)
    curvature = (weight / std[:, None]).double().square().sum((1, 2)) / elements  # c, (T,)
    sigma = (RATE / (2 * tokens * curvature)).sqrt()
    return _known(_Linear(weight), embedding, std, lambda cap: sigma.clamp(max=cap), seed)


def quadratic(tokens: int = 8, width: int = 32, seed: int = 0) -> Known:
    """A state s = sum_i q_i |x_i|^2, whose optimal noise is not that of its slope: the closed form is wrong here.

    With u_i = sigma_i^2 and S = K sum_j q_j u_j the distortion is
    ``v^2 D = sum_i q_i^2 (4 |x_i|^2 u_i + 2 K u_i^2) + S^2``.  Given S, its stationarity
    ``2 u_i dD / du_i = rate / n`` is a quadratic equation for each u_i, and S is the
    root of one equation that falls in S (SciPy's ``brentq``).  D is a sum of exponentials of log sigma with
    positive weights, thus convex there: the optimum is the only one.

    Args:
        tokens, width: T and K.
        seed: of the weights and the text.

    Examples::
        >>> known = quadratic(tokens=4)
        >>> known.sigma.shape, bool((known.sigma < known.max_sigma).all())
        (torch.Size([4]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    weight = _spread(tokens, generator)
    norms = _spread(tokens, generator)
    embedding = norms[:, None] * torch.randn(tokens, width, generator=generator, dtype=torch.float32)
    std = (weight * embedding.square().sum(1)).sum()  # s itself
    optimum = partial(_quadratic_optimum, weight.double(), embedding.double(), float(std))
    return _known(_Quadratic(weight), embedding, std.reshape(1), optimum, seed)


TRUTHS: dict[str, Callable[..., Known]] = {"linear": linear, "quadratic": quadratic}


def known_optimum(
    kind: str, methods: Sequence[Method], texts: int = 20, tokens: int = 8, seed: int = 0
) -> Evaluation:
    """Rank correlation of each method's scores with the information that the state truly keeps.

    Args:
        kind: "linear" or "quadratic".
        methods: to be evaluated.
        texts: models and texts, each with weights of its own.
        tokens: T.
        seed: of the first.

    Raises:
        ValueError: another kind.
    """
    questions = [
        Question(known.inputs, None, known.state, known.kept) for known in _all(kind, texts, tokens, seed)
    ]
    return evaluate(f"{kind} state", questions, methods, [Measure("Spearman", spearman, True)])


def sigma_errors(
    kind: str, solver: Solver = Solver(), texts: int = 20, tokens: int = 8, seed: int = 0
) -> tuple[float, ...]:
    """Root mean square over tokens of the error in log sigma of our own method, one number a text.

    Args:
        kind, texts, tokens, seed: as in :func:`known_optimum`.
        solver: settings of the solver.
    """
    errors = []
    for known in _all(kind, texts, tokens, seed):
        model, [ids] = known.inputs.model, known.inputs.arguments
        method = LayerInformationLoss(model, model.embedding, known.state.site)
        solver = replace(solver, lower_rate=False)  # the optimum is known at this rate
        fit = method.fit(ids, state_std=known.state.state_std, rate=RATE, solver=solver)
        gap = (fit.sigma[0].double().cpu() / known.sigma).log()
        errors.append(float(gap.square().mean().sqrt()))
    return tuple(errors)


def _all(kind: str, texts: int, tokens: int, seed: int) -> list[Known]:
    if kind not in TRUTHS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(map(repr, TRUTHS))}")
    return [TRUTHS[kind](tokens=tokens, seed=seed + index) for index in range(texts)]


def _spread(tokens: int, generator: torch.Generator) -> Tensor:
    """Positive numbers, (T,), log-uniform over a factor of ``SPREAD``."""
    return (torch.rand(tokens, generator=generator, dtype=torch.float32) * math.log(SPREAD)).exp()


def _known(
    top: nn.Module, embedding: Tensor, std: Tensor, optimum: Callable[[float], Tensor], seed: int
) -> Known:
    """A model whose text is its whole vocabulary in order, so that token i has embedding i."""
    table = nn.Embedding.from_pretrained(embedding)
    module = nn.Sequential(table, top).eval()
    words = [str(index) for index in range(len(embedding))]
    model = PlainModel(
        module, lambda text: [words.index(word) for word in text.split()], table, {"state": top}
    )
    cap = CAP * float(embedding.std())
    state = State("state", LayerCall(top), None, std)
    return Known(Inputs(model, model.encode(" ".join(words)), seed), state, optimum(cap), cap)


def _quadratic_optimum(weight: Tensor, embedding: Tensor, std: float, cap: float) -> Tensor:
    """sigma, (T,), of s = sum_i q_i |x_i|^2."""
    from scipy.optimize import brentq

    tokens, width = embedding.shape
    share = RATE * std**2 / tokens

    def squares(total: float) -> Tensor:
        """u given S: the positive root of 8 K q^2 u^2 + (8 q^2 |x|^2 + 4 K q S) u = lambda v^2 / n."""
        a = 8 * width * weight.square()
        b = 8 * weight.square() * embedding.square().sum(1) + 4 * width * weight * total
        return (((b.square() + 4 * a * share).sqrt() - b) / (2 * a)).clamp(max=cap**2)

    def excess(total: float) -> float:
        return float(width * (weight * squares(total)).sum()) - total

    return squares(brentq(excess, 0.0, excess(0.0), xtol=1e-12 * std)).sqrt()
