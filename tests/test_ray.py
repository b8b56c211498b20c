"""The corpus on a local Ray cluster of two workers: run where Ray is installed (the extra ``ray``)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from tiny_bert import save_classifier

pytest.importorskip("ray")

from interp_plugin import CorpusResult, CorpusStudy, huggingface
from interp_plugin.corpus.ray_engine import run_on_ray

WORDS = ("a", "good", "bad", "film", "not", "bold")
TEXTS = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(2 + i % 5)) for i in range(24)]
TEXTS[7] = ""


def make_study(folder: str) -> CorpusStudy:
    return CorpusStudy(*huggingface.load(folder), layers=[1, 2])


def slowed(folder: str, mark: Path) -> CorpusStudy:
    """A worker that says who it is and then takes its time."""
    (mark / str(os.getpid())).touch()
    time.sleep(1)
    return make_study(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def alone(folder: str, tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    return make_study(folder).run(TEXTS, tmp_path_factory.mktemp("alone"), window=3, show_progress=False)


@pytest.fixture(autouse=True)
def path_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))


def test_the_rows_are_those_of_one_process(folder: str, alone: CorpusResult, tmp_path: Path) -> None:
    result = run_on_ray(
        partial(make_study, folder), partial(list, TEXTS), tmp_path / "out", window=3, show_progress=False
    )
    assert result.table().equals(alone.table())
    assert [failure.row for failure in result.failures()] == [7]


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    folder: str, alone: CorpusResult, tmp_path: Path
) -> None:
    mark = tmp_path / "workers"
    mark.mkdir()
    killed: list[int] = []

    def kill() -> None:
        """As soon as there is a part and a worker, that is no process of ours."""
        for _ in range(600):
            time.sleep(0.1)
            workers = [int(each.name) for each in mark.iterdir() if int(each.name) != os.getpid()]
            if workers and list(tmp_path.glob("out/part-*")):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_on_ray(
        partial(slowed, folder, mark), partial(list, TEXTS), tmp_path / "out", window=1, show_progress=False
    )
    killer.join()
    assert killed
    assert result.texts == alone.texts
    assert len(list(mark.iterdir())) >= 3, "another worker came"
    ours, theirs = (each.table().set_index(["row", "layer"])["kept"] for each in (result, alone))
    assert (ours / theirs - 1).abs().max() < 1e-4  # windows are others, and so are batches


def test_a_cluster_without_room_is_said_to_be(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GPUs; give it more, or ask for fewer workers"):
        run_on_ray(
            partial(make_study, folder), partial(list, TEXTS), tmp_path / "out", gpus=1, show_progress=False
        )


def test_the_command(folder: str, alone: CorpusResult, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    arguments = [
        "corpus",
        str(texts),
        "--output",
        str(tmp_path / "out"),
        "--model",
        folder,
        "--layers",
        "1,2",
    ]
    program = [sys.executable, "-c", "from interp_plugin.cli import app; app()"]
    done = subprocess.run(
        [*program, *arguments, "--window", "3", "--engine", "ray", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert CorpusResult.load(tmp_path / "out").table().equals(alone.table())
