"""Run by test_study.py: a study in a process that is killed repeatedly until it has finished."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_plain import lstm
from torch import Tensor

from interp_plugin.comparison import Method, Metric, Study
from interp_plugin.comparison.interface import Inputs, Trial
from interp_plugin.comparison.result import StudyResult

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "it", "was", "good", "bad", "film")
TEXTS = [" ".join(WORDS[i % 5 : i % 7 + 6]) + f" {WORDS[i]}" for i in range(12)]
PAUSE = 0.004


def methods(calls: Path | None) -> list[Method]:
    """Slow methods that record their calls."""

    def noting(name: str) -> Method:
        def score(inputs: Inputs, target: int | None, state: object) -> Tensor:
            if calls is not None:
                time.sleep(PAUSE)
                with calls.open("a") as file:
                    file.write(f"{name}\t{target}\t{inputs.encoding.text}\n")
            return torch.randn(inputs.length) if name == "random" else inputs.embeddings[0].norm(dim=-1)

        return Method(name, score)

    return [noting("random"), noting("norm")]


METRICS = (
    Metric("first", lambda trial: float(trial.scores[0]), True, "-"),
    Metric("at the top", lambda trial: drop(trial) if len(trial.scores) > 6 else None, True, "-"),
)


def drop(trial: Trial) -> float:
    kept = torch.ones(2, trial.inputs.length, dtype=torch.bool)
    kept[1, trial.order()[0]] = False
    before, after = trial.answer.of_kept(kept, "mask").tolist()
    return before - after


def run(output: Path | None, calls: Path | None = None) -> StudyResult:
    study = Study(lstm(mask_id=0), methods=methods(calls), metrics=METRICS, layers="lstm")
    return study.run(TEXTS, output=output, show_progress=False)


def main(output: Path, calls: Path) -> None:
    """Kill it at random moments, each a bit later; print the number of kills when it has finished."""
    torch.set_num_threads(1)
    run(None)  # modules imported before a fork need not be imported in each child
    moments = random.Random(0)
    for killed in range(1000):
        child = os.fork()
        if child == 0:
            run(output, calls)
            os._exit(0)
        enough = size(output) + moments.randint(1, 3000)
        while size(output) < enough:
            if os.waitpid(child, os.WNOHANG)[0]:
                print(killed)
                return
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 3 * PAUSE))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def size(output: Path) -> int:
    """Bytes in the journal."""
    journal = output / "journal.jsonl"
    return journal.stat().st_size if journal.exists() else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
