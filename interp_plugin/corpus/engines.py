"""Engines that take a study through its corpus: one process (or several that share it), and actors on a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp_plugin.corpus.parts import About, Folder, PartFiles, Scored
from interp_plugin.corpus.reading import Failure, Item, Reader, Source, Window, windows
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.scoring import Scorer
from interp_plugin.files import check_local, differences
from interp_plugin.optional import load
from interp_plugin.text.models import shown

if TYPE_CHECKING:
    from interp_plugin.corpus.study import CorpusStudy

LONGEST_WAIT = timedelta(days=30)  # of a process that is done for those that are not
# of Ray
LEAST_SHARE = 1 / 64  # of a CPU, for a worker
ANSWER = 10.0  # seconds that the head of a cluster has to answer
DEATHS = 2  # workers that died of a window before its texts are scored one by one, and of a text before it is left out
TRIES = 12  # of a window


class Run:
    """One process's pass over the corpus, window by window, that skips the finished ones.

    Args:
        folder: of the study, locked.
        scorer: that scores the texts, and knows the settings that the numbers depend on.
        max_errors: more failures than this stop it; None: however many.
        bar: shows how many texts are done.

    Raises:
        ValueError: the folder holds a study with other settings.
    """

    def __init__(self, folder: Folder, scorer: Scorer, max_errors: int | None, bar: tqdm[Any]) -> None:
        self.folder, self.scorer, self.max_errors, self.bar = folder, scorer, max_errors, bar
        self.failures = 0
        self.windows = 0
        first = next((part for number in folder.windows() if (part := folder.part(number))), None)
        if first is not None:
            self._check_settings(first.about)

    def is_done(self, window: Window, mine: bool = True) -> bool:
        """Whether a window has a part, or is another process's to do; counts it, and the failures of its part.

        A study of the first rows of a corpus goes on with the others: its last part, where that is not full, is
        scored again.

        Raises:
            ValueError: the part is of other texts or settings; too many texts failed.
        """
        self.windows += 1
        part = self.folder.part(window.number) if mine else None
        if part is not None:
            about = part.about
            self._check_settings(about)
            fewer = about.last and about.rows < len(window.entries)
            if fewer and window.digest_of(about.rows) == about.digest:
                return False
            self._check_texts(about, window)
            self._count(part.failures)
            self.scorer.has_scored |= about.texts > 0
        elif mine:
            return False
        # or the bar's rate would count windows that took no time; a bar that is switched off has no ``initial``
        self.bar.initial = getattr(self.bar, "initial", 0) + len(window.entries)
        self.bar.update(len(window.entries))
        return True

    def score(self, window: Window) -> None:
        """Score a window here, and write its part.

        Raises:
            ValueError: too many texts failed.
            OSError: the part cannot be written.
            RuntimeError: as of :class:`Scorer`.
        """

        def done(texts: int, failed: Sequence[Failure]) -> None:
            self.bar.update(texts)
            self._count(failed)

        done(len(window.failures), window.failures)
        self.folder.write(self.scorer.part(window, done=done))

    def take(self, made: PartFiles) -> None:
        """Write a part that another process made.

        Raises:
            ValueError: it has other settings; too many texts failed.
            OSError: the part cannot be written.
        """
        found = self._other_settings(made.about)
        if found:
            raise ValueError(
                f"a worker has other settings: {found}; give all workers the same model and packages"
            )
        self._count(self.folder.write(made).failures)
        self.bar.update(made.about.rows)

    def finish(self) -> None:
        """Check that the corpus had any rows, and no fewer than before."""
        if not self.windows:
            raise ValueError("there are no texts: the corpus must hold at least one")
        beyond = [number for number in self.folder.windows() if number >= self.windows]
        if beyond:
            first = beyond[0] * self.scorer.settings["window"]
            raise ValueError(
                f"{str(self.folder.path)!r} has {len(beyond)} parts of rows from {first} on, and these texts end "
                "before: it holds a study of more texts; give all of them, or another folder"
            )

    def _check_settings(self, about: About) -> None:
        found = self._other_settings(about)
        if found:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with other settings: {found}; give the same "
                "settings, or another folder"
            )

    def _other_settings(self, about: About) -> str:
        return ", ".join(
            f"{name} is {ours!r} now and {theirs!r} there"
            for name, ours, theirs in differences(self.scorer.settings, about.settings)
        )

    def _check_texts(self, about: About, window: Window) -> None:
        place = repr(str(self.folder.path))
        rows = f"rows {about.first_row} to {about.first_row + about.rows - 1}"
        same = window.digest == about.digest
        more = len(window.entries) < about.rows or (same and window.last and not about.last)
        if more:
            end = about.first_row + len(window.entries)
            raise ValueError(
                f"{place} holds a study of more texts than these {end}: give all of them, or another folder"
            )
        if not same:
            raise ValueError(
                f"{place} holds a study of other texts: {rows} differ, or their tags do; give the "
                "same texts in the same order, or another folder"
            )
        if about.ids != self.scorer.ids(window):
            raise ValueError(
                f"{place} holds a study with another tokenizer: {rows} have other tokens; give the "
                "same tokenizer, or another folder"
            )

    def _count(self, failures: Sequence[Failure]) -> None:
        self.failures += len(failures)
        if self.max_errors is not None and self.failures > self.max_errors:
            last = [f"row {one.row}, {shown(one.beginning)}: {one.reason}" for one in failures[-1:]]
            raise ValueError(
                f"{self.failures} texts failed and max_errors is {self.max_errors}"
                f"{''.join(f'; the last is {one}' for one in last)}; mend the texts, or allow more"
            )


@contextmanager
def begun(
    texts: Source,
    reader: Reader,
    scorer: Scorer,
    output_dir: str | os.PathLike[str],
    max_errors: int | None,
    show_progress: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Run, Iterator[Window]]]:
    """A run in a folder that nobody else writes to inside the block, and the windows of the corpus.

    Args:
        texts, output_dir, max_errors, show_progress, rank, world_size: as of :meth:`CorpusStudy.run`.
        reader: that makes texts of the rows.
        scorer: of the study.

    Raises:
        ValueError, OSError: the beginning of the corpus cannot be read, so that wrong columns are an error before a
            folder is made; the folder cannot be used, as of :meth:`CorpusStudy.run`.
    """
    check_local(output_dir)
    total = len(texts) if isinstance(texts, Sized) else None
    read = windows(texts, scorer.settings["window"], reader)
    with (
        Folder.held(output_dir, scorer.settings, rank, world_size) as folder,
        tqdm(total=total, desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar,
    ):
        run = Run(folder, scorer, max_errors, bar)
        yield run, read
        run.finish()


# -- processes that share a corpus


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun or accelerate started to share a corpus.

    Attributes:
        rank: number of this one.
        count: how many there are.
    """

    rank: int
    count: int

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Processes]:
        """From the environment; inside the block they can wait for one another."""
        found = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        if found.count == 1:
            yield found
            return
        from torch import distributed

        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        try:
            yield found
        finally:
            distributed.destroy_process_group()

    def of_first(self, make: Callable[[], Any]) -> Any:
        """The first process's result, in all of them: the last bits may differ where each computes its own."""
        found = [make() if self.rank == 0 else None]
        if self.count > 1:
            from torch import distributed

            distributed.broadcast_object_list(found)
        return found[0]

    def wait(self) -> None:
        """Until all of them come here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    @staticmethod
    def device(name: str) -> str:
        """A device of this process: of several on one machine each takes a GPU of its own."""
        local = os.environ.get("LOCAL_RANK")
        return f"cuda:{local}" if name == "cuda" and local is not None else name


# -- Ray


@dataclass(frozen=True)
class Cluster:
    """Where the workers are.

    Attributes:
        address: of a cluster; None: Ray's own choice, a local one where there is none.
        workers: actors.
        gpus: share of a GPU for each.
    """

    address: str | None = None
    workers: int = 2
    gpus: float = 0.0


def run_on_ray(
    make_study: Callable[[], CorpusStudy],
    texts: Source,
    output_dir: str | os.PathLike[str],
    max_errors: int | None = None,
    window: int = 1024,
    show_progress: bool = True,
    *,
    cluster: Cluster | None = None,
    study: CorpusStudy | None = None,
    columns: Mapping[str, Any] | None = None,
) -> CorpusResult:
    """Score what is not scored yet by actors on a Ray cluster, and return the whole study.

    The parts are those of :meth:`CorpusStudy.run`, so a study goes on on either engine.  The corpus is read, and the
    parts are written, by this process: workers need neither, only the model and this package.  A worker that dies is
    replaced, and the new one does its window again; a text of which workers die again and again is recorded as failed.

    Args:
        make_study: can be pickled; every worker calls it once.
        texts, output_dir, max_errors, window, show_progress: as of :meth:`CorpusStudy.run`.
        cluster: where the workers are; None: two on Ray's own choice.
        study: the same study for this process, where it cannot be the workers': the machine may lack a GPU.  None:
            ``make_study()``.
        columns: text_column, pair_column and tag_column of :meth:`CorpusStudy.run`.

    Raises:
        ImportError: Ray is missing.
        RuntimeError: a worker fails; workers die again and again, and not of single texts.
        ValueError: as of :meth:`CorpusStudy.run`; a cluster that has no room for the workers; a worker with another
            model, or other versions of the packages; no cluster at the address.
    """
    ray, cluster = load("ray", "engine ray", "ray"), cluster or Cluster()
    _check_reachable(cluster.address or os.environ.get("RAY_ADDRESS"))
    scorer = (study or make_study()).scorer(window)
    reader = Reader(**(columns or {}))
    with begun(texts, reader, scorer, output_dir, max_errors, show_progress) as (run, read):
        todo = (each for each in read if not run.is_done(each))
        jobs = map(Job, todo)
        some = list(islice(jobs, cluster.workers))
        if some:
            with _joined(ray, cluster) as options:
                start = partial(ray.remote(Worker).options(**options).remote, make_study, window)
                _score(ray, start, some, jobs, run.take)
    return CorpusResult.load(output_dir)


def _score(
    ray: Any,
    start: Callable[[], Any],
    some: Sequence[Job],
    more: Iterator[Job],
    take: Callable[[PartFiles], None],
) -> None:
    """Do jobs on workers, as many at a time as are begun with.

    Args:
        ray: the package.
        start: makes a worker.
        some, more: the jobs to begin with, and the others.
        take: what to do with a part.
    """
    running: dict[Any, tuple[Any, Job]] = {}  # by what will be the result

    def go_on(job: Job, worker: Any) -> None:
        name, arguments = job.call
        running[getattr(worker, name).remote(*arguments)] = worker, job

    try:
        for job in some:
            go_on(job, start())
        while running:
            [ready], _ = ray.wait(list(running), num_returns=1)
            worker, job = running.pop(ready)
            made = None
            try:
                made = job.done(ray.get(ready))
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                job.died()
                worker = start()
            if made is None:
                go_on(job, worker)
                continue
            take(made)
            following = next(more, None)
            if following is not None:
                go_on(following, worker)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(f"a worker of Ray failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for worker, _ in running.values():
            ray.kill(worker)


class Job:
    """A window to be scored by workers, each of which may die of it.

    A worker may die of something else, so its first two tries are alike; then its texts are scored one by one, and one
    that two workers died of is left out.

    Attributes:
        window: of the corpus.
        alone: the texts that are still to be scored one by one; None: all are scored together.
        scored, failed: what is known of the others.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.alone: list[Item] | None = None
        self.scored: list[Scored] = []
        self.failed: list[Failure] = []
        self._tries = self._deaths = 0

    @property
    def call(self) -> tuple[str, tuple[Any, ...]]:
        """The method of a worker that goes on with it, and its arguments."""
        return (
            ("score", (self.alone[0],)) if self.alone else ("part", (self.window, self.scored, self.failed))
        )

    def done(self, found: Any) -> PartFiles | None:
        """Take what the worker found; the part, where that is it."""
        self._deaths = 0
        if isinstance(found, PartFiles):
            return found
        assert self.alone
        self.alone.pop(0)
        self.scored += found[0]
        self.failed += found[1]
        return None

    def died(self) -> None:
        """The worker died.

        Raises:
            RuntimeError: too many have.
        """
        self._tries += 1
        self._deaths += 1
        if self._tries >= TRIES or (self._deaths >= DEATHS and self.alone == []):
            rows = [entry.row for entry in self.window.entries]
            raise RuntimeError(
                f"{self._tries} workers died of rows {rows[0]} to {rows[-1]}, and not of single texts; look into Ray's "
                "logs (is there too little memory?) and run again"
            )
        if self._deaths < DEATHS:
            return
        self._deaths = 0
        if self.alone is None:
            self.alone = self.window.items
        else:
            item = self.alone.pop(0)
            reason = RuntimeError(f"{DEATHS} workers died while they scored it")
            self.failed.append(Failure.of(item.row, reason, item))


class Worker:
    """Scores texts and windows; needs neither the corpus nor the folder.

    Args:
        make_study: called once, with the first window, so that a worker that dies of that is known to have died of it.
        size: rows in a window.
    """

    def __init__(self, make_study: Callable[[], CorpusStudy], size: int) -> None:
        self.make_study, self.size = make_study, size

    @cached_property
    def scorer(self) -> Scorer:
        """Of the study."""
        return self.make_study().scorer(self.size)

    def score(self, item: Item) -> tuple[list[Scored], list[Failure]]:
        """A text alone."""
        return self.scorer([item])

    def part(self, window: Window, scored: Sequence[Scored], failed: Sequence[Failure]) -> PartFiles:
        """The part of a window, some of whose texts are known."""
        return self.scorer.part(window, scored, failed)


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for many minutes, and does not say so.

    Raises:
        ValueError: nothing answers there.
    """
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "://" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
        except OSError as error:
            raise ValueError(
                f"no Ray cluster answers at {address!r} ({error}); give the address that ray start --head prints"
            ) from error


@contextmanager
def _joined(ray: Any, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The options of a worker, on a cluster that is joined, or started, for the block.

    Raises:
        ValueError: there is none, it does not let us in, or has no room for the workers.
    """
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(
                address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        except ConnectionError as error:
            raise ValueError(
                f"the Ray cluster {cluster.address or 'of this machine'} cannot be joined ({error}); see that it runs, "
                "and set RAY_AUTH_MODE=token if it wants a token"
            ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = _share(nodes, cluster.workers, cluster.gpus)
        yield {"num_cpus": cpus, "num_gpus": cluster.gpus}
    finally:
        if mine:
            ray.shutdown()


def _share(nodes: Sequence[Mapping[str, float]], workers: int, gpus: float) -> float:
    """CPUs of a worker: one, or the half, quarter, ... of one at which all of them find a place.

    Args:
        nodes: what each of them has.

    Raises:
        ValueError: the cluster has no room.

    Examples::
        >>> _share([{"CPU": 2.0}], 3, 0), _share([{"CPU": 8.0, "GPU": 4.0}] * 2, 8, 1)
        (0.5, 1.0)
    """

    def room(share: float) -> int:
        each = (int(node.get("CPU", 0.0) / share) for node in nodes)
        return sum(min(n, int(node.get("GPU", 0.0) / gpus)) if gpus else n for n, node in zip(each, nodes))

    share = 1.0
    while room(share) < workers:
        share /= 2
        if share < LEAST_SHARE:
            cpus, there = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
            raise ValueError(
                f"the cluster has {cpus:g} CPUs and {there:g} GPUs on {len(nodes)} machines, and {workers} workers "
                f"need {LEAST_SHARE:g} CPUs and {gpus:g} GPUs each; give it more, or use fewer workers"
            )
    return share
