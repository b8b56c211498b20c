"""What damage, kills, races and hostile inputs do: saved files, a corpus study, memory.

  python tests/benchmarks/damage.py [--parts flips kills races memory] [--flips 500] [--kills 20]

flips   random single bits of an explanation, a calibration, a head, a comparison study and a part of a corpus study are
        changed: how many of the files load
kills   a corpus study, killed with signal 9 at random moments after its start-up and run again each time: every row
        once, equal to an undisturbed run's, and whether a reader of the whole folder sees a row twice
races   two processes begin a study in one folder at once, with the same or with other settings
memory  seconds and peak memory, above what the imports take, of a line of 50 MB, of 1,000 rows of a Parquet file with a
        column of 1 MB, and of a Parquet file of some kilobytes that stands for hundreds of megabytes

The models are those of the tests, made on the spot; the memory of a long line is that of the default model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_amortised as amortised
import tiny_corpus as tiny

from interp_plugin import AmortisedEstimator, Calibration, CorpusResult, Explanation, data, huggingface
from interp_plugin.comparison import StudyResult
from interp_plugin.comparison.result import example as study_example
from interp_plugin.corpus.reading import Reader, windows
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import example

PARTS = ("flips", "kills", "races", "memory")
TEXTS, WINDOW = 400, 8  # of the study that is killed


def line(part: str, what: str, figure: str) -> None:
    print(f"{part:<7} {what:<66} {figure}", flush=True)


# -- flips


def of_flips(folder: Path, count: int) -> None:
    learned = amortised.of_gains().run(amortised.sentences(40), folder / "learned", show_progress=False)
    head = AmortisedEstimator.train(
        amortised.gains(), None, learned, amortised.UNIT, held_out=0.3, epochs=1, show_progress=False
    )
    saved: dict[str, tuple[Any, Callable[[Path], Any]]] = {
        "explanation": (example(), Explanation.load),
        "calibration": (
            Calibration("m", 2, {"1": torch.rand(300), "2": torch.rand(9)}, 0.5, "x"),
            Calibration.load,
        ),
        "head": (head, lambda path: AmortisedEstimator.load(path, amortised.gains())),
        "comparison study": (study_example(), StudyResult.load),
    }
    for name, (thing, load) in saved.items():
        path = folder / "saved"
        thing.save(path)
        flip(name, path, lambda path=path, load=load: load(path), count)
    texts = [*tiny.texts(10), ""]
    part = tiny.run(folder / "study", texts, window=16).parts[0]
    for path in (part.path, part.path.with_name(str(part.about.errors))):
        flip(
            f"{path.name[:6].rstrip('-')} of a corpus study",
            path,
            lambda: CorpusResult.load(folder / "study"),
            count,
        )


def flip(name: str, path: Path, load: Callable[[], Any], count: int) -> None:
    load()
    content, generator = path.read_bytes(), random.Random(0)
    silent, others = 0, 0
    for _ in range(count):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            load()
            silent += 1
        except ValueError as error:
            others += path.name not in str(error) and "damaged" not in str(error)
    path.write_bytes(content)
    line(
        "flips",
        f"{name} ({len(content)} bytes), {count} bits",
        f"{silent} load, {others} do not name the file",
    )


# -- kills and races


def spoken(given: list[str]) -> Iterator[str]:
    """The texts; says when the first is asked for, and waits for the word to go on."""
    print("ready", flush=True)
    sys.stdin.readline()
    for text in given:
        time.sleep(0.002)
        yield text


def child(folder: Path, rate: float) -> None:
    torch.set_num_threads(1)
    study = tiny.study(rate=rate)
    with contextlib.suppress(BrokenPipeError):
        study.run(spoken(tiny.texts(TEXTS)), folder, window=WINDOW, show_progress=False)


def started(folder: Path, rate: float = 0.1) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", str(folder), "--rate", str(rate)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()


def ready(process: subprocess.Popen[str]) -> bool:
    """Whether its start-up is over; false: it came to an end before."""
    assert process.stdout is not None
    return process.stdout.readline() == "ready\n"


def of_kills(folder: Path, kills: int) -> None:
    calm = started(folder / "calm")
    ready(calm)
    start = time.perf_counter()
    go(calm)
    calm.communicate()
    seconds = time.perf_counter() - start
    generator, landed, moments = random.Random(0), 0, []
    while landed < kills:
        process = started(folder / "killed")
        ready(process)
        go(process)
        moments.append(generator.uniform(0, 1.5 * seconds / kills))
        time.sleep(moments[-1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        landed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    done = len(list((folder / "killed").glob("part-*")))
    last = started(folder / "killed")
    ready(last)
    go(last)
    last.communicate()
    found, undisturbed = (tiny.rows(CorpusResult.load(folder / name)) for name in ("killed", "calm"))
    seen = pd.read_parquet(folder / "killed")
    line(
        "kills",
        f"signal 9 after start-up, {min(moments):.2f} to {max(moments):.2f} s into the work",
        str(landed),
    )
    line("kills", f"of {TEXTS // WINDOW} parts there after the last", str(done))
    line("kills", "equal to the undisturbed run in every row and bit", str(found.equals(undisturbed)))
    line(
        "kills",
        "rows that a reader of the whole folder sees twice",
        str(int(seen.duplicated(["row", "layer"]).sum())),
    )


def of_races(folder: Path, count: int = 6) -> None:
    for number in range(count):
        rates = (0.1, 0.1 if number % 2 else 0.2)
        place = folder / str(number)
        both = [started(place, rate) for rate in rates]
        for process in both:
            go(process)
        answers = [process.communicate() for process in both]
        codes = sorted(process.returncode for process in both)
        refusals = [err.strip().splitlines()[-1] for (_, err), p in zip(answers, both) if p.returncode]
        found, seen = CorpusResult.load(place), pd.read_parquet(place)
        line(
            "races",
            f"{'the same' if rates[0] == rates[1] else 'other'} settings: exit codes, texts, rows seen twice",
            f"{codes}, {found.texts}, {int(seen.duplicated(['row', 'layer']).sum())}"
            + "".join(
                f"; {'names the other process' if 'process ' in one else one[:60]}" for one in refusals
            ),
        )


# -- memory


def peak() -> int:
    """MiB of this process so far; what getrusage says begins at what the parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def measured(case: str, path: Path) -> None:
    """Run in a process of its own: what it costs above the imports."""
    if case == "line":
        explainer = TextExplainer(*huggingface.load(huggingface.default_model_path()))
        text = path.read_text()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is in use now
    before, start, says = peak(), time.perf_counter(), ""
    try:
        if case == "line":
            explainer.encode(text)
        elif case == "lines":
            failures = [
                each for window in windows(data.records(path), 1024, Reader()) for each in window.failures
            ]
            says = f"{len(failures)} failed: {failures[0].reason[:60]}"
        elif case == "wide":
            texts = sum(len(window.items) for window in windows(data.records(path), 1024, Reader()))
            says = f"{texts} texts"
        else:
            Explanation.load(path)
            says = "loaded"
    except ValueError as error:
        says = str(error).replace(str(path), path.name)[:70]
    print(f"{time.perf_counter() - start:.2f} s, {peak() - before} MiB: {says}")


def of_memory(folder: Path) -> None:
    def measure(what: str, case: str, path: Path) -> None:
        command = [sys.executable, __file__, "--measure", case, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line("memory", what, done.stdout.strip())

    path = folder / "line.txt"
    path.write_text("film " * 10_000_000)
    measure("a text of 50 MB, default model", "line", path)
    measure("a file with that line", "lines", path)
    path = folder / "wide.parquet"
    schema = pa.schema({"text": pa.string(), "wide": pa.binary()})
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(10):
            rows = [{"text": "the film was good", "wide": os.urandom(1_000_000)} for _ in range(100)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    measure(f"1,000 rows of {path.stat().st_size >> 20} MiB, texts alone asked for", "wide", path)
    path.unlink()
    path = folder / "swollen.parquet"
    example().save(path)
    from test_damaged_files import rewritten, with_column

    rewritten(path, with_column("text", ["a" * 100_000_000] * 4))
    measure(f"an explanation of {path.stat().st_size} bytes that stands for 400 MB", "swollen", path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.rate)
    elif args.measure is not None:
        measured(args.measure[0], Path(args.measure[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            for part in args.parts:
                place = Path(name, part)
                place.mkdir()
                if part == "flips":
                    of_flips(place, args.flips)
                elif part == "kills":
                    of_kills(place, args.kills)
                elif part == "races":
                    of_races(place)
                else:
                    of_memory(place)
