"""What a corpus costs: passes x FLOPs of a pass, checked against the clock, and from there to a billion tokens.

    python tests/benchmarks/cost_model.py [--data TSV] [--texts 32] [--peak 1e15 --utilisation 0.4] [--gpus 64]

counted   FLOPs of a fit by torch's counter against passes x FLOPs of a pass: 4 per weight and token of the layers up
          to the state (2 forward, 2 backward to the input; no gradient of a weight is computed)
measured  the share of this machine's own matrix product (float32) that a study reaches, same process
billion   10^9 tokens at the default settings with that many passes, on this machine and on accelerators: the last is
          arithmetic with --peak (FLOP/s, one of them) and --utilisation, not a measurement; "amortised" is one forward
          a text, and the solver's check of one text in a hundred costs more than that
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import Bert, read_texts, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interp_plugin import NoiseFit
from interp_plugin.corpus.study import CHECKED_SHARE

TOKENS = 10**9
DAY = 86400


def weights_of(layers: list[nn.Module]) -> int:
    """Weights that take part in a matrix product."""
    return sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)


def fit(bert: Bert, depth: int, text: str, std: Tensor | float) -> tuple[NoiseFit, int]:
    """A fit at the default settings, and the number of tokens."""
    ids, mask = bert.encode([text])
    return bert.method(depth).fit(ids, additional_forward_args=(mask,), state_std=std), ids.numel()


def of_counter(bert: Bert, text: str) -> None:
    for depth in (1, len(bert.layers)):
        with FlopCounterMode(display=False) as counter:
            found, tokens = fit(bert, depth, text, 1.0)
        ours = int(found.n_backward[0]) * 4 * weights_of(bert.layers[:depth]) * tokens
        counted = counter.get_total_flops()
        said = f"{counted:.3g} FLOPs, the model says {ours:.3g} ({counted / ours:.2f} of it)"
        print(f"counted   layer {depth}, {tokens} tokens, {int(found.n_backward[0])} passes: {said}")


def peak_here(size: int = 1024) -> float:
    """FLOP/s of a square matrix product."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / timed(lambda: a @ b, 15)


def measured(bert: Bert, texts: list[str]) -> tuple[list[float], float]:
    """Mean passes of every layer, weighted by tokens, and the share of the peak that was reached."""
    peak = peak_here()
    passes, flops, seconds, tokens = [], 0.0, 0.0, 0
    for depth in range(1, len(bert.layers) + 1):
        spent = tokens = 0
        std = bert.state_std(depth, texts)
        start = time.perf_counter()  # not of the spread, which a corpus needs once
        for text in texts:
            found, length = fit(bert, depth, text, std)
            spent += int(found.n_backward[0]) * length
            tokens += length
        seconds += time.perf_counter() - start
        flops += spent * 4 * weights_of(bert.layers[:depth])
        passes.append(spent / tokens)
    share = flops / seconds / peak
    print(
        f"measured  {len(texts)} texts, {tokens} tokens; passes by layer {', '.join(f'{p:.0f}' for p in passes)}"
    )
    print(f"measured  {flops / seconds:.3g} FLOP/s of {peak:.3g}: {100 * share:.0f} % of a matrix product's")
    return passes, flops / seconds


def of_billion(name: str, layer: int, passes: list[float], here: float, given: argparse.Namespace) -> None:
    """``layer``: weights of one layer."""
    depths = range(1, len(passes) + 1)
    ways = {
        "all layers": sum(p * 4 * layer * depth for p, depth in zip(passes, depths)),
        "layer 3": passes[2] * 4 * layer * 3,
    }
    head = 2.0 * layer * len(passes)
    ways |= {
        "amortised, all layers": head,
        "amortised with the solver's check": head + CHECKED_SHARE * ways["all layers"],
    }
    there = given.peak * given.utilisation
    for way, flops in ways.items():
        hours = TOKENS * flops / there / 3600
        print(f"billion   {name}, {way}: {flops:.3g} FLOPs a token")
        print(
            f"{'':<12}this machine {TOKENS * flops / here / DAY:,.1f} days, one accelerator {hours:.3g} h, "
            f"{given.gpus} of them {hours / given.gpus:.2g} h"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument(
        "--peak", type=float, default=0.99e15, help="dense bf16 FLOP/s of an H100 by its data sheet"
    )
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bert = Bert.minilm()
    texts = list(read_texts(given.data, given.texts))
    of_counter(bert, texts[0])
    passes, here = measured(bert, texts)
    of_billion("MiniLM, 6 layers", weights_of(bert.layers[:1]), passes, here, given)
    base = [*passes, *[passes[-1]] * 6]  # BERT-base: twice as deep; passes beyond layer 6 as at layer 6
    of_billion("BERT-base, 12 layers", 12 * 768 * 768, base, here, given)


if __name__ == "__main__":
    main()
