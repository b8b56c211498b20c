"""The workers of the Ray engine and their jobs, called as plain objects without Ray."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import TEXTS, WINDOW, study, texts

from interp_plugin import CorpusResult
from interp_plugin.corpus.engines import DEATHS, TRIES, Job, Worker, _check_reachable, _share
from interp_plugin.corpus.reading import Reader, Window, windows
from interp_plugin.corpus.study import Scorer, begun


class Died(BaseException):
    """The death of a process; not an Exception, so that it is not recorded as a failure of the text."""


def run(folder: Path, make_study: Any = study) -> CorpusResult:
    """Score the whole corpus with workers that are replaced when they die."""
    with begun(texts(), Reader(), Scorer(study(), WINDOW), folder, None, False) as run:
        worker = Worker(make_study, WINDOW)
        for job in map(Job, run.todo()):
            made = None
            while made is None:
                try:
                    made = step(job, worker)
                except Died:
                    job.died()
                    worker = Worker(make_study, WINDOW)
            run.take(made)
    return CorpusResult.load(folder)


def step(job: Job, worker: Worker) -> Any:
    name, arguments = job.call
    return job.done(getattr(worker, name)(*arguments))


def some_window(number: int) -> Window:
    return list(windows(texts(), WINDOW, Reader()))[number]


def deadly(*rows: int, times: float = float("inf")) -> Any:
    """A function that makes a study which dies at the texts of these rows."""
    words = {texts()[row] for row in rows}
    deaths = 0

    def make() -> Any:
        made = study()
        encode = made.model.encode

        def dying(text: str, *arguments: Any, **options: Any) -> Any:
            nonlocal deaths
            if text in words and deaths < times:
                deaths += 1
                raise Died
            return encode(text, *arguments, **options)

        made.model.encode = dying
        return made

    return make


def test_workers_make_the_same_parts_as_a_run_in_this_process(tmp_path: Path) -> None:
    here = study().run(texts(), tmp_path / "here", window=WINDOW, show_progress=False)
    there = run(tmp_path / "there")
    assert there.table().equals(here.table())
    for ours, theirs in zip(there.parts, here.parts):
        assert ours.about.digest == theirs.about.digest
        assert ours.about.ids == theirs.about.ids


def test_a_text_that_kills_every_worker_is_recorded_and_the_rest_is_done(tmp_path: Path) -> None:
    here = study().run(texts(), tmp_path / "here", window=WINDOW, show_progress=False)
    result = run(tmp_path / "there", deadly(9, 11, 18))
    assert [failure.row for failure in result.failures()] == [9, 11, 18]
    assert "2 workers died while they scored it" in result.failures()[0].reason
    assert result.failures()[0].beginning == texts()[9]
    ours, theirs = (each.table().set_index(["row", "layer"])["kept"] for each in (result, here))
    theirs = theirs.drop([9, 11, 18])
    assert (ours / theirs - 1).abs().max() < 1e-4
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("times", [1, DEATHS, DEATHS + 1])
def test_a_worker_that_dies_for_another_reason_loses_no_text(tmp_path: Path, times: int) -> None:
    result = run(tmp_path, deadly(9, times=times))
    assert not result.failures()
    assert result.texts == TEXTS


def test_workers_that_die_before_any_text_end_the_run() -> None:
    job = Job(some_window(2))
    with pytest.raises(RuntimeError, match=rf"{TRIES} workers died at rows 8 to 11, and no single text"):
        for _ in range(TRIES):
            job.died()


def test_workers_that_die_at_a_window_but_at_no_single_text_end_the_run() -> None:
    job = Job(some_window(0))
    for _ in range(DEATHS):
        job.died()
    worker = Worker(study, WINDOW)
    for _ in range(WINDOW):
        assert step(job, worker) is None
    assert [scored.item.row for scored in job.scored] == [0, 1, 2, 3]
    job.died()
    with pytest.raises(RuntimeError, match=rf"{2 * DEATHS} workers died at rows 0 to 3, and no single text"):
        job.died()


def test_parts_of_other_models_are_refused(tmp_path: Path) -> None:
    made = Worker(study, WINDOW).part(some_window(0), [], [])
    refusal = pytest.raises(ValueError, match=r"a worker has other settings: rate is 0\.2 now and 0\.1 there")
    with (
        refusal,
        begun(texts(), Reader(), Scorer(study(rate=0.2), WINDOW), tmp_path, None, False) as run,
    ):
        run.take(made)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    "nodes, workers, gpus, share",
    [
        ([{"CPU": 2.0}], 2, 0.0, 1.0),
        ([{"CPU": 2.0}], 5, 0.0, 0.25),
        ([{"CPU": 64.0, "GPU": 8.0}], 8, 1.0, 1.0),
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, 4, 0.5, 1.0),
        ([{"CPU": 1.0}] * 8, 9, 0.0, 0.5),
    ],
)
def test_cpus_are_divided_so_that_every_worker_has_room(
    nodes: list[dict[str, float]], workers: int, gpus: float, share: float
) -> None:
    assert _share(nodes, workers, gpus) == pytest.approx(share)


@pytest.mark.parametrize(
    "nodes, workers, gpus",
    [
        ([], 1, 0.0),
        ([{"CPU": 8.0}], 2, 1.0),
        ([{"CPU": 8.0, "GPU": 1.0}] * 4, 2, 2.0),  # enough of them, but on four machines
    ],
)
def test_a_cluster_without_room_is_an_error(nodes: list[dict[str, float]], workers: int, gpus: float) -> None:
    with pytest.raises(ValueError, match="GPUs each; give it more, or use fewer workers"):
        _share(nodes, workers, gpus)


def test_an_address_where_nothing_answers_is_reported_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ValueError, match="no Ray cluster answers at '127"):
            _check_reachable(f"127.0.0.1:{free.getsockname()[1]}")
    _check_reachable(None)
    _check_reachable("auto")
