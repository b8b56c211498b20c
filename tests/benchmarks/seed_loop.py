"""The seed's loop against ours: the same objective on a real BERT, side by side in one run.

    python tests/benchmarks/seed_loop.py [--steps 5000] [--sentences 3] [--threads 2] [--data TSV]

MiniLM (6 layers, 384 wide), noise at the embedding output, state = output of layer 3, `state_std` per
dimension over the texts' tokens, cap = 10 x std of the word embeddings. The loop is the one of the
reference code as DESIGN.md describes it: Adam at 0.01, one draw a step, the luckiest step's sigma kept.
It starts from a standard normal, stops at layer 3 as ours does, and the model's parameters are frozen,
so it gets every benefit. Both sigmas are then judged on the same fresh draws, which neither has seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from common import SENTENCES, Bert, State, read_texts, timed
from torch import Tensor

from interp_plugin import NoiseFit, Solver


def seed_loop(
    x: Tensor, phi: State, regularization: Tensor, scale: float, rate: float, steps: int, seed: int
) -> Tensor:
    """Sigma (words,) of the reference loop: x is (words, K), `phi` has no batch dimension."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = phi(x)
    ratio = torch.randn(len(x), 1, generator=generator).requires_grad_()  # (words, 1)
    optimizer = torch.optim.Adam([ratio], lr=0.01)
    best, lowest = ratio.detach().clone(), float("inf")
    for _ in range(steps):
        optimizer.zero_grad()
        share = torch.sigmoid(ratio)
        noisy = phi(x + scale * share * torch.randn(x.shape, generator=generator))
        loss = ((noisy - state) / regularization).square().mean() - rate * share.log().mean()
        if loss.item() < lowest:
            best, lowest = ratio.detach().clone(), loss.item()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return scale * torch.sigmoid(best).squeeze(1)


@torch.no_grad()
def fresh_losses(
    x: Tensor, phi: State, v: Tensor, sigma: Tensor, rate: float, draws: int, seed: int
) -> Tensor:
    """L on each of `draws` fresh draws, (draws,): the same draws for every sigma. `phi` is batched here."""
    generator = torch.Generator().manual_seed(seed)
    state = phi(x.unsqueeze(0))
    losses = []
    for start in range(0, draws, 64):
        noise = torch.randn(min(64, draws - start), *x.shape, generator=generator)
        difference = (phi(x + sigma[:, None] * noise) - state) / v
        losses.append(difference.square().flatten(1).mean(1))
    return torch.cat(losses) - rate * sigma.log().mean()


DEFAULT = Solver()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--sentences", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=4096, help="fresh draws of the final judgement")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of ours, after one warm-up")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--data", type=Path, help="TSV whose first column holds texts for state_std")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    bert = Bert.minilm()
    scale, method, phi = bert.max_sigma, bert.method(arguments.layer), bert.state(arguments.layer)
    texts = read_texts(arguments.data)
    state_std = bert.state_std(arguments.layer, texts)  # (384,): every token is a sample

    def fit(batch: Sequence[str], solver: Solver = DEFAULT) -> NoiseFit:
        ids, mask = bert.encode(batch)
        return method.fit(
            ids,
            additional_forward_args=(mask,),
            token_mask=mask.bool(),
            state_std=state_std,
            rate=arguments.rate,
            max_sigma=scale,
            solver=solver,
        )

    sentences = SENTENCES[: arguments.sentences]
    print(
        f"layer {arguments.layer}, rate {arguments.rate}, cap {scale:.3f}, state_std of {len(texts)} texts, "
        f"{arguments.steps} steps, {torch.get_num_threads()} threads, {arguments.draws} common fresh draws"
    )
    print(
        "tokens   loop s   ours s  ratio passes     E    L loop    L ours  ours-loop    s.e.  errors of both"
    )
    loop_wall = ours_wall = 0.0
    for number, sentence in enumerate(sentences):
        with torch.no_grad():
            x = bert.encoder.embeddings(bert.encode([sentence])[0])[0]  # (words, K)
        start = time.perf_counter()
        loop = seed_loop(
            x, lambda x: phi(x[None])[0], state_std, scale, arguments.rate, arguments.steps, seed=number
        )
        wall = time.perf_counter() - start
        ours = timed(partial(fit, [sentence]), arguments.repeats)
        loop_wall, ours_wall = loop_wall + wall, ours_wall + ours
        result = fit([sentence])
        losses = [
            fresh_losses(x, phi, state_std, sigma, arguments.rate, arguments.draws, seed=10_000 + number)
            for sigma in (loop, result.sigma[0])
        ]
        paired = losses[1] - losses[0]
        error = paired.std().item() / len(paired) ** 0.5
        truth = fit([sentence], Solver(seed=10**6, draws=100, tolerance=0.004)).sigma[0]
        errors = [(s / truth).log().square().mean().sqrt().item() for s in (loop, result.sigma[0])]
        passes, regime = int(result.n_forward[0] + result.n_backward[0]), result.regime_index[0].item()
        print(
            f"{len(x):6d} {wall:8.2f} {ours:8.4f} {wall / ours:6.0f} {passes:6d} {regime:5.2f} "
            f"{losses[0].mean():9.5f} {losses[1].mean():9.5f} {paired.mean():10.1e} {error:7.0e} "
            f"{errors[0]:7.2%} {errors[1]:7.2%}"
        )
    batch = timed(partial(fit, sentences), arguments.repeats)
    print(
        f"all: loop {loop_wall:.2f} s; ours one by one {ours_wall:.4f} s (1/{loop_wall / ours_wall:.0f}), "
        f"as one padded batch {batch:.4f} s (1/{loop_wall / batch:.0f})"
    )


if __name__ == "__main__":
    main()
