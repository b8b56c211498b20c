"""What a corpus study costs and survives, on the default model.

  python tests/benchmarks/corpus.py --data TSV [--parts kill growth speed] [--layers 1 2] [--iterations 0]

TSV has a sentence in its first column and no header (SST-2's train.tsv does).

kill    500 sentences, killed with signal 9 twenty times at random moments and run again each time: every row once,
        equal to an undisturbed run's
growth  one run of 5,000 sentences: resident memory after 500 and at the end, processor seconds a sentence up to 500
        and up to 4,000; with --layers 1 2 3 4 also what speed says, of those layers
speed   1,000 sentences, all layers: sentences per second (and per processor second), passes per sentence
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from interp_plugin import CorpusResult, CorpusStudy, Solver, data, huggingface

PARTS = ("kill", "growth", "speed")
WINDOW = 25  # small, so that there is much to lose


def line(part: str, what: str, figure: str) -> None:
    print(f"{part:<7} {what:<60} {figure}", flush=True)


def study(layers: list[int] | None, iterations: int | None = None) -> CorpusStudy:
    solver = Solver(iterations=iterations)
    return CorpusStudy(
        *huggingface.load(huggingface.default_model_path()), layers=layers or "all", solver=solver
    )


def records(file: Path, count: int) -> Iterator[data.Record]:
    return islice(data.records(file, header=False), count)


def child(file: Path, folder: Path, count: int, layers: list[int] | None) -> None:
    study(layers).run(records(file, count), folder, window=WINDOW, show_progress=False, text_column=0)


def of_kills(file: Path, layers: list[int], count: int, kills: int) -> None:
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, calm = Path(name, "killed"), Path(name, "calm")
        folder.mkdir()
        command = [
            sys.executable,
            __file__,
            "--data",
            str(file),
            "--child",
            str(folder),
            "--count",
            str(count),
        ]
        command += ["--layers", *map(str, layers)]
        start, cpu = time.perf_counter(), time.process_time()
        child(file, calm, count, layers)
        whole = time.perf_counter() - start
        line(
            "kill", f"{count} sentences undisturbed", f"{whole:.0f} s, {time.process_time() - cpu:.0f} CPU s"
        )
        alive = 0
        for number in range(kills):
            there = len(list(folder.glob("part-*")))
            process = subprocess.Popen(command)
            # half of them wherever they are, half while a study is surely at work
            if number % 2:
                while len(list(folder.glob("part-*"))) <= there and process.poll() is None:
                    time.sleep(0.001)
            time.sleep(generator.uniform(0, 2 * whole * WINDOW / count if number % 2 else 10))
            process.send_signal(signal.SIGKILL)
            alive += process.wait() == -signal.SIGKILL
        left = [path for path in folder.iterdir() if path.name.startswith(".")]
        parts = len(list(folder.glob("part-*")))
        line(
            "kill", "killed while alive, parts then, drafts left", f"{alive} of {kills}, {parts}, {len(left)}"
        )
        child(file, folder, count, layers)
        first, second = (CorpusResult.load(path) for path in (calm, folder))
        rows = [item.text for item in second.explanation()]
        same = all(
            a.rows == b.rows and a.text == b.text for a, b in zip(first.explanation(), second.explanation())
        )
        line("kill", "rows, equal to the undisturbed run's in every bit", f"{len(rows)}, {same}")
        line("kill", "files in the folder", str(len(list(folder.iterdir()))))


def of_growth(file: Path, layers: list[int], count: int, iterations: int | None) -> None:
    marks: dict[int, tuple[float, float]] = {}

    def watched() -> Iterator[data.Record]:
        for number, record in enumerate(records(file, count)):
            if number % WINDOW == 1 or number == 0:
                marks[number] = time.process_time(), resident()
            yield record

    with tempfile.TemporaryDirectory() as name:
        began, cpu = time.perf_counter(), time.process_time()
        study(layers, iterations).run(watched(), name, window=WINDOW, show_progress=False, text_column=0)
        marks[count] = time.process_time(), resident()
        rates("growth", CorpusResult.load(name), count, time.perf_counter() - began, marks[count][0] - cpu)
        start = time.perf_counter()
        result = CorpusResult.load(name)
        result.layers()
        result.word_classes("frequency")
        result.knowledge()
        line(
            "growth",
            "loading, layers, word classes and knowledge points",
            f"{time.perf_counter() - start:.1f} s",
        )
    early, late = (min(marks, key=lambda mark: abs(mark - wanted)) for wanted in (500, min(4000, count)))
    for mark in (early, late):
        line(
            "growth",
            f"processor seconds a sentence up to {mark}",
            f"{(marks[mark][0] - marks[0][0]) / mark:.4f}",
        )
    memory = marks[early][1], marks[count][1]
    line("growth", f"MiB resident after {early} and after {count}", f"{memory[0]:.0f}, {memory[1]:.0f}")


def of_speed(file: Path, count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        start, cpu = time.perf_counter(), time.process_time()
        one = study(None)
        result = one.run(records(file, count), name, window=1024, text_column=0)
        rates("speed", result, count, time.perf_counter() - start, time.process_time() - cpu)
        size = sum(path.stat().st_size for path in Path(name).iterdir())
    line("speed", "bytes on disk per sentence", f"{size / count:.0f}")


def rates(part: str, result: CorpusResult, count: int, wall: float, cpu: float) -> None:
    passes = result.table().groupby("row")[["n_forward", "n_backward"]].sum().mean()
    line(part, f"{count} sentences, sentences per second", f"{count / wall:.2f}")
    line(part, "sentences per processor second", f"{count / cpu:.2f}")
    said = f"{passes['n_forward']:.0f} forward, {passes['n_backward']:.0f} backward"
    line(part, "passes per sentence", said)


def resident() -> float:
    """MiB of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--count", type=int)
    parser.add_argument("--iterations", type=int, help="of growth; 0 is the closed form, to be done sooner")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        child(given.data, given.child, given.count, given.layers)
        return
    if "kill" in given.parts:
        of_kills(given.data, given.layers, given.count or 500, given.kills)
    if "growth" in given.parts:
        of_growth(given.data, given.layers, given.count or 5000, given.iterations)
    if "speed" in given.parts:
        of_speed(given.data, given.count or 1000)


if __name__ == "__main__":
    main()
