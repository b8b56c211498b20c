"""A corpus study on a Ray cluster: Ray Data hands windows to actors that load the model once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from interp_plugin.corpus.drafts import Draft
from interp_plugin.corpus.parts import Folder
from interp_plugin.corpus.ray_actors import Feeder, Worker, unpacked
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.run import Run
from interp_plugin.corpus.stream import Reader, Source, Window, windows
from interp_plugin.corpus.study import CorpusStudy

LEFT_FREE = 1.0  # CPUs that Ray Data's own tasks need: actors that take them all would wait for them for ever
FEEDERS = 2  # that may be lost and replaced
ANSWER = 10.0  # seconds that the head of a cluster has to answer


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
    """Score what is not scored yet by actors on a Ray cluster, and look at the whole.

    The parts are those of :meth:`CorpusStudy.run`, so a study goes on on either engine.  The corpus is read, and the
    parts are written, on the machine that this runs on: workers need neither, only the model and this package.  Ray
    replaces a worker that dies, and the new one does its window again; a text of which workers die again and again is
    recorded as failed.

    Args:
        make_study: can be pickled; every worker calls it once.
        make_texts: can be pickled; called here and by an actor on this machine, and again if that is lost.  It must
            give the same texts in the same order each time.
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
    with Folder.held(output_dir, settings) as folder:
        run = Run(folder, settings, study.scorer(), max_errors)
        make_windows = partial(_windows, make_texts, window, dict(columns or {}))
        todo: dict[int, tuple[int, str]] = {}
        rows = 0
        for each in make_windows():
            rows += len(each.entries)
            if not run.is_done(each):
                todo[each.number] = len(each.entries), each.digest
        run.finish()
        with tqdm(total=rows, desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar:
            bar.initial = rows - sum(count for count, _ in todo.values())
            bar.update(bar.initial)
            for draft in _drafts(ray, cluster, make_study, make_windows, window, todo) if todo else ():
                count, digest = todo.pop(draft.about.window)
                run.take(draft, digest)
                bar.update(count)
    return CorpusResult.load(output_dir)


def _windows(make_texts: Callable[[], Source], size: int, columns: Mapping[str, Any]) -> Iterator[Window]:
    return windows(make_texts(), size, Reader(**columns))


def _drafts(
    ray: Any,
    cluster: Cluster,
    make_study: Callable[[], CorpusStudy],
    make_windows: Callable[[], Iterator[Window]],
    size: int,
    todo: Collection[int],
) -> Iterator[Draft]:
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
        # Ray Data has workers that die started again, and their tasks tried again, for ever; the feeder ends that
        data = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
            Worker,
            fn_constructor_args=(make_study, size, partial(_ask, feeder)),
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
    options = {"num_cpus": 0, "max_restarts": FEEDERS, "max_task_retries": FEEDERS}
    return ray.remote(Feeder).options(scheduling_strategy=here, **options).remote(make_windows, todo)


def _ask(feeder: Any, name: str, *arguments: Any) -> Any:
    """What a method of the feeder gives, or raises; called by workers."""
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
            f"more than {LEFT_FREE:g} CPU and {gpus:g} GPUs each; give it more, or ask for fewer workers"
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
            "engine ray needs Ray, which is not installed: pip install interp-plugin[ray]"
        ) from error
    return ray
