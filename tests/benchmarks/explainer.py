"""What explaining texts costs: all layers at once, mixed lengths, 512 tokens, files, imports.

  python tests/benchmarks/explainer.py [--data TSV] [--repeats 3] [--parts layers batch ...]

layers  a random BERT-base (12 layers, 768 wide), 16 tokens: all layers in one call against 12 calls for
        one layer each, (a) that run the whole forward and read the hidden state from its output, and
        (b) that run the whole model forward and backward: 12 times the last layer's call
batch   32 texts of mixed length on the default model and on MiniLM: one call against one by one, and
        the largest difference of scores
long    512 tokens on the same BERT-base, all layers: peak of the resident set above the model
saved   the Parquet file of 32 texts x 12 layers against its JSON
import  interp_plugin after torch and captum, in processes of their own
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Bert, read_texts, timed_in_turn
from cost import forget_peak, line, peak_resident, resident
from torch import Tensor

from interp_plugin import Explanation, LayerInformationLoss, Solver, TextExplainer, huggingface

PARTS = ("layers", "batch", "long", "saved", "import")
WORDS = "a funny film with more than enough charm to make it memorable for us"  # 16 tokens with [CLS], [SEP]


def bert_base() -> tuple[TextExplainer, torch.nn.Module]:
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    tokenizer = AutoTokenizer.from_pretrained(huggingface.default_model_path(), model_max_length=512)
    return TextExplainer(model, tokenizer), model


def of_layers(repeats: int) -> None:
    explainer, model = bert_base()
    encoding = explainer.model.encode(WORDS)
    ids = torch.tensor([encoding.ids])

    def hidden(depth: int, ids: Tensor) -> Tensor:
        states: Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[depth]
        return states

    methods = [
        LayerInformationLoss(partial(hidden, depth), model.embeddings.word_embeddings)
        for depth in range(1, 13)
    ]
    solver = Solver()

    def one_by_one() -> None:
        for method in methods:
            method.fit(ids, solver=solver)

    ways: list[Callable[[], object]] = [
        lambda: explainer.explain(WORDS),
        one_by_one,
        lambda: methods[-1].fit(ids, solver=solver),
    ]
    together, apart, last = timed_in_turn(ways, repeats)
    rows = explainer.explain(WORDS)[0].rows
    passes = [int(m.fit(ids, solver=solver).n_backward[0]) for m in methods]
    line(
        "layers",
        f"12 layers, {len(encoding.ids)} tokens, one call: passes",
        str([r.n_backward for r in rows]),
    )
    line("layers", "one layer a call: passes", str(passes))
    line("layers", "all layers in one call", f"{together:.3f} s")
    line("layers", "(a) 12 calls, whole forwards", f"{apart:.3f} s", f"{together / apart:.2f} of it")
    line(
        "layers",
        "(b) 12 times the last layer's call",
        f"{12 * last:.3f} s",
        f"{together / 12 / last:.2f} of it",
    )


def of_batch(texts: list[str], repeats: int) -> None:
    minilm = Bert.minilm()
    models = {
        "default model": TextExplainer(*huggingface.load(huggingface.default_model_path())),
        "MiniLM": TextExplainer(minilm.model, minilm.tokenizer),
    }
    for name, explainer in models.items():
        for layer in (1, len(explainer.model.layers)):
            together, apart = timed_in_turn(
                [
                    partial(explainer.explain, texts, layers=layer),
                    lambda e=explainer, n=layer: [e.explain(t, layers=n) for t in texts],
                ],
                repeats,
            )
            batched = explainer.explain(texts, layers=layer)
            singles = [explainer.explain(t, layers=layer)[0] for t in texts]
            gap = max(
                (one.rows[0].sigma / many.rows[0].sigma - 1).abs().max().item()
                for one, many in zip(singles, batched)
            )
            lengths = [len(t.tokens) for t in batched]
            what = f"{name}, layer {layer}, {len(texts)} texts of {min(lengths)} to {max(lengths)} tokens"
            line("batch", what, f"{together:.3f} s", f"{apart / together:.2f} x faster")
            line("batch", "largest relative difference of sigma", f"{gap:.1e}")


def long_child() -> None:
    explainer, _ = bert_base()
    text = " ".join(["film"] * 510)
    explainer.explain("a film", layers=1)
    forget_peak()
    before = resident()
    explanation = explainer.explain(text, solver=Solver(iterations=1))
    print(f"{len(explanation[0].tokens)} tokens: {peak_resident() - before:.0f} MiB")


def of_saved() -> None:
    explainer, _ = bert_base()
    texts = [WORDS + " film" * (i % 9) for i in range(32)]
    for some in (texts, texts[:1]):
        explanation = explainer.explain(some, solver=Solver(iterations=0))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "e.parquet"
            explanation.save(path)
            size, plain = path.stat().st_size, len(json.dumps(explanation.to_dict()))
            same = Explanation.load(path) == explanation
        line(
            "saved",
            f"{len(some)} texts x 12 layers, equal after loading: {same}",
            f"{size} bytes",
            f"1/{plain / size:.1f} of JSON",
        )


def of_import(repeats: int) -> None:
    def seconds(code: str) -> float:
        timed = f"import time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)"
        done = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
        return float(done.stdout)

    base, ours = [], []
    for _ in range(2 * repeats + 1):
        base.append(seconds("import torch, captum.attr"))
        ours.append(seconds("import torch, captum.attr, interp_plugin"))
    more = statistics.median(ours) - statistics.median(base)
    line("import", "torch and captum", f"{statistics.median(base):.2f} s")
    line("import", "and interp_plugin", f"{statistics.median(ours):.2f} s", f"{more:+.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="TSV whose first column holds texts (default: built-in ones)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        long_child()
        return
    texts = list(read_texts(arguments.data, 32))
    command = [sys.executable, __file__, "--child", "--threads", str(arguments.threads)]
    parts: dict[str, Callable[[], object]] = {
        "layers": lambda: of_layers(arguments.repeats),
        "batch": lambda: of_batch(texts, arguments.repeats),
        "long": lambda: line(
            "long", subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), ""
        ),
        "saved": of_saved,
        "import": lambda: of_import(arguments.repeats),
    }
    for part in arguments.parts:
        parts[part]()


if __name__ == "__main__":
    main()
