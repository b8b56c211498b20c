"""Far from small noise: error of log sigma against passes for five estimators.

    python tests/benchmarks/estimators.py --classifier DIR --data TSV [--passes 20000] [--seeds 8]

States: the last layer (`state_std` per dimension of 100 texts) and the logits of a classifier fine-tuned on
SST-2, made by `tutorials/train_default_model.py --data DIR_WITH_SST2 --output ELSEWHERE --teacher DIR`.
The truth is the mean of two long runs by plain code (common.py).

  undamped     plain draws, 24 a step, fixed point 1/2 log, average of the last half of its iterates
  frozen       damped fixed point on S frozen draws until its step is below 2 %
  L-BFGS       the same problem by scipy
  control      plain draws less their quadratic part on the same noise at scale 0.05, put back in closed form
  default      ours

All start from the closed form, whose passes count. A cell is "passes: r.m.s. error in percent"; "at" is the
number of passes at which the error of the default at `--at` passes is reached first, interpolated in
log-log, and the last column its ratio to the default's. Last: by how much (r.m.s.) the fixed point still
moves after 30 steps on 64 frozen draws, where nothing but oscillation is left to move it, the same with
half of the damped step, and ours between its last rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common import SENTENCES, Bert, Case, Problem, case, elasticity, read_texts, rms
from scipy.optimize import minimize
from torch import Tensor

from interp_plugin import Solver
from interp_plugin.method.solver import PROBES

Point = tuple[float, float]  # passes, r.m.s. error
Found = list[tuple[int, Tensor]]  # passes, log sigma
DRAWS = 24
SMALL = 0.05
EVALUATIONS = 24  # of one frozen problem, at most


def curvature(problem: Problem, generator: torch.Generator) -> tuple[Tensor, int]:
    """c_i = ||J_i / v||^2 / M by vector-Jacobian products, (T,), and how many."""
    points = problem.x[None].clone().requires_grad_()
    state = problem.phi(points) / problem.v
    elements = state.numel()
    if elements <= PROBES:
        signs = torch.eye(elements)
    else:
        signs = torch.randn(PROBES, elements, generator=generator).sign() / PROBES**0.5
    total = torch.zeros(len(problem.x))
    for sign in signs:
        (slope,) = torch.autograd.grad(state.flatten() @ sign, points, retain_graph=True)
        total += slope[0].square().sum(-1) / elements
    return total, len(signs)


def small_noise(problem: Problem, c: Tensor) -> Tensor:
    return problem.clip(0.5 * (problem.rate / (2 * len(c) * c)).log())


def undamped_step(problem: Problem, stationarity: Tensor) -> Tensor:
    ratio = problem.rate / len(stationarity) / stationarity.clamp(min=1e-12)
    return (0.5 * ratio.log()).clamp(-2.0, 2.0)


def undamped(problem: Problem, budgets: Sequence[int], seed: int) -> Found:
    generator = torch.Generator().manual_seed(seed)
    c, spent = curvature(problem, generator)
    theta = small_noise(problem, c)
    iterates: list[Tensor] = []
    found: Found = []
    for budget in budgets:
        while spent + DRAWS <= budget:
            _, g = problem.evaluate(theta, problem.noise(DRAWS, generator))
            theta = problem.clip(theta + undamped_step(problem, g.mean(0)))
            iterates.append(theta)
            spent += DRAWS
        found.append((spent, torch.stack(iterates[len(iterates) // 2 :]).mean(0)))
    return found


def control(problem: Problem, budgets: Sequence[int], seed: int) -> Found:
    """Two passes a draw; the averaged one-step estimates of a damped iteration with a falling gain."""
    generator = torch.Generator().manual_seed(seed)
    c, spent = curvature(problem, generator)
    theta = small_noise(problem, c)
    estimates: list[Tensor] = []
    found: Found = []
    for budget in budgets:
        while spent + DRAWS <= budget:
            noise = problem.noise(DRAWS // 2, generator)
            whole, g = problem.evaluate(theta, noise)
            part, h = problem.evaluate(theta + math.log(SMALL), noise)
            known = theta.exp().square() * c
            distortion = (whole - part / SMALL**2 + known.sum()).clamp(min=1e-12)
            g = g - h / SMALL**2 + 2 * known
            residual = problem.residual(g.mean(0))
            estimates.append(theta + problem.damped_step(residual, elasticity(distortion, g)))
            theta = problem.clip(theta.lerp(estimates[-1], 1 / (1 + len(estimates) // 2)))
            spent += DRAWS
        found.append((spent, problem.clip(torch.stack(estimates[len(estimates) // 2 :]).mean(0))))
    return found


def frozen(problem: Problem, budgets: Sequence[int], seed: int) -> Found:
    """One problem for each number of draws; the gain falls, for full steps need not come to rest."""
    found: Found = []
    for budget in budgets:
        generator = torch.Generator().manual_seed(seed)
        c, spent = curvature(problem, generator)
        theta = small_noise(problem, c)
        noise = problem.noise(max(4, budget // 10), generator)
        for index in range(EVALUATIONS):
            distortion, g = problem.evaluate(theta, noise)
            spent += len(noise)
            power = elasticity(distortion, g)
            step = problem.damped_step(problem.residual(g.mean(0)), power)
            theta = problem.clip(theta + step / (1 + index // 4))
            if rms(step) < 0.02:
                break
        found.append((spent, theta))
    return found


def lbfgs(problem: Problem, budgets: Sequence[int], seed: int) -> Found:
    found: Found = []
    share = problem.rate / len(problem.x)
    bound = math.log(problem.cap)
    for budget in budgets:
        generator = torch.Generator().manual_seed(seed)
        c, spent = curvature(problem, generator)
        noise = problem.noise(max(4, budget // 7), generator)

        def loss(values: np.ndarray, noise: Tensor = noise) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(values).float()
            distortion, g = problem.evaluate(theta, noise)
            total = distortion.mean().item() - share * theta.sum().item()
            return total / share, (g.mean(0) / share - 1).double().numpy()

        start = small_noise(problem, c).double().numpy()
        result = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, bound)] * len(start),
            options={"gtol": 0.02, "maxfun": EVALUATIONS},
        )
        found.append((spent + result.nfev * len(noise), torch.from_numpy(result.x).float()))
    return found


def ours(item: Case, budgets: Sequence[int], seed: int) -> Found:
    found: Found = []
    for budget in budgets:
        rounds = max(1, 1 + (budget - PROBES - DRAWS // 2) // DRAWS)
        solver = Solver(draws=DRAWS, iterations=rounds, tolerance=1e-9, seed=seed)
        fit = item.fit(solver)
        found.append((int(fit.n_backward[0]), fit.sigma[0].log()))
    return found


def passes_to_reach(error: float, curve: Sequence[Point]) -> float:
    """Passes at which a curve first reaches ``error``, interpolated in log-log; infinite if it never does."""
    before = curve[0]
    if before[1] <= error:
        return before[0]
    for point in curve[1:]:
        if point[1] <= error:
            share = math.log(before[1] / error) / math.log(before[1] / point[1])
            return before[0] * (point[0] / before[0]) ** share
        before = point
    return math.inf


def error_at(passes: float, curve: Sequence[Point]) -> float:
    logs = np.log(np.array(curve))
    return math.exp(np.interp(math.log(passes), logs[:, 0], logs[:, 1]))


def moves_on_frozen_draws(problem: Problem, damped: bool, steps: int = 30) -> float:
    """Mean r.m.s. of the last five steps."""
    generator = torch.Generator().manual_seed(0)
    theta = small_noise(problem, curvature(problem, generator)[0])
    noise = problem.noise(64, generator)
    moves = []
    for _ in range(steps):
        distortion, g = problem.evaluate(theta, noise)
        power = elasticity(distortion, g)
        residual = problem.residual(g.mean(0))
        step = problem.damped_step(residual, power) / 2 if damped else undamped_step(problem, g.mean(0))
        moved = problem.clip(theta + step)
        moves.append(rms(moved - theta))
        theta = moved
    return statistics.mean(moves[-5:])


def our_last_moves(item: Case, rounds: int = 12) -> float:
    """Mean r.m.s. difference between the results of the last rounds."""
    logs = [item.log_sigma(Solver(iterations=n, tolerance=1e-9)) for n in range(rounds - 3, rounds + 1)]
    return statistics.mean(rms(after - before) for before, after in pairwise(logs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", type=Path, required=True, help="folder of a fine-tuned classifier")
    parser.add_argument("--data", type=Path, help="TSV whose first column holds texts for state_std")
    parser.add_argument("--passes", type=int, default=20_000, help="of each half of the reference")
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--at", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    bert = Bert.classifier(arguments.classifier)
    texts = read_texts(arguments.data)
    columns = "".join(f"{f'~{budget}':>14}" for budget in arguments.budgets)
    print(f"{arguments.seeds} seeds; truth of 2 x {arguments.passes} passes; state_std of {len(texts)} texts")
    print(f"{'state':<9}{'estimator':<10}{columns}{'at':>7}{'ratio':>7}")
    for depth in (len(bert.layers), None):
        item = case(bert, depth, SENTENCES[0], texts)
        truth, halves = item.reference(arguments.passes)
        ways = estimators(item)
        curves = {name: curve(way, truth, arguments.budgets, arguments.seeds) for name, way in ways.items()}
        goal = error_at(arguments.at, curves["default"])
        base = passes_to_reach(goal, curves["default"])
        for name, points in curves.items():
            cells = "".join(f"{f'{passes:.0f}: {100 * error:.1f}':>14}" for passes, error in points)
            reached = passes_to_reach(goal, points)
            end = f"{reached:7.0f}{reached / base:7.2f}"
            if math.isinf(reached):
                end = f"{f'>{points[-1][0]:.0f}':>7}{f'>{points[-1][0] / base:.1f}':>7}"
            print(f"{item.name:<9}{name:<10}{cells}{end}")
        print(
            f"{item.name}: halves of the truth differ by {100 * halves:.2f} %; goal {100 * goal:.2f} %; last steps: "
            f"undamped {moves_on_frozen_draws(item.problem, damped=False):.4f} and damped "
            f"{moves_on_frozen_draws(item.problem, damped=True):.4f} on frozen draws, ours {our_last_moves(item):.4f}",
            flush=True,
        )


def estimators(item: Case) -> dict[str, Callable[[Sequence[int], int], Found]]:
    """By name: (budgets, seed) -> what is found at about each budget."""
    problem = item.problem
    return {
        "undamped": lambda budgets, seed: undamped(problem, budgets, seed),
        "frozen": lambda budgets, seed: frozen(problem, budgets, seed),
        "L-BFGS": lambda budgets, seed: lbfgs(problem, budgets, seed),
        "control": lambda budgets, seed: control(problem, budgets, seed),
        "default": lambda budgets, seed: ours(item, budgets, seed),
    }


def curve(
    way: Callable[[Sequence[int], int], Found], truth: Tensor, budgets: Sequence[int], seeds: int
) -> list[Point]:
    """Mean passes and r.m.s. error over seeds and tokens at each budget."""
    runs = [way(budgets, 100 + seed) for seed in range(seeds)]
    points = []
    for found in zip(*runs):
        errors = torch.stack([theta - truth for _, theta in found])
        points.append((statistics.mean(passes for passes, _ in found), rms(errors)))
    return points


if __name__ == "__main__":
    main()
