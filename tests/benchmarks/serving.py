"""Threads that serve beside threads that explain: every prediction and every explanation, bit for bit.

Run it with ``python tests/benchmarks/serving.py [predictions] [explanations]``, by default 20,000 and 200, shared by
two threads that serve and four that explain, half of them on the model that ships with the package and half on one
of ``torch.nn.TransformerEncoder``.  Prints a table of how many differ from the same done in one thread alone, and
whether the process is as it was.  It takes some minutes.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin import LayerInformationLoss, Solver, TextExplainer, huggingface

TEXTS = ("a funny film", "dull", "it is hard to imagine a better cast", "the plot never quite works")
SERVING, EXPLAINING = 2, 4  # threads
FAST = Solver(draws=8, iterations=3)


class Encoder(nn.Module):
    """A classifier whose attention takes torch's fast path where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding)).amax(1)
        return scores


@dataclass(frozen=True)
class Service:
    """What is served and explained of one model: each call gives tensors that must not depend on other threads."""

    name: str
    predictions: Sequence[Callable[[], Tensor]]
    explanations: Sequence[Callable[[], Sequence[Tensor]]]


def of_texts() -> Service:
    """The model that ships with the package, two of its layers and its output."""
    model, tokenizer = huggingface.load(huggingface.default_model_path())
    explainer = TextExplainer(model, tokenizer)

    def predict(text: str) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(**tokenizer(text, return_tensors="pt")).logits
        return logits

    def explain(text: str) -> Sequence[Tensor]:
        found = explainer.explain([text, TEXTS[1]], layers=[1, 3, "output"], solver=FAST)
        return [row.sigma for item in found for row in item.rows]

    return Service(
        "default model",
        [lambda text=text: predict(text) for text in TEXTS],
        [lambda text=text: explain(text) for text in TEXTS],
    )


def of_an_encoder() -> Service:
    """A plain model, explained by the Captum class."""
    torch.manual_seed(0)
    model = Encoder().eval()
    layer = model.encoder.layers[1].linear1
    ids = torch.randint(50, (4, 3, 7), generator=torch.Generator().manual_seed(0))
    padding = torch.arange(7) >= torch.tensor([7, 5, 3]).unsqueeze(1)

    def predict(batch: Tensor) -> Tensor:
        with torch.no_grad():
            scores: Tensor = model(batch, padding)
        return scores

    def explain(batch: Tensor) -> Sequence[Tensor]:
        given = {"additional_forward_args": padding, "token_mask": ~padding, "solver": FAST}
        output = LayerInformationLoss(model, model.embedding).fit(batch, target=1, **given)
        inside = LayerInformationLoss(model, model.embedding, layer).fit(batch, **given)
        return [output.sigma, inside.sigma]

    return Service(
        "nn.TransformerEncoder",
        [lambda batch=batch: predict(batch) for batch in ids],
        [lambda batch=batch: explain(batch) for batch in ids],
    )


def process() -> dict[str, Any]:
    """What a library must leave as it was."""
    return {
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "cuDNN": torch.backends.cudnn.enabled,
        "warnings' filters": list(warnings.filters),
        "default type": torch.get_default_dtype(),
        "random state": torch.get_rng_state().tolist(),
        "threads' gradients": torch.is_grad_enabled(),
        "hooks of all modules": len(torch.nn.modules.module._global_forward_hooks),
        "stance of torch.compile": torch._dynamo.eval_frame._stance.stance,
    }


@dataclass
class Tally:
    """Calls, those that gave another result than alone, those that raised, and how long each took."""

    calls: int = 0
    wrong: int = 0
    raised: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def repeat(calls: Sequence[Callable[[], Any]], alone: Sequence[Any], turns: Iterator[int]) -> Tally:
    """Call one after another, as the numbers of the turns say, and compare each with what it gives alone."""
    tally = Tally()
    for turn in turns:
        which = turn % len(calls)
        start = time.perf_counter()
        try:
            found = calls[which]()
        except Exception:  # whatever goes wrong is what is counted here
            tally.raised += 1
        else:
            same = all(map(torch.equal, found, alone[which]))
            tally.wrong += not same
        tally.calls += 1
        tally.seconds += time.perf_counter() - start
    return tally


def main(predictions: int, explanations: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    services = [of_texts(), of_an_encoder()]
    predict = [call for service in services for call in service.predictions]
    explain = [call for service in services for call in service.explanations]
    served, explained = [call() for call in predict], [call() for call in explain]
    quiet = repeat(predict, served, iter(range(len(predict) * 20)))
    print(
        f"alone: {1e3 * quiet.seconds / quiet.calls:.2f} ms a prediction, {quiet.wrong} differ\n", flush=True
    )
    before, threads = process(), threading.active_count()
    served_turns, explained_turns = itertools.count(), itertools.count()
    lock = threading.Lock()

    def turns(counter: Iterator[int], most: int, others: Callable[[], bool]) -> Iterator[int]:
        while True:
            with lock:
                turn = next(counter)
            if turn >= most and not others():
                return
            yield turn

    explaining = threading.Event()
    explaining.set()
    with ThreadPoolExecutor(SERVING + EXPLAINING) as pool:
        serving = [
            pool.submit(
                repeat, predict, served, turns(served_turns, predictions, lambda: explaining.is_set())
            )
            for _ in range(SERVING)
        ]
        working = [
            pool.submit(repeat, explain, explained, turns(explained_turns, explanations, lambda: False))
            for _ in range(EXPLAINING)
        ]
        results = [each.result() for each in working]
        explaining.clear()
        results_served = [each.result() for each in serving]
    print("| | threads | calls | differ | raised | ms a call |")
    print("|---|---|---|---|---|---|")
    for name, tallies in (("predictions", results_served), ("explanations", results)):
        total = Tally()
        for tally in tallies:
            total.add(tally)
        mean = statistics.fmean(1e3 * t.seconds / max(t.calls, 1) for t in tallies)
        print(f"| {name} | {len(tallies)} | {total.calls} | {total.wrong} | {total.raised} | {mean:.1f} |")
    after = process()
    changed = [name for name, value in before.items() if after[name] != value]
    print(f"\nchanged in the process: {', '.join(changed) or 'nothing'}; threads left: "
          f"{threading.active_count() - threads}")  # fmt: skip


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*given, *(20_000, 200)[len(given) :])
