"""The corpus on Ray, on a new and on an existing cluster; run if Ray is installed (extra ``ray``)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("ray")

from interp_plugin import CorpusResult, CorpusStudy, huggingface
from interp_plugin.cli import app
from interp_plugin.corpus.engines import Cluster, run_on_ray

WORDS = ("a", "good", "bad", "film", "not", "bold")
TEXTS = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(2 + i % 5)) for i in range(24)]
TEXTS[7] = ""
DEADLY = 16
TEXTS[DEADLY] = "bold bold bold"
WINDOW = 3


def make_study(folder: str) -> CorpusStudy:
    return CorpusStudy(*huggingface.load(folder), layers=[1, 2])


def deadly(folder: str, mark: Path) -> CorpusStudy:
    """A worker that reports its process, is slow, and dies at one of the texts."""
    (mark / str(os.getpid())).touch()
    time.sleep(1)
    study = make_study(folder)
    encode = study.model.encode

    def dying(text: str, *arguments: Any, **options: Any) -> Any:
        if text == TEXTS[DEADLY]:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(text, *arguments, **options)

    study.model.encode = dying  # type: ignore[method-assign]
    return study


def with_a_gpu(folder: str, mark: Path) -> CorpusStudy:
    """A worker that reports its GPU."""
    (mark / f"{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}").touch()
    time.sleep(2)  # otherwise one of them would do all the work
    return make_study(folder)


def without_model() -> CorpusStudy:
    raise ValueError("there is no model")


@pytest.fixture(scope="module")
def alone(folder: str, tmp_path_factory: pytest.TempPathFactory) -> CorpusResult:
    return make_study(folder).run(TEXTS, tmp_path_factory.mktemp("alone"), window=WINDOW, show_progress=False)


@pytest.fixture(scope="module", autouse=True)
def path_of_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise Ray writes a token into the home folder
        yield


def test_a_worker_that_is_killed_is_replaced_and_a_text_that_kills_each_is_recorded(
    folder: str, alone: CorpusResult, tmp_path: Path
) -> None:
    """On a new cluster, with one part from a run without Ray: each engine can continue the other's study."""
    mark, out = tmp_path / "workers", tmp_path / "out"
    mark.mkdir()
    out.mkdir()
    shutil.copy(alone.parts[0].path, out)
    killed: list[int] = []

    def kill() -> None:
        """Kill a worker as soon as there is one."""
        for _ in range(1200):
            time.sleep(0.05)
            workers = [int(each.name) for each in mark.iterdir() if int(each.name) != os.getpid()]
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_on_ray(
        partial(deadly, folder, mark), TEXTS, out, window=WINDOW, show_progress=False,
        study=make_study(folder),
    )  # fmt: skip
    killer.join()
    assert killed
    assert [failure.row for failure in result.failures()] == [7, DEADLY]
    assert "2 workers died while they scored it" in result.failures()[1].reason
    ours, theirs = (each.table().set_index(["row", "layer"]) for each in (result, alone))
    theirs = theirs.drop([DEADLY])
    rest = [row not in range(15, 18) for row, _ in theirs.index]  # except the texts that were scored alone
    assert ours[rest].equals(theirs[rest])
    assert (ours["kept"] / theirs["kept"] - 1).abs().max() < 1e-4


def test_a_worker_on_a_gpu_must_be_given_one(folder: str, tmp_path: Path) -> None:
    arguments = ["corpus", __file__, "--output", str(tmp_path), "--model", folder, "--engine", "ray"]
    refused = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
    assert refused.exit_code == 2
    assert "worker can use only the GPUs that it is given; give --gpus 1" in refused.stderr


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an existing cluster, declared with four CPUs and two GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=4", "--num-gpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    # not Ray's default folder, in which the next ray.init() would find it; names of sockets must be short
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    command.append(f"--temp-dir={place}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ray runtime started" in line:
                break
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would block it
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)
        shutil.rmtree(place, ignore_errors=True)


def test_each_worker_of_an_existing_cluster_has_its_own_gpu(
    folder: str, alone: CorpusResult, tmp_path: Path, address: str
) -> None:
    mark = tmp_path / "workers"
    mark.mkdir()
    result = run_on_ray(
        partial(with_a_gpu, folder, mark), TEXTS, tmp_path / "out", window=WINDOW,
        show_progress=False, cluster=Cluster(address, workers=2, gpus=1), study=make_study(folder),
    )  # fmt: skip
    assert result.table().equals(alone.table())
    assert sorted(each.name.split("-")[1] for each in mark.iterdir()) == ["0", "1"]


def test_a_cluster_without_room_is_an_error(folder: str, tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match=r"4 CPUs and 2 GPUs on 1 machines, and 3 workers"):
        run_on_ray(
            partial(make_study, folder), TEXTS, tmp_path / "out", show_progress=False,
            cluster=Cluster(address, workers=3, gpus=1),
        )  # fmt: skip


def test_the_error_of_a_worker_is_raised_with_its_message(folder: str, tmp_path: Path, address: str) -> None:
    with pytest.raises(RuntimeError, match="a worker of Ray failed: ValueError: there is no model"):
        run_on_ray(
            without_model, TEXTS, tmp_path, show_progress=False,
            cluster=Cluster(address), study=make_study(folder),
        )  # fmt: skip


def test_the_command_joins_a_cluster(folder: str, alone: CorpusResult, tmp_path: Path, address: str) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    arguments = ["corpus", texts.name, "--output", "out", "--model", folder, "--layers", "1,2"]
    arguments += ["--window", str(WINDOW), "--engine", "ray", "--address", address, "--gpus", "0.5", "--json"]
    program = [sys.executable, "-c", "from interp_plugin.cli import app; app()"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["texts"] == alone.texts
    assert CorpusResult.load(tmp_path / "out").table().equals(alone.table())
