"""What an attribution costs: against Captum, by depth, beyond the model's own passes, in batches, in memory.

    python tests/benchmarks/cost.py --classifier DIR --data TSV [--repeats 7] [--parts captum depth ...]

Noise enters at the embedding output throughout; times are medians of alternating repetitions. The
classifier is made by `tutorials/train_default_model.py --data DIR_WITH_SST2 --output ELSEWHERE --teacher DIR`.

  captum    LayerIntegratedGradients(n_steps=50) of one logit (the faster of internal_batch_size None and
            25) against the information loss of layer 3 (tolerance=0.02 and 0.03), the last layer and the logits
            (defaults)
  depth     layer 3 against layer 12 of a random 12-layer BERT, the same number of passes
  overhead  a fit against the same rows through the model's own forward and backward: the time outside them
  batch     16 padded sentences at once against 16 single calls: time, largest difference of scores;
            the built-in ones (of similar length) and the TSV's first
  memory    peak growth of the resident set by internal_batch_size, and the set after 20 and 200 calls
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from captum.attr import LayerIntegratedGradients
from common import SENTENCES, TEXTS, Bert, read_texts, timed_in_turn
from torch import Tensor, nn

from interp_plugin import LayerInformationLoss, NoiseFit, Solver

PARTS = ("captum", "depth", "overhead", "batch", "memory")
LOOPS_OWN = 0.03  # a tolerance that leaves the error of the seed's loop, 2.2 %: seed_loop.py, accuracy.py
FIXED = 1e-9  # a tolerance that is never met: the number of rounds is fixed


def line(part: str, what: str, value: str, ratio: str = "") -> None:
    print(f"{part:<9} {what:<52} {value:>16} {ratio:>24}", flush=True)


def of_captum(bert: Bert, texts: list[str], repeats: int) -> None:
    ids, mask = bert.encode([SENTENCES[0]])
    label = int(bert.logits(ids, mask).argmax())
    gradients = LayerIntegratedGradients(bert.logits, bert.encoder.embeddings)
    last = len(bert.layers)
    baseline = torch.where(
        ids < bert.tokenizer.mask_token_id, ids, bert.tokenizer.pad_token_id
    )  # keeps [CLS], [SEP]

    def captum(rows: int | None) -> Tensor:
        return gradients.attribute(
            ids, baseline, label, additional_forward_args=(mask,), n_steps=50, internal_batch_size=rows
        )

    def ours(depth: int | None, std: Tensor | None, solver: Solver) -> NoiseFit:
        return bert.method(depth).fit(ids, additional_forward_args=(mask,), state_std=std, solver=solver)

    ways: dict[str, Callable[[], NoiseFit]] = {
        f"layer 3 of {last}, tolerance 0.02": partial(
            ours, 3, bert.state_std(3, texts), Solver(tolerance=0.02)
        ),
        f"layer {last} of {last}, defaults": partial(ours, last, bert.state_std(last, texts), Solver()),
        f"layer 3 of {last}, tolerance {LOOPS_OWN}": partial(
            ours, 3, bert.state_std(3, texts), Solver(tolerance=LOOPS_OWN)
        ),
        "logits, defaults": partial(ours, None, None, Solver()),
    }
    walls = timed_in_turn([partial(captum, None), partial(captum, 25), *ways.values()], repeats)
    best = min(walls[:2])
    for rows, wall in zip((None, 25), walls):
        line("captum", f"IG(50), internal_batch_size={rows}", f"{wall:.4f} s", f"{wall / best:.2f} x IG")
    for (name, way), wall in zip(ways.items(), walls[2:]):
        fit = way()
        passes, regime = int(fit.n_backward[0]), fit.regime_index[0].item()
        line("captum", f"{name}: {passes} passes, E {regime:.2f}", f"{wall:.4f} s", f"{wall / best:.2f} x IG")


def of_depth(width: int, repeats: int) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=12, intermediate_size=4 * width
    )
    model = BertModel(config).eval().requires_grad_(False)
    ids = torch.randint(1000, 20000, (1, 14))
    depths = (3, 12)
    methods = [
        LayerInformationLoss(model, model.embeddings, model.encoder.layer[depth - 1]) for depth in depths
    ]
    fits = [partial(m.fit, ids, solver=Solver(iterations=2, tolerance=FIXED)) for m in methods]
    walls = timed_in_turn(fits, repeats)
    for depth, wall, fit in zip(depths, walls, fits):
        passes = int(fit().n_backward[0])
        line(
            "depth",
            f"layer {depth} of 12, width {width}: {passes} passes",
            f"{wall:.4f} s",
            f"{wall / walls[-1]:.2f}",
        )


class _StateRead(BaseException):
    """Leaves the model's forward at the state's layer."""


def raw_pass(
    model: nn.Module, entry: nn.Module, layer: nn.Module, ids: Tensor, mask: Tensor, x: Tensor
) -> Tensor:
    """The model's own forward from ``x`` at the entry's output to the layer, and its backward."""
    states: list[Tensor] = []

    def leave(module: nn.Module, args: object, output: Tensor) -> None:
        states.append(output)
        raise _StateRead

    points = x.detach().requires_grad_()
    hooks = [entry.register_forward_hook(lambda *_: points), layer.register_forward_hook(leave)]
    try:
        with contextlib.suppress(_StateRead):
            model(ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.autograd.grad(states[0].square().sum(), points)[0]


def of_overhead(bert: Bert, texts: list[str], repeats: int) -> None:
    entry = bert.encoder.embeddings
    ids, mask = bert.encode([SENTENCES[0]])
    for depth in (3, len(bert.layers)):
        layer, std = bert.layers[depth - 1], bert.state_std(depth, texts)
        fit = partial(
            bert.method(depth).fit, ids, additional_forward_args=(mask,), state_std=std, solver=Solver()
        )
        shapes: list[int] = []
        handle = entry.register_forward_hook(lambda module, args, out, shapes=shapes: shapes.append(len(out)))
        fit()
        handle.remove()
        batches = [
            (ids.expand(n, -1), mask.expand(n, -1), entry(ids).expand(n, -1, -1).contiguous())
            for n in shapes[1:]
        ]

        def raw(layer: nn.Module = layer, batches: list[tuple[Tensor, Tensor, Tensor]] = batches) -> None:
            with torch.no_grad():
                bert.model(ids, mask)  # the clean state
            for rows, masks, x in batches:
                raw_pass(bert.model, entry, layer, rows, masks, x)

        ours, own = timed_in_turn([fit, raw], repeats)
        what = f"layer {depth}: {sum(shapes[1:])} passes in {len(batches)} batches"
        line("overhead", what, f"{ours:.4f} s", f"{100 * (1 - own / ours):.1f} % outside")


def of_batch(bert: Bert, texts: list[str], repeats: int) -> None:
    depth = 3
    method, std = bert.method(depth), bert.state_std(depth, texts)

    def fit(ids: Tensor, mask: Tensor) -> NoiseFit:
        return method.fit(ids, additional_forward_args=(mask,), token_mask=mask.bool(), state_std=std)

    def compare(sentences: list[str]) -> None:
        ids, mask = bert.encode(sentences)
        lengths = mask.sum(1).tolist()
        singles = [(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths)]

        def one_by_one() -> list[NoiseFit]:
            return [fit(*single) for single in singles]

        together, apart = timed_in_turn([partial(fit, ids, mask), one_by_one], repeats)
        whole = fit(ids, mask).loss()
        gaps = [
            (whole[i, :n] - one.loss()[0]).abs().max()
            for i, (n, one) in enumerate(zip(lengths, one_by_one()))
        ]
        gap = torch.stack(gaps).max().item()
        what = f"layer {depth}, {len(lengths)} singles of {min(lengths)} to {max(lengths)} tokens"
        line("batch", what, f"{apart:.4f} s")
        line(
            "batch", "the same in one padded batch", f"{together:.4f} s", f"{together / apart:.2f} x singles"
        )
        each = gap / bert.encoder.config.hidden_size
        line("batch", "largest difference of scores", f"{each:.1e} / element", f"{gap:.1e} nats / token")

    compare(list(TEXTS[:16]))
    if texts[:16] != list(TEXTS[:16]):
        compare(texts[:16])  # lengths differ more, and padding costs more


def resident() -> float:
    """Resident set of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_resident() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in status if row.startswith("VmHWM")) / 2**10


def forget_peak() -> None:
    with contextlib.suppress(OSError):  # some sandboxes forbid it; the peak then includes loading
        Path("/proc/self/clear_refs").write_text("5")


def memory_child(bert: Bert, texts: list[str], rows: int, calls: int) -> None:
    """In a process of its own; prints one number for each question."""
    method, depth = bert.method(3), 3
    ids, mask = bert.encode(texts[:16] if not calls else [SENTENCES[0]])
    std = bert.state_std(depth, texts)

    def fit(rounds: int) -> None:
        method.fit(
            ids, additional_forward_args=(mask,), token_mask=mask.bool(), state_std=std, internal_batch_size=rows,
            solver=Solver(iterations=rounds, tolerance=FIXED),
        )  # fmt: skip

    if not calls:
        forget_peak()
        before = resident()
        fit(2)
        print(f"{peak_resident() - before:.0f} MiB")
        return
    sizes = []
    for call in range(1, calls + 1):
        fit(1)
        if call in (max(1, calls // 10), calls):
            sizes.append(f"{resident():.1f}")
    print(" -> ".join(sizes) + " MiB")


def of_memory(arguments: argparse.Namespace) -> None:
    jobs = [(f"peak growth, 16 sentences, internal_batch_size={rows}", rows, 0) for rows in (8, 32, 128)]
    jobs.append((f"resident after {arguments.calls // 10} and {arguments.calls} calls", 64, arguments.calls))
    for what, rows, calls in jobs:
        command = [sys.executable, __file__, "--classifier", str(arguments.classifier)]
        command += ["--threads", str(arguments.threads), "--child", str(rows), str(calls)]
        if arguments.data:
            command += ["--data", str(arguments.data)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        line("memory", what, "", result.stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", type=Path, required=True, help="folder of a fine-tuned classifier")
    parser.add_argument("--data", type=Path, help="TSV whose first column holds texts for state_std")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--width", type=int, default=384, help="of the random 12-layer BERT")
    parser.add_argument("--calls", type=int, default=200, help="repeated calls of the memory part")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    bert = Bert.classifier(arguments.classifier)
    texts = list(read_texts(arguments.data))
    if arguments.child:
        memory_child(bert, texts, *arguments.child)
        return
    print(f"{arguments.repeats} repetitions, {torch.get_num_threads()} threads")
    parts: dict[str, Callable[[], None]] = {
        "captum": lambda: of_captum(bert, texts, arguments.repeats),
        "depth": lambda: of_depth(arguments.width, arguments.repeats),
        "overhead": lambda: of_overhead(bert, texts, arguments.repeats),
        "batch": lambda: of_batch(bert, texts, arguments.repeats),
        "memory": lambda: of_memory(arguments),
    }
    for part in arguments.parts:
        parts[part]()


if __name__ == "__main__":
    main()
