"""Engines that take a study through its corpus: one process (or several that share it), and actors of Ray Data."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp_plugin.corpus.parts import About, Folder, PartFiles, Scored, part_files
from interp_plugin.corpus.reading import Failure, Reader, Source, Window, windows
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.scoring import Scorer
from interp_plugin.files import check_local, differences, ids_digest, load_pyarrow
from interp_plugin.text.models import shown
from interp_plugin.text.scoring import warn_of_unreached_states

if TYPE_CHECKING:
    import pyarrow as pa

    from interp_plugin.corpus.study import CorpusStudy

LONGEST_WAIT = timedelta(days=30)  # of a process that is done for those that are not
# of Ray
LEFT_FREE = 1.0  # CPUs that Ray Data's own tasks need: with actors on all CPUs these would never run
FEEDER_RESTARTS = 2
ANSWER = 10.0  # seconds that the head of a cluster has to answer
ONE_BY_ONE = 3  # the try of a window from which on its texts are scored one by one
DEATHS = 2  # workers that died of a text before it is left out
TRIES = 12  # of a window


class Run:
    """One process's pass over the corpus, window by window, that skips the finished ones.

    Args:
        folder: of the study, locked.
        settings: that the numbers depend on; the window's size among them.
        scorer: that scores the texts.
        max_errors: more failures than this stop it; None: however many.

    Raises:
        ValueError: the folder holds a study with other settings.
    """

    def __init__(
        self, folder: Folder, settings: Mapping[str, Any], scorer: Scorer, max_errors: int | None = None
    ) -> None:
        self.folder, self.settings, self.scorer, self.max_errors = folder, settings, scorer, max_errors
        self.failures = 0
        self.windows = 0
        self.warned = False
        first = next((part for number in folder.windows() if (part := folder.part(number))), None)
        if first is not None:
            self._check_settings(first.about)

    def visit(self, window: Window, mine: bool, bar: tqdm[Any]) -> None:
        """Score a window unless that is done, or another's to do.

        Raises:
            ValueError: its part is of other texts or settings; too many texts failed.
            OSError: the part cannot be written.
            RuntimeError: as of :class:`Scorer`.
        """
        if self.is_done(window, mine) or not mine:
            # or the bar's rate would count windows that took no time; a bar that is switched off has no ``initial``
            bar.initial = getattr(bar, "initial", 0) + len(window.entries)
            bar.update(len(window.entries))
            return
        self._count(window.failures)
        bar.update(len(window.failures))

        def done(texts: int, failed: list[Failure]) -> None:
            bar.update(texts)
            self._count(failed)

        start = time.perf_counter()
        scored, failed = self.scorer(window.items, done)
        self.folder.write(part_of(window, scored, failed, self.scorer, self.settings, start))
        self._warn(scored)

    def is_done(self, window: Window, mine: bool = True) -> bool:
        """Whether a window of this process has a part; counts the window, and the failures of its part.

        A study of the first rows of a corpus goes on with the others: its last part, where that is not full, is
        scored again.

        Raises:
            ValueError: the part is of other texts or settings; too many texts failed.
        """
        self.windows += 1
        part = self.folder.part(window.number) if mine else None
        if part is None:
            return False
        about = part.about
        self._check_settings(about)
        fewer = about.last and about.rows < len(window.entries)
        if fewer and window.digest_of(about.rows) == about.digest:
            return False
        self._check_texts(about, window)
        self._count(part.failures)
        self.scorer.has_scored |= about.texts > 0
        return True

    def take(self, made: PartFiles, digest: str) -> None:
        """Write a part that another process made.

        Args:
            made: the part.
            digest: of the window's texts, as they were read here.

        Raises:
            ValueError: it is of other texts or settings; too many texts failed.
            OSError: the part cannot be written.
        """
        about = made.about
        found = self._other_settings(about)
        if found:
            raise ValueError(
                f"a worker has other settings: {found}; give all workers the same model and packages"
            )
        if about.digest != digest:
            raise ValueError(
                f"rows {about.first_row} to {about.first_row + about.rows - 1} were others when the corpus was read "
                "again; give texts that are the same, in the same order, at every reading"
            )
        self.folder.write(made)
        part = self.folder.part(about.window)
        if part is None:
            raise ValueError(
                f"the part of window {about.window} in {str(self.folder.path)!r} was damaged while it was written; "
                "check the disk and run again"
            )
        self._count(part.failures)

    def finish(self) -> None:
        """Check that the corpus had any rows, and no fewer than before."""
        if not self.windows:
            raise ValueError("there are no texts: the corpus must hold at least one")
        beyond = [number for number in self.folder.windows() if number >= self.windows]
        if beyond:
            first = beyond[0] * self.settings["window"]
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
            for name, ours, theirs in differences(self.settings, about.settings)
        )

    def _check_texts(self, about: About, window: Window) -> None:
        place = repr(str(self.folder.path))
        rows = f"rows {about.first_row} to {about.first_row + about.rows - 1}"
        same = window.digest == about.digest
        more = len(window.entries) < about.rows or (same and window.last and not about.last)
        if more:
            end = window.number * self.settings["window"] + len(window.entries)
            raise ValueError(
                f"{place} holds a study of more texts than these {end}: give all of them, or another folder"
            )
        if not same:
            raise ValueError(
                f"{place} holds a study of other texts: {rows} differ, or their tags do; give the "
                "same texts in the same order, or another folder"
            )
        if about.ids != _ids(window, self.scorer):
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

    def _warn(self, scored: list[Scored]) -> None:
        unreached = [each.found for each in scored if any(row.distortion == 0 for row in each.found.rows)]
        if unreached and not self.warned:
            self.warned = True
            warn_of_unreached_states(unreached)


def begun(read: Iterator[Window], output_dir: str | os.PathLike[str]) -> Iterator[Window]:
    """The same windows, the first of which is read at once: wrong columns are an error before a folder is made.

    Raises:
        ValueError, OSError: the beginning of the corpus cannot be read; ``output_dir`` is no place on this machine.
    """
    check_local(output_dir)
    first = [window for window in [next(read, None)] if window is not None]
    return chain(first, read)


def part_of(
    window: Window,
    scored: Sequence[Scored],
    failed: Sequence[Failure],
    scorer: Scorer,
    settings: Mapping[str, Any],
    start: float,
) -> PartFiles:
    """The part of a window that is scored.

    Args:
        window: of the corpus.
        scored, failed: what the scorer gave for its texts.
        scorer, settings: as of :class:`Run`.
        start: when that began, by ``time.perf_counter``.
    """
    failures = sorted([*window.failures, *failed], key=lambda failure: failure.row)
    about = About(
        window=window.number,
        first_row=window.number * settings["window"],
        rows=len(window.entries),
        last=window.last,
        digest=window.digest,
        ids=_ids(window, scorer),
        texts=len(scored),
        failures=len(failures),
        settings=settings,
        seconds=time.perf_counter() - start,
    )
    return part_files(about, scored, failures)


def _ids(window: Window, scorer: Scorer) -> str:
    """A digest of the token ids of the first text that has any."""
    for item in window.items:
        for encoding in scorer.encoded([item])[0].values():
            return ids_digest(encoding.ids)
    return ""


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
    make_texts: Callable[[], Source],
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
    parts are written, on the machine that this runs on: workers need neither, only the model and this package.  Ray
    replaces a worker that dies, and the new one does its window again; a text of which workers die again and again is
    recorded as failed.

    Args:
        make_study: can be pickled; every worker calls it once.
        make_texts: can be pickled; called here and by an actor on this machine, and again if that is lost.  It must
            return the same texts in the same order each time.
        output_dir, max_errors, window, show_progress: as of :meth:`CorpusStudy.run`.
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
    ray, cluster = _ray(), cluster or Cluster()
    _check_reachable(cluster.address or os.environ.get("RAY_ADDRESS"))
    study = study or make_study()
    settings = study.settings(window)
    make_windows = partial(_windows, make_texts, window, dict(columns or {}))
    read = begun(make_windows(), output_dir)
    with Folder.held(output_dir, settings) as folder:
        run = Run(folder, settings, study.scorer(), max_errors)
        todo: dict[int, tuple[int, str]] = {}
        rows = 0
        for each in read:
            rows += len(each.entries)
            if not run.is_done(each):
                todo[each.number] = len(each.entries), each.digest
        run.finish()
        with tqdm(total=rows, desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar:
            bar.initial = rows - sum(count for count, _ in todo.values())
            bar.update(bar.initial)
            for made in _parts_made(ray, cluster, make_study, make_windows, window, todo) if todo else ():
                count, digest = todo.pop(made.about.window)
                run.take(made, digest)
                bar.update(count)
    return CorpusResult.load(output_dir)


def _windows(make_texts: Callable[[], Source], size: int, columns: Mapping[str, Any]) -> Iterator[Window]:
    return windows(make_texts(), size, Reader(**columns))


def _parts_made(
    ray: Any,
    cluster: Cluster,
    make_study: Callable[[], CorpusStudy],
    make_windows: Callable[[], Iterator[Window]],
    size: int,
    todo: Collection[int],
) -> Iterator[PartFiles]:
    """The parts of these windows, as the workers are done with them."""
    mine = not ray.is_initialized()
    if mine:
        _join(ray, cluster.address)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = _share(nodes, cluster.workers, cluster.gpus)
        feeder = _feeder(ray, make_windows, list(todo))
        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = [{"window": number} for number in todo]
        # Ray Data restarts workers that die, and retries their tasks, without end; the feeder limits that
        data = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            Worker,
            fn_constructor_args=(make_study, size, partial(_call, feeder)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(cluster.workers, len(numbers)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=cpus,
            num_gpus=cluster.gpus,
        )
        for row in data.iter_rows():
            yield unpacked(row)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if mine:
            ray.shutdown()


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


def _join(ray: Any, address: str | None) -> None:
    """Join a cluster, or start one.

    Raises:
        ValueError: there is none, or it does not let us in.
    """
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise ValueError(
            f"the Ray cluster {address or 'of this machine'} cannot be joined ({error}); see that it runs, and set "
            "RAY_AUTH_MODE=token if it wants a token"
        ) from error


def _feeder(ray: Any, make_windows: Callable[[], Iterator[Window]], todo: Sequence[int]) -> Any:
    """A feeder on this machine."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = {"num_cpus": 0, "max_restarts": FEEDER_RESTARTS, "max_task_retries": FEEDER_RESTARTS}
    return ray.remote(Feeder).options(scheduling_strategy=here, **options).remote(make_windows, todo)


def _call(feeder: Any, name: str, *arguments: Any) -> Any:
    """The result of a method of the feeder, or what it raises; called by workers."""
    ray = _ray()
    try:
        return ray.get(getattr(feeder, name).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _share(nodes: Sequence[Mapping[str, float]], workers: int, gpus: float) -> float:
    """CPUs of a worker: at most one, and so that Ray Data's own tasks have one.

    Args:
        nodes: what each of them has.

    Raises:
        ValueError: the cluster has no room.

    Examples::
        >>> _share([{"CPU": 2.0}], 2, 0), _share([{"CPU": 8.0, "GPU": 4.0}] * 2, 8, 1)
        (0.5, 1.0)
    """
    cpus, there = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    fit = sum(int(node.get("GPU", 0.0) / gpus) for node in nodes if node.get("CPU")) if gpus else workers
    if cpus <= LEFT_FREE or fit < workers:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs and {there:g} GPUs on {len(nodes)} machines, and {workers} workers need "
            f"more than {LEFT_FREE:g} CPU and {gpus:g} GPUs each; give it more, or use fewer workers"
        )
    share = min(1.0, (cpus - LEFT_FREE) / workers)

    def room() -> int:
        each = (int(node.get("CPU", 0.0) / share + 1e-6) for node in nodes)
        return sum(min(n, int(node.get("GPU", 0.0) / gpus)) if gpus else n for n, node in zip(each, nodes))

    while room() < workers:
        share /= 2
    return share


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ImportError(
            'engine ray needs Ray, which is not installed: pip install "interp-plugin[ray]"'
        ) from error
    return ray


@dataclass(frozen=True)
class Task:
    """A window for a worker.

    Attributes:
        window: to score.
        one_by_one: whether to say of each text that it is begun, and to score it alone.
        left_out: the texts that must not be scored, for they killed workers.
    """

    window: Window
    one_by_one: bool
    left_out: tuple[Failure, ...]


class Feeder:
    """Reads the corpus on the driver's machine, serves its windows to the workers, and finds texts that kill workers.

    It reads no further than the windows that were requested.  When a worker dies, the one that replaces it requests
    the same window again, which tells of the death.  A window's first two tries are alike, because a worker may die
    of something else; from the third on its texts are scored one by one, and a text that two dead workers had begun is
    left out.

    Args:
        make_windows: gives the windows of the corpus, the same at every call.
        todo: numbers of the windows that will be requested, about in their order.

    Examples::
        >>> from interp_plugin.corpus.reading import Reader, windows
        >>> feeder = Feeder(lambda: windows(["a", "b", "c"], 2, Reader()), [0, 1])
        >>> feeder.take(1).window.items[0].text, feeder.take(0).one_by_one
        ('c', False)
    """

    def __init__(self, make_windows: Callable[[], Iterator[Window]], todo: Collection[int]) -> None:
        self.make_windows, self.todo = make_windows, set(todo)
        self.next, self.rest = 0, make_windows()
        self.held: dict[int, Window] = {}  # read, and not done
        self.tries: Counter[int] = Counter()
        self.begun: dict[int, int] = {}
        self.deaths: Counter[tuple[int, int | None]] = Counter()  # by window and row

    def take(self, number: int) -> Task:
        """A window to score.

        Raises:
            RuntimeError: too many workers died of it.
            ValueError: the corpus has become shorter.
        """
        window = self._window(number)
        self.tries[number] += 1
        tries, begun = self.tries[number], self.begun.pop(number, None)
        if tries > ONE_BY_ONE:
            self.deaths[number, begun] += 1
        if tries > TRIES or self.deaths[number, None] >= DEATHS:
            rows = [entry.row for entry in window.entries]
            raise RuntimeError(
                f"{tries - 1} workers died of rows {rows[0]} to {rows[-1]}, and not of single texts; look into Ray's "
                "logs (is there too little memory?) and run again"
            )
        fatal = [item for item in window.items if self.deaths[number, item.row] >= DEATHS]
        reason = RuntimeError(f"{DEATHS} workers died while they scored it")
        left_out = tuple(Failure.of(item.row, reason, item) for item in fatal)
        return Task(window, tries >= ONE_BY_ONE, left_out)

    def begin(self, number: int, row: int | None) -> None:
        """A text of a window is about to be scored; None: all of them are."""
        self.begun.pop(number, None)
        if row is not None:
            self.begun[number] = row

    def done(self, number: int) -> None:
        """A window is scored."""
        self.todo.discard(number)
        for known in (self.held, self.tries, self.begun):
            known.pop(number, None)

    def _window(self, number: int) -> Window:
        if number not in self.held and number < self.next:  # what became of it was lost with a node
            self.next, self.rest = 0, self.make_windows()
        while number not in self.held:
            window = next(self.rest, None)
            if window is None:
                raise ValueError(
                    f"the corpus has no window {number} any more; give texts that stay as they are"
                )
            self.next = window.number + 1
            if window.number == number or window.number in self.todo:
                self.held[window.number] = window
        return self.held[number]


class Worker:
    """Scores windows; needs neither the corpus nor the folder.

    The model is loaded with the first window, so that the feeder learns of a worker that dies of that.

    Args:
        make_study: called once.
        size: rows in a window.
        call: calls a method of the feeder, by its name.
    """

    def __init__(self, make_study: Callable[[], CorpusStudy], size: int, call: Callable[..., Any]) -> None:
        self.make_study, self.size, self.call = make_study, size, call
        self.study: CorpusStudy | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The parts of the windows of these numbers, packed."""
        arrow, _ = load_pyarrow("a corpus study")
        rows = [self._row(number) for number in batch["window"].to_pylist()]
        return arrow.Table.from_pylist(rows, schema=_sent_schema(arrow))

    def _row(self, number: int) -> dict[str, Any]:
        """A part, or the error: Ray would wrap that in messages of its own."""
        try:
            made = self._part(number)
        except Exception as error:  # of any kind: the driver raises it
            return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        about, files = json.dumps(asdict(made.about)), made.files
        return {"about": about, "names": list(files), "contents": list(files.values())}

    def _part(self, number: int) -> PartFiles:
        task: Task = self.call("take", number)
        if self.study is None:
            self.study = self.make_study()
            self.scorer, self.settings = self.study.scorer(), self.study.settings(self.size)
        start = time.perf_counter()
        scored, failed = self._scored(task)
        found = part_of(task.window, scored, [*failed, *task.left_out], self.scorer, self.settings, start)
        self.call("done", number)
        return found

    def _scored(self, task: Task) -> tuple[list[Scored], list[Failure]]:
        left_out = {failure.row for failure in task.left_out}
        items = [item for item in task.window.items if item.row not in left_out]
        if not task.one_by_one:
            return self.scorer(items)
        scored: list[Scored] = []
        failed: list[Failure] = []
        for item in items:
            self.call("begin", task.window.number, item.row)
            found, refused = self.scorer([item])
            scored += found
            failed += refused
        self.call("begin", task.window.number, None)
        return scored, failed


def unpacked(row: Mapping[str, Any]) -> PartFiles:
    """A part that a worker sent.

    Raises:
        RuntimeError: it sent an error instead.
    """
    if row["error"] is not None:
        raise RuntimeError(f"a worker of Ray failed: {row['error']}") from RuntimeError(row["trace"])
    return PartFiles(About(**json.loads(row["about"])), dict(zip(row["names"], row["contents"])))


def _sent_schema(arrow: ModuleType) -> pa.Schema:
    """The schema of a worker's results."""
    return arrow.schema(
        {
            "about": arrow.string(),
            "names": arrow.list_(arrow.string()),
            "contents": arrow.list_(arrow.binary()),
            "error": arrow.string(),
            "trace": arrow.string(),
        }
    )
