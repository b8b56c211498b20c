"""Memory of a study: 1,000 sentences, 10 cheap methods, one metric that runs the model, a journal.

Run it with ``python tests/benchmarks/study_memory.py [sentences] [folder]``; the model is the one that ships
with the package.  Prints how much memory the process used at most above what it used with the model loaded and
a study of one sentence done, and how that went on with the number of sentences.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from interp_plugin import huggingface
from interp_plugin.comparison import Method, Metric, Study
from interp_plugin.comparison.interface import Inputs, Trial
from interp_plugin.text.states import State

WORDS = "a the film movie plot story cast is was not never very quite good bad dull bold funny sad with without and but"


def norms(power: float) -> Method:
    """Of the word embeddings: no pass through the model."""

    def score(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        return inputs.embeddings[0].norm(dim=-1) ** power

    return Method(f"norm, power {power:g}", score)


def removed(trial: Trial) -> float:
    """How far the answer falls without the token that ranks first."""
    kept = torch.ones(2, trial.inputs.length, dtype=torch.bool)
    kept[1, trial.order()[0]] = False
    answers = trial.answer.of_kept(kept, "mask")
    return float(answers[0] - answers[1])


class Watch(threading.Thread):
    """Looks at the memory of the process again and again: a study itself resets the system's own peak."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = resident()
        self.start()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, resident())
            time.sleep(0.01)

    def __str__(self) -> str:
        return f"peak {self.peak - self.before} MiB above {self.before} MiB"


def resident() -> int:
    """MiB, on Linux."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 2**20


def main(count: int, folder: str) -> None:
    torch.set_num_threads(1)
    draws = random.Random(0)
    texts = [" ".join(draws.choices(WORDS.split(), k=draws.randint(5, 35))) for _ in range(count)]
    methods = [norms(power) for power in (-2, -1, -0.5, 0.5, 1, 1.5, 2, 3, 4)]
    methods.append(Method("random", lambda inputs, target, state: torch.rand(inputs.length)))
    study = Study(
        *huggingface.load(huggingface.default_model_path()),
        methods=methods,
        metrics=[Metric("first removed", removed, True, "-")],
    )
    study.run(texts[:1], show_progress=False).tables()
    watch = Watch()
    for some in (count // 4, count // 2, count):
        start = time.perf_counter()
        result = study.run(texts[:some], output=folder, show_progress=False)
        print(f"{some} sentences: {result}, {time.perf_counter() - start:.0f} s; {watch}", flush=True)
    start = time.perf_counter()
    study.run(texts, output=folder, show_progress=False)
    print(f"read again from its journal: {time.perf_counter() - start:.1f} s; {watch}", flush=True)
    start = time.perf_counter()
    result.tables()
    print(f"tables with intervals and tests: {time.perf_counter() - start:.1f} s; {watch}")
    result.save(Path(folder, "study.parquet"))
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1024:.0f} KiB" for path in Path(folder).iterdir())
    print(f"files: {sizes}; {watch}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as usual:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2] if len(sys.argv) > 2 else usual)
