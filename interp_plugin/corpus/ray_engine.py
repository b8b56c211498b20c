"""A corpus study on a Ray cluster: Ray Data hands windows to actors that load the model once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from interp_plugin.corpus.parts import Folder
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.run import Run
from interp_plugin.corpus.stream import Reader, Source, Window, windows
from interp_plugin.corpus.study import CorpusStudy

Columns = Mapping[str, Any]
LEFT_FREE = 1.0  # CPUs that Ray Data's own tasks need: actors that take them all would wait for them for ever


def run_on_ray(
    make_study: Callable[[], CorpusStudy],
    make_texts: Callable[[], Source],
    output_dir: str | os.PathLike[str],
    max_errors: int | None = None,
    window: int = 1024,
    show_progress: bool = True,
    *,
    workers: int = 2,
    gpus: float = 0.0,
    address: str | None = None,
    columns: Columns | None = None,
) -> CorpusResult:
    """Score what is not scored yet by actors on a Ray cluster, and look at the whole.

    The parts are those of :meth:`CorpusStudy.run`, so a study goes on on either engine.  Each actor reads the corpus
    for itself and writes the parts of the windows that Ray Data hands it: input and folder must be within reach of
    every node.  Ray replaces an actor that dies, and the new one does its window again.

    Args:
        make_study, make_texts: functions that can be pickled; every actor calls them once, and again where it must
            read the corpus from its beginning.
        output_dir, max_errors, window, show_progress: as of :meth:`CorpusStudy.run`.
        workers: actors.
        gpus: share of a GPU for each.
        address: of the cluster; None: Ray's own choice, a local one where there is none.
        columns: text_column, pair_column and tag_column of :meth:`CorpusStudy.run`.

    Raises:
        ImportError: Ray is missing.
        RuntimeError: an actor fails again and again.
        ValueError: as of :meth:`CorpusStudy.run`; a cluster that has no room for the actors.
    """
    ray, columns = _ray(), dict(columns or {})
    folder, study = Folder(output_dir), make_study()
    run = Run(folder, study.settings(window), study.scorer(), max_errors)
    sizes: list[int] = []
    todo: list[dict[str, int]] = []
    for each in windows(make_texts(), window, Reader(**columns)):
        there = folder.part(each.number) is not None
        run.visit(each, there, tqdm(disable=True))
        sizes.append(len(each.entries))
        todo += [] if there else [{"window": each.number}]
    run.finish()
    arguments = (make_study, make_texts, output_dir, window, columns)
    with tqdm(total=sum(sizes), desc="texts", unit=" texts", smoothing=0, disable=not show_progress) as bar:
        bar.update(sum(sizes) - sum(sizes[each["window"]] for each in todo))
        for done in _scored(ray, todo, address, workers, gpus, arguments):
            bar.update(sizes[int(done["window"])])
            run.failed(int(done["failures"]))
    # what the actors wrote is checked as what an earlier run left
    return study.run(make_texts(), output_dir, max_errors, window, False, **columns)


class Worker:
    """An actor: a study, and its place in the corpus.

    Args:
        make_study, make_texts, output_dir, window, columns: as of :func:`run_on_ray`.
    """

    def __init__(
        self,
        make_study: Callable[[], CorpusStudy],
        make_texts: Callable[[], Source],
        output_dir: str | os.PathLike[str],
        window: int,
        columns: Columns,
    ) -> None:
        study = make_study()
        self.run = Run(Folder(output_dir), study.settings(window), study.scorer())
        self.make_windows: Callable[[], Iterator[Window]] = lambda: windows(
            make_texts(), window, Reader(**columns)
        )
        self.next = 0
        self.rest = self.make_windows()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Score the windows of these numbers."""
        numbers = [int(number) for number in batch["window"]]
        return {"window": numbers, "failures": [self._visit(number) for number in numbers]}

    def _visit(self, number: int) -> int:
        """Score a window and write its part; how many texts failed."""
        before = self.run.failures
        if number < self.next:
            self.next, self.rest = 0, self.make_windows()
        for each in self.rest:
            self.next = each.number + 1
            if each.number == number:
                self.run.visit(each, True, tqdm(disable=True))
                break
        return self.run.failures - before


def _scored(
    ray: Any,
    todo: list[dict[str, int]],
    address: str | None,
    workers: int,
    gpus: float,
    arguments: tuple[Any, ...],
) -> Iterable[Mapping[str, Any]]:
    """What the actors say of each window, as they are done."""
    if not todo:
        return
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        cpus = _share(ray.cluster_resources(), workers, gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Worker,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo)), max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        yield from data.iter_rows()
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a worker of Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if mine:
            ray.shutdown()


def _share(resources: Mapping[str, float], workers: int, gpus: float) -> float:
    """CPUs of an actor: at most one, and so that Ray Data's own tasks have one.

    Raises:
        ValueError: the cluster has no room.

    Examples::
        >>> _share({"CPU": 2.0}, 2, 0), _share({"CPU": 64.0, "GPU": 8.0}, 8, 1)
        (0.5, 1.0)
    """
    cpus, there = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus <= LEFT_FREE or gpus * workers > there:
        raise ValueError(
            f"the cluster has {cpus:g} CPUs and {there:g} GPUs, and {workers} workers need more than {LEFT_FREE:g} CPU "
            f"and {gpus * workers:g} GPUs; give it more, or ask for fewer workers"
        )
    return min(1.0, (cpus - LEFT_FREE) / workers)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "engine ray needs Ray, which is not installed: pip install interp-plugin[ray]"
        ) from error
    return ray
