"""The comparison studies of the README on 200 dev sentences of SST-2, and their tables.

    python tests/benchmarks/study_tables.py --data SST2 --teacher TEACHER --output FOLDER [study ...]

``SST2`` has train.tsv and dev.tsv, ``TEACHER`` is the fine-tuned MiniLM of ``tutorials/train_default_model.py``.
A study is a call of ``interp-plugin compare`` with a folder of its own under ``FOLDER``: one that was stopped goes
on, one that is done is only printed.  Alone on a core they take 15 to 60 minutes each; run them side by side.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd

from interp_plugin.comparison import StudyResult

CALIBRATED = 100  # training sentences whose states' spread is the unit
SECONDS, PASSES = "seconds", ("forward passes", "backward passes")
# every way to remove a word, so that each method is also judged by one that it does not look at itself
CLASS_METRICS = (
    "comprehensiveness (mask)",
    "comprehensiveness (delete)",
    "comprehensiveness (attention)",
    "sufficiency (mask)",
)
STATE_METRICS = ("state erasure (mask)", "state erasure (delete)", "state erasure (attention)")
PEERS = ("GIM", "AttnLRP", "DecompX")
# which tokens carry an answer: ours, and the rivals that the erasure channel is to be measured by
CARRIERS = (
    "erased",
    "erased (and hidden)",
    "erased (keep)",
    "noise path",
    "integrated gradients ([MASK], signed)",
    "integrated gradients (zero, signed)",
    "Shapley*",
    "KernelSHAP",
    *PEERS,
)
STATE_METHODS = (
    "information kept",
    "information kept (rate 1)",
    "gradient norm*",
    "integrated gradients ([MASK], absolute)",
    "SmoothGrad squared*",
    "attention rollout",
    "random",
)


@dataclass(frozen=True)
class StudyCall:
    """A call of ``interp-plugin compare``: the model, the layers (none: the class), the metrics and methods."""

    teacher: bool
    layers: str
    metrics: tuple[str, ...]
    methods: tuple[str, ...]

    def command(self, data: Path, teacher: Path, texts: int, output: Path) -> list[str]:
        words = [
            "interp-plugin",
            "compare",
            str(data / "dev.tsv"),
            "--text-column",
            "0",
            "--label-column",
            "1",
        ]
        words += ["--sample", str(texts), "--seed", "1", "--output", str(output)]
        words += ["--metrics", ",".join(self.metrics)]
        words += ["--methods", ",".join(self.methods)] if self.methods else ["--full"]
        if self.teacher:
            words += ["--model", str(teacher)]
        if self.layers:
            words += [
                "--no-class",
                "--layers",
                self.layers,
                "--calibrate",
                str(calibration(data, output.parent)),
            ]
        return words


STUDIES = {
    "default-class": StudyCall(False, "", (*CLASS_METRICS, "log-odds"), ()),
    "default-states": StudyCall(
        False,
        "all",
        STATE_METRICS,
        (
            *STATE_METHODS[:2],
            "information kept (closed form)",
            *STATE_METHODS[2:4],
            "integrated gradients (zero, absolute)",
            STATE_METHODS[4],
            "feature ablation",
            "Shapley*",
            STATE_METHODS[5],
            "value zeroing",
            *PEERS,
            STATE_METHODS[6],
        ),
    ),
    "minilm-class": StudyCall(
        True,
        "",
        CLASS_METRICS,
        (
            "information kept (log-probability)",
            "information kept",
            "noise path",
            "gradient norm*",
            "integrated gradients ([MASK]*",
            "integrated gradients (zero, signed)",
            "integrated gradients (zero, absolute)",
            "saliency*",
            "SmoothGrad (L2)",
            "input x gradient*",
            "attention rollout",
            "Shapley*",
            "KernelSHAP",
            *PEERS,
            "Noiser",
            "random",
        ),
    ),
    "default-carried-class": StudyCall(False, "", CLASS_METRICS, CARRIERS),
    "default-carried-states": StudyCall(False, "all", (*STATE_METRICS, "state sufficiency (mask)"), CARRIERS),
    "minilm-carried-class": StudyCall(True, "", CLASS_METRICS, CARRIERS),
    "minilm-carried-states": StudyCall(True, "all", (*STATE_METRICS, "state sufficiency (mask)"), CARRIERS),
    "minilm-states-low": StudyCall(True, "1-3", STATE_METRICS, (*STATE_METHODS, *PEERS)),
    "minilm-states-high": StudyCall(True, "4-6", STATE_METRICS, (*STATE_METHODS, *PEERS)),
}


def calibration(data: Path, folder: Path) -> Path:
    """A file of the first training sentences, a line each."""
    path = folder / f"train{CALIBRATED}.txt"
    if not path.exists():
        lines = (data / "train.tsv").read_text(encoding="utf-8").splitlines()[:CALIBRATED]
        path.write_text("".join(line.rsplit("\t", 1)[0] + "\n" for line in lines), encoding="utf-8")
    return path


def report(name: str, result: StudyResult) -> str:
    """A table for each metric: methods x questions, the best of a group bold, ≈ what is not below it (Holm, 0.05)."""
    table = result.table()
    metrics = [metric for metric in result.names["metric"] if metric not in (SECONDS, *PASSES, "peak MiB")]
    lines = [f"## {name}: {len(result.texts)} sentences"]
    for metric in metrics:
        found = table[table.metric == metric].copy()
        found["cell"] = [cell(row) for row in found.itertuples()]
        wide = found.pivot(index=["group", "method"], columns="question", values="cell")
        lines += ["", f"### {metric}", "", *grid(wide)]
    costs = table[table.metric.isin([SECONDS, *PASSES])]
    wide = costs.pivot_table(index=["group", "method"], columns=["question", "metric"], values="mean")
    lines += ["", "### costs", "", *grid(wide.map(lambda value: f"{value:.3g}"))]
    for reference in [name for name in result.names["method"] if name.startswith("erased")]:
        lines += ["", *verdicts(result, reference)]
    for metric in metrics:
        for question in result.names["question"]:
            on = [point.method for point in result.front(metric, question) if point.on_front]
            lines += ["", f"Front of {metric} against seconds, {question}: {', '.join(on)}."]
    return "\n".join(lines)


def verdicts(result: StudyResult, reference: str) -> list[str]:
    """How often a method is above, level with or below each other one, over metrics and questions (Holm, 0.05)."""
    found = result.comparisons(reference)
    found = found[~found.metric.isin([SECONDS, *PASSES, "peak MiB"])]
    lines = [f"| {reference} against | won | level | lost | lost at |", "|---|---|---|---|---|"]
    for method, rows in found.groupby("method", sort=False):
        certain = rows.holm < 0.05
        lost = rows[certain & ~rows.better]
        where = ", ".join(f"{metric} {question}" for metric, question in zip(lost.metric, lost.question))
        counts = (int((certain & rows.better).sum()), int((~certain).sum()), len(lost))
        lines.append(f"| {method} | {' | '.join(map(str, counts))} | {where} |")
    return lines


def cell(row: object) -> str:
    mean, low, high, best, p = (getattr(row, field) for field in ("mean", "low", "high", "best", "p"))
    number = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    return f"**{number}**" if best else f"{number} ≈" if p >= 0.05 else number


def grid(wide: pd.DataFrame) -> list[str]:
    names = [" ".join(name) if isinstance(name, tuple) else name for name in wide.columns]
    lines = ["| | method | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    for (group, method), row in wide.iterrows():
        lines.append(f"| {group} | {method} | " + " | ".join(str(value) for value in row) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; none: all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.studies or STUDIES:
        folder = arguments.output / name
        command = STUDIES[name].command(arguments.data, arguments.teacher, arguments.texts, folder)
        subprocess.run(command, check=True, stdout=sys.stderr)
        print(report(name, StudyResult.load(folder / "result.parquet")), flush=True)


if __name__ == "__main__":
    main()
