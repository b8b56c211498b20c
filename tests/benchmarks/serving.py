"""Threads that serve beside threads that explain: every prediction and every explanation, bit for bit.

Run it with ``python tests/benchmarks/serving.py [predictions] [explanations]``, by default 20,000 and 200, shared by
two threads that serve and four that explain, half of them on the model that ships with the package and half on one
of ``torch.nn.TransformerEncoder``.  Prints a table of how many differ from the same done in one thread alone, and
whether the process is as it was.  It takes some minutes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
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
        self.embedding = nn.Embedding(50, 64)  # of 32 dimensions the fast path rounds as the other does
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(64, 3)

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
class Work:
    """Calls that several threads share: what each gives alone, and how it went among the others."""

    name: str
    calls: Sequence[Callable[[], Any]]
    least: int
    threads: int

    def __post_init__(self) -> None:
        self.alone = [call() for call in self.calls]
        self.begun = self.wrong = self.raised = 0
        self.seconds = 0.0
        self.lock = threading.Lock()

    def once(self) -> None:
        """One more call, compared with what it gives alone."""
        with self.lock:
            which = self.begun % len(self.calls)
            self.begun += 1
        start, found = time.perf_counter(), None
        with contextlib.suppress(Exception):  # whatever goes wrong is what is counted here
            found = self.calls[which]()
        with self.lock:
            self.seconds += time.perf_counter() - start
            self.raised += found is None
            self.wrong += found is not None and not all(map(torch.equal, found, self.alone[which]))

    def __str__(self) -> str:
        ms = 1e3 * self.seconds / self.begun
        return f"| {self.name} | {self.threads} | {self.begun} | {self.wrong} | {self.raised} | {ms:.1f} |"


def side_by_side(works: Sequence[Work]) -> None:
    """Until every kind of work has had its calls."""

    def go_on(work: Work) -> None:
        while any(each.begun < each.least for each in works):
            work.once()

    with ThreadPoolExecutor(sum(work.threads for work in works)) as pool:
        threads = [pool.submit(go_on, work) for work in works for _ in range(work.threads)]
    for thread in threads:
        thread.result()


def main(predictions: int, explanations: int) -> bool:
    """Print the table; whether nothing differed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    services = [of_texts(), of_an_encoder()]
    predict = [call for service in services for call in service.predictions]
    explain = [call for service in services for call in service.explanations]
    quiet = Work("predictions, nobody explains", predict, 20 * len(predict), SERVING)
    works = [
        Work("predictions", predict, predictions, SERVING),
        Work("explanations", explain, explanations, EXPLAINING),
    ]
    before, threads = process(), threading.active_count()
    side_by_side([quiet])
    side_by_side(works)
    print("| | threads | calls | differ | raised | ms a call |", "|---|---|---|---|---|---|", sep="\n")
    print(quiet, *works, sep="\n")
    after = process()
    changed = [name for name, value in before.items() if after[name] != value]
    left = threading.active_count() - threads
    print(f"\nchanged in the process: {', '.join(changed) or 'nothing'}; threads left: {left}")
    return not (changed or left or any(work.wrong + work.raised for work in [quiet, *works]))


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(not main(*given, *(20_000, 200)[len(given) :]))
