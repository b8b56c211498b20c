"""Engines for several processes: processes that share a corpus, and workers on a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from itertools import islice
from typing import Any

from interp_plugin.corpus.parts import PartFiles, Scored
from interp_plugin.corpus.reading import Failure, Item, Reader, Source, Window
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.study import CorpusStudy, Scorer, begun
from interp_plugin.optional import load

LONGEST_WAIT = timedelta(days=30)  # how long a finished process waits for the others
# for Ray
LEAST_SHARE = 1 / 64  # smallest share of a CPU for a worker
ANSWER = 10.0  # seconds within which the head of a cluster must answer
DEATHS = 2  # deaths of workers at a window before its texts are scored one by one, and at a text before it is left out
TRIES = 12  # maximum number of tries for a window


# -- processes that share a corpus


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun or accelerate started to share a corpus.

    Attributes:
        rank: number of this process.
        count: number of processes.
    """

    rank: int
    count: int

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Processes]:
        """Read them from the environment; inside the block they can wait for one another."""
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
        """Return the first process's result in every process: if each computed its own, the last bits could differ."""
        found = [make() if self.rank == 0 else None]
        if self.count > 1:
            from torch import distributed

            distributed.broadcast_object_list(found)
        return found[0]

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    @staticmethod
    def device(name: str) -> str:
        """Return the device of this process: several processes on one machine use one GPU each."""
        local = os.environ.get("LOCAL_RANK")
        return f"cuda:{local}" if name == "cuda" and local is not None else name


# -- Ray


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster and its workers.

    Attributes:
        address: of the cluster; None: Ray's default, a local cluster if there is no other.
        workers: number of actors.
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
    """Score the unfinished windows with actors on a Ray cluster, and return the whole study.

    The parts are the same as those of :meth:`CorpusStudy.run`, so either engine can continue a study.  This process
    reads the corpus and writes the parts; workers only need the model and this package.  A worker that dies is
    replaced, and the new one repeats its window; a text at which workers die repeatedly is recorded as failed.

    Args:
        make_study: a function that can be pickled; every worker calls it once.
        texts, output_dir, max_errors, window, show_progress: as for :meth:`CorpusStudy.run`.
        cluster: the cluster and its workers; None: two workers on Ray's default cluster.
        study: the same study for this process, if it cannot create the workers' study, for example without a GPU.
            None: ``make_study()``.
        columns: text_column, pair_column and tag_column of :meth:`CorpusStudy.run`.

    Raises:
        ImportError: Ray is missing.
        RuntimeError: a worker fails, or workers die repeatedly and no single text is the cause.
        ValueError: as for :meth:`CorpusStudy.run`; the cluster has no room for the workers; a worker has another
            model or other versions of the packages; there is no cluster at the address.
    """
    ray, cluster = load("ray", "engine ray", "ray"), cluster or Cluster()
    _check_reachable(cluster.address or os.environ.get("RAY_ADDRESS"))
    scorer = Scorer(study or make_study(), window)
    reader = Reader(**(columns or {}))
    with begun(texts, reader, scorer, output_dir, max_errors, show_progress) as run:
        jobs = map(Job, run.todo())
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
    """Run jobs on workers, one worker for each of the first jobs.

    Args:
        ray: the package.
        start: starts a worker.
        some, more: the first jobs, and the others.
        take: receives each part.
    """
    running: dict[Any, tuple[Any, Job]] = {}  # by reference to the result

    def submit(job: Job, worker: Any) -> None:
        name, arguments = job.call
        running[getattr(worker, name).remote(*arguments)] = worker, job

    try:
        for job in some:
            submit(job, start())
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
                submit(job, worker)
                continue
            take(made)
            following = next(more, None)
            if following is not None:
                submit(following, worker)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(f"a worker of Ray failed: {type(error.cause).__name__}: {error.cause}") from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for worker, _ in running.values():
            ray.kill(worker)


class Job:
    """A window to be scored by workers, which may die while they score it.

    A worker may die for another reason, so the whole window is tried twice; then its texts are scored one by one, and a
    text at which two workers died is left out.

    Attributes:
        window: of the corpus.
        alone: the texts still to be scored one by one; None: all are scored together.
        scored, failed: results of the other texts.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.alone: list[Item] | None = None
        self.scored: list[Scored] = []
        self.failed: list[Failure] = []
        self._tries = self._deaths = 0

    @property
    def call(self) -> tuple[str, tuple[Any, ...]]:
        """The worker's method to call next, and its arguments."""
        if self.alone:
            return "score", (self.alone[0],)
        return "part", (self.window, self.scored, self.failed)

    def done(self, found: Any) -> PartFiles | None:
        """Record a worker's result; return the part if it is one."""
        self._deaths = 0
        if isinstance(found, PartFiles):
            return found
        assert self.alone
        self.alone.pop(0)
        self.scored += found[0]
        self.failed += found[1]
        return None

    def died(self) -> None:
        """Record that the worker died.

        Raises:
            RuntimeError: too many workers died.
        """
        self._tries += 1
        self._deaths += 1
        if self._tries >= TRIES or (self._deaths >= DEATHS and self.alone == []):
            rows = [entry.row for entry in self.window.entries]
            raise RuntimeError(
                f"{self._tries} workers died at rows {rows[0]} to {rows[-1]}, and no single text is the cause; read "
                "Ray's logs (is there too little memory?) and run again"
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
        make_study: called once, with the first window, so that a death inside it counts as a failed try.
        size: number of rows in a window.
    """

    def __init__(self, make_study: Callable[[], CorpusStudy], size: int) -> None:
        self.make_study, self.size = make_study, size

    @cached_property
    def scorer(self) -> Scorer:
        """The study's scorer."""
        return Scorer(self.make_study(), self.size)

    def score(self, item: Item) -> tuple[list[Scored], list[Failure]]:
        """Score one text."""
        return self.scorer([item])

    def part(self, window: Window, scored: Sequence[Scored], failed: Sequence[Failure]) -> PartFiles:
        """Return the part of a window; the results of some of its texts are given."""
        return self.scorer.part(window, scored, failed)


def _check_reachable(address: str | None) -> None:
    """Check that a cluster answers, because Ray itself tries for many minutes without a message.

    Raises:
        ValueError: nothing answers at the address.
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
    """Join or start a cluster for the block, and yield the options of a worker.

    Raises:
        ValueError: there is no cluster, it refuses the connection, or it has no room for the workers.
    """
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(
                address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        except ConnectionError as error:
            raise ValueError(
                f"cannot join the Ray cluster {cluster.address or 'of this machine'} ({error}); check that it runs, "
                "and set RAY_AUTH_MODE=token if it requires a token"
            ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = _share(nodes, cluster.workers, cluster.gpus)
        yield {"num_cpus": cpus, "num_gpus": cluster.gpus}
    finally:
        if mine:
            ray.shutdown()


def _share(nodes: Sequence[Mapping[str, float]], workers: int, gpus: float) -> float:
    """Return the CPUs of a worker: 1, or the largest of 1/2, 1/4, ... at which the cluster has room for all workers.

    Args:
        nodes: resources of each node.

    Raises:
        ValueError: the cluster has no room for the workers.

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
