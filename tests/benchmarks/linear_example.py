"""The README's linear example: exact optimum, our solver, the seed's loop and Interpreter's Adam.

    python tests/benchmarks/linear_example.py [--seeds 3] [--steps 5000] [--scale 0.1]

W = (10, 20, 5, -20, -10), x of shape (5, 256) and the corpus ~ N(0, 0.01^2). The state is linear, so
sigma_i = sqrt(rate / (2 n c_i)) exactly, with c_i = W_i^2 mean(1 / v^2) and the same regularization v.
The cap is 10 x std of the input, as the write-up recommends; the seed's default of 0.5 makes its loop worse.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from seed_loop import seed_loop
from torch import Tensor

from interp_plugin.interpreter import Interpreter, calculate_regularization

WEIGHT = torch.tensor([10.0, 20.0, 5.0, -20.0, -10.0])
RATE = 0.1


def Phi(x: Tensor) -> Tensor:
    return WEIGHT @ x


def interpret(x: Tensor, regularization: Tensor, scale: float, iteration: int | None = None) -> Tensor:
    interpreter = Interpreter(x, Phi, scale=scale, rate=RATE, regularization=regularization)
    interpreter.optimize(iteration=iteration)
    return torch.from_numpy(interpreter.get_sigma())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print("relative error of sigma in % for W = 10, 20, 5, -20, -10")
    for seed in range(arguments.seeds):
        generator = torch.Generator().manual_seed(seed)
        corpus = 0.01 * torch.randn(1000, 5, 256, generator=generator)
        x = 0.01 * torch.randn(5, 256, generator=generator)
        v = torch.from_numpy(calculate_regularization(corpus, Phi))
        exact = (RATE / (2 * len(x) * WEIGHT.square() * v.pow(-2).mean())).sqrt()
        ways: dict[str, Callable[[], Tensor]] = {
            "ours": partial(interpret, x, v, arguments.scale),
            "Adam, averaged": partial(interpret, x, v, arguments.scale, arguments.steps),
            "seed's loop": partial(seed_loop, x, Phi, v, arguments.scale, RATE, arguments.steps, seed),
        }
        print(f"seed {seed}: exact sigma |W| = {', '.join(f'{s:.5f}' for s in exact * WEIGHT.abs())}")
        for name, run in ways.items():
            start = time.perf_counter()
            sigma = run()
            wall = time.perf_counter() - start
            errors = 100 * (sigma / exact - 1)
            print(f"  {name:<16}{' '.join(f'{e:8.3f}' for e in errors)}   {wall:8.4f} s")


if __name__ == "__main__":
    main()
