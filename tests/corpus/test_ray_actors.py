"""The actors of the Ray engine, called as plain objects: no Ray is needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import TEXTS, WINDOW, study, texts

from interp_plugin import CorpusResult
from interp_plugin.corpus.engines import (
    DEATHS,
    ONE_BY_ONE,
    TRIES,
    Feeder,
    Run,
    Worker,
    _check_reachable,
    _share,
    unpacked,
)
from interp_plugin.corpus.parts import Folder
from interp_plugin.corpus.reading import Reader, Window, windows

COUNT = TEXTS // WINDOW


class Died(BaseException):
    """In place of the death of a process: goes past what takes it for a fault of the text."""


class Watched:
    """Windows that count how often the corpus was read, and how far."""

    def __init__(self) -> None:
        self.readings, self.read = 0, 0

    def __call__(self) -> Iterator[Window]:
        self.readings, self.read = self.readings + 1, 0
        for window in windows(texts(), WINDOW, Reader()):
            self.read += 1
            yield window


def ask(feeder: Feeder) -> Any:
    return lambda name, *arguments: getattr(feeder, name)(*arguments)


def run(folder: Path, make_study: Any = study) -> tuple[CorpusResult, Feeder]:
    """The whole corpus by workers of which one takes the place of another that died."""
    import pyarrow

    feeder = Feeder(Watched(), range(COUNT))
    settings = study().settings(WINDOW)
    with Folder.held(folder, settings) as held:
        run = Run(held, settings, study().scorer())
        for window in windows(texts(), WINDOW, Reader()):
            while True:
                try:
                    table = Worker(make_study, WINDOW, ask(feeder))(
                        pyarrow.table({"window": [window.number]})
                    )
                    break
                except Died:
                    continue
            for row in table.to_pylist():
                run.take(unpacked(row), window.digest)
    return CorpusResult.load(folder), feeder


def deadly(*rows: int, times: float = float("inf")) -> Any:
    """A study that dies of the texts of these rows."""
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


def test_the_feeder_reads_once_and_no_further_than_asked() -> None:
    source = Watched()
    feeder = Feeder(source, range(COUNT))
    for number in (1, 0, 2):
        assert feeder.take(number).window.number == number
        assert source.read == max(number, 1) + 1
        feeder.done(number)
    assert source.readings == 1
    assert not feeder.held


def test_windows_that_nobody_will_ask_for_are_not_held() -> None:
    feeder = Feeder(Watched(), [4])
    feeder.take(4)
    assert feeder.held.keys() == {4}


def test_a_window_that_was_lost_after_it_was_done_is_read_again() -> None:
    source = Watched()
    feeder = Feeder(source, range(COUNT))
    for number in range(4):
        feeder.take(number)
        feeder.done(number)
    assert [item.row for item in feeder.take(1).window.items] == [4, 5, 6, 7]
    assert source.readings == 2
    feeder.done(1)
    assert feeder.take(4).window.number == 4
    assert not {1, 2, 3} & feeder.held.keys()


def test_a_corpus_that_became_shorter_is_an_error() -> None:
    with pytest.raises(ValueError, match=f"has no window {COUNT} any more"):
        Feeder(Watched(), [COUNT]).take(COUNT)


def test_workers_make_the_parts_of_a_run_here(tmp_path: Path) -> None:
    here = study().run(texts(), tmp_path / "here", window=WINDOW, show_progress=False)
    there, _ = run(tmp_path / "there")
    assert there.table().equals(here.table())
    for ours, theirs in zip(there.parts, here.parts):
        assert ours.about.digest == theirs.about.digest
        assert ours.about.ids == theirs.about.ids


def test_a_text_that_kills_every_worker_is_recorded_and_the_rest_is_done(tmp_path: Path) -> None:
    here = study().run(texts(), tmp_path / "here", window=WINDOW, show_progress=False)
    result, feeder = run(tmp_path / "there", deadly(9, 11, 18))
    assert [failure.row for failure in result.failures()] == [9, 11, 18]
    assert "2 workers died while they scored it" in result.failures()[0].reason
    assert result.failures()[0].beginning == texts()[9]
    ours, theirs = (each.table().set_index(["row", "layer"])["kept"] for each in (result, here))
    theirs = theirs.drop([9, 11, 18])
    assert (ours / theirs - 1).abs().max() < 1e-4
    assert len(ours) == len(theirs)
    assert not feeder.tries and not feeder.begun


@pytest.mark.parametrize("times", [1, ONE_BY_ONE - 1, ONE_BY_ONE])
def test_a_worker_that_dies_for_another_reason_costs_no_text(tmp_path: Path, times: int) -> None:
    result, _ = run(tmp_path, deadly(9, times=times))
    assert not result.failures()
    assert result.texts == TEXTS


def test_workers_that_die_before_any_text_end_the_run() -> None:
    feeder = Feeder(Watched(), [2])
    with pytest.raises(
        RuntimeError, match=rf"{ONE_BY_ONE + DEATHS - 1} workers died of rows 8 to 11, and not of"
    ):
        for _ in range(TRIES):
            feeder.take(2)


def test_more_deadly_texts_than_tries_end_the_run() -> None:
    feeder = Feeder(Watched(), [0])
    with pytest.raises(RuntimeError, match=rf"{TRIES} workers died of rows 0 to 3"):
        for number in range(TRIES + 1):
            feeder.take(0)
            feeder.begin(0, number % WINDOW if number < ONE_BY_ONE + 2 * WINDOW else 3)


def test_parts_of_other_texts_and_other_models_are_refused(tmp_path: Path) -> None:
    import pyarrow

    table = Worker(study, WINDOW, ask(Feeder(Watched(), [0])))(pyarrow.table({"window": [0]}))
    draft = unpacked(table.to_pylist()[0])
    run = Run(Folder(tmp_path), study().settings(WINDOW), study().scorer())
    with pytest.raises(ValueError, match="rows 0 to 3 were others when the corpus was read again"):
        run.take(draft, "another")
    run = Run(Folder(tmp_path), study(rate=0.2).settings(WINDOW), study().scorer())
    with pytest.raises(ValueError, match=r"a worker has other settings: rate is 0\.2 now and 0\.1 there"):
        run.take(draft, draft.about.digest)
    assert not list(tmp_path.iterdir())


def test_what_stops_a_worker_is_raised_in_its_own_words() -> None:
    import pyarrow

    def make() -> Any:
        raise ValueError("device 'cuda' cannot be used")

    table = Worker(make, WINDOW, ask(Feeder(Watched(), [0])))(pyarrow.table({"window": [0]}))
    with pytest.raises(
        RuntimeError, match="a worker of Ray failed: ValueError: device 'cuda' cannot"
    ) as told:
        unpacked(table.to_pylist()[0])
    assert "in make" in str(told.value.__cause__)


@pytest.mark.parametrize(
    "nodes, workers, gpus, share",
    [
        ([{"CPU": 2.0}], 2, 0.0, 0.5),
        ([{"CPU": 64.0, "GPU": 8.0}], 8, 1.0, 1.0),
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, 4, 0.5, 1.0),
        ([{"CPU": 1.0}] * 8, 9, 0.0, 7 / 18),
    ],
)
def test_every_worker_finds_a_place(
    nodes: list[dict[str, float]], workers: int, gpus: float, share: float
) -> None:
    assert _share(nodes, workers, gpus) == pytest.approx(share)


@pytest.mark.parametrize(
    "nodes, workers, gpus",
    [
        ([{"CPU": 1.0}], 1, 0.0),
        ([{"CPU": 8.0}], 2, 1.0),
        ([{"CPU": 8.0, "GPU": 1.0}] * 4, 2, 2.0),  # enough of them, but on four machines
    ],
)
def test_a_cluster_without_room_is_said_to_be(
    nodes: list[dict[str, float]], workers: int, gpus: float
) -> None:
    with pytest.raises(ValueError, match="GPUs each; give it more, or use fewer workers"):
        _share(nodes, workers, gpus)


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ValueError, match="no Ray cluster answers at '127"):
            _check_reachable(f"127.0.0.1:{free.getsockname()[1]}")
    _check_reachable(None)
    _check_reachable("auto")
