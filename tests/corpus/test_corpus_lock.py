"""Locks: one study at a time writes to a folder, which must be on a file system of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import tiny_corpus
from tiny_corpus import TEXTS, WINDOW, files, rows, run, study, texts

from interp_plugin import CorpusResult, CorpusStudy
from interp_plugin.corpus.parts import FOLDER_LOCK, locked
from interp_plugin.corpus.result import Folder

SCRIPT = Path(tiny_corpus.__file__)


def test_a_folder_in_use_is_refused_with_its_user_and_free_after_a_kill(tmp_path: Path) -> None:
    path = os.pathsep.join([str(SCRIPT.parents[2]), str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    other = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    while not list(tmp_path.glob("part-*")):
        time.sleep(0.01)
        assert other.poll() is None
    other.send_signal(signal.SIGSTOP)  # at any point
    here = rf"process {other.pid} on {re.escape(socket.gethostname())} \(since .*\) is running a study in"
    for rate in (0.1, 0.2):
        with pytest.raises(ValueError, match=here):
            study(rate=rate).run(texts(), tmp_path, window=WINDOW, show_progress=False)
    assert CorpusResult.load(tmp_path, partial=True).settings["rate"] == 0.1, "reading needs no lock"
    other.kill()
    other.wait()
    assert run(tmp_path).texts == TEXTS
    assert {name[:5] for name in files(tmp_path)} == {"part-"}


def test_of_studies_started_together_one_runs_and_completes(tmp_path: Path) -> None:
    rates = (0.1, 0.1, 0.2, 0.3)
    studies, start = [study(rate=rate) for rate in rates], threading.Barrier(len(rates))
    refused: list[str] = []

    def waiting() -> Iterator[str]:
        """Yield the last text after the others were refused; the first window is read before the folder is created."""
        for number, text in enumerate(texts()):
            while number == TEXTS - 1 and len(refused) < len(rates) - 1:
                time.sleep(0.01)
            yield text

    def one(mine: CorpusStudy) -> None:
        start.wait()
        try:
            mine.run(waiting(), tmp_path, window=WINDOW, show_progress=False)
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=one, args=(mine,), daemon=True) for mine in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == len(rates) - 1
    assert all("is running a study in" in reason for reason in refused)
    found = pd.read_parquet(tmp_path)  # ignores the lock, whose name begins with a dot
    assert (
        len(found.drop_duplicates(["row", "layer"]))
        == len(found)
        == rows(CorpusResult.load(tmp_path)).num_rows
    )


def test_only_processes_that_share_a_corpus_share_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path, {"rate": 0.1}, 0, 2), locked(tmp_path, {"rate": 0.1}, 1, 2):
        for settings, rank, size in (
            ({"rate": 0.1}, 0, 2),  # the same again
            ({"rate": 0.1}, 1, 2),
            ({"rate": 0.2}, 0, 2),
            ({"rate": 0.2}, 1, 2),
            ({"rate": 0.1}, 2, 3),
            ({"rate": 0.1}, 0, 1),
        ):
            with (
                pytest.raises(ValueError, match=rf"process {os.getpid()} on"),
                locked(tmp_path, settings, rank, size),
            ):
                pass
    with (
        locked(tmp_path, {"rate": 0.2}),
        pytest.raises(ValueError, match=rf"process {os.getpid()} on"),
        locked(tmp_path, {"rate": 0.1}, 1, 2),
    ):
        pass
    assert os.listdir(tmp_path) == [FOLDER_LOCK]


@pytest.mark.parametrize("mode", [0o700, 0o775])
def test_everyone_who_may_write_to_the_folder_may_lock_it(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with locked(tmp_path, {}):
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode & 0o666}


def test_the_lock_file_of_a_killed_process_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".study-0123abcd-0.lock").write_text('{"pid": 1}', encoding="utf-8")
    with locked(tmp_path, {}):
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == [FOLDER_LOCK]


def test_parts_written_by_another_study_in_the_meantime_are_found(tmp_path: Path) -> None:
    before = Folder(tmp_path)
    run(tmp_path)
    assert before.windows() == []
    with Folder.held(tmp_path, {}) as folder:
        assert folder.windows() == list(range(TEXTS // WINDOW))


@pytest.mark.parametrize("name", ["run:1", "file:x"])
def test_a_folder_with_a_colon_in_its_name_holds_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    some = [*texts(5), ""]
    found = study().run(some, name, window=WINDOW, show_progress=False)
    assert [failure.row for failure in found.failures()] == [5]
    assert len(found.layers()) > 0
    assert study().run(some, name, window=WINDOW, show_progress=False).table().equals(found.table())
    assert len(CorpusResult.load(name).explanation()) == 5


@pytest.mark.parametrize("uri", ["s3://bucket/x", "file:///x", Path("s3://bucket/x")])
def test_a_uri_is_refused_before_any_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a URI, and results go to a file system of this machine"):
        study().run(iter(lambda: pytest.fail("a text was read"), None), uri, show_progress=False)
    assert os.listdir(tmp_path) == []
