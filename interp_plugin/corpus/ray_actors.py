"""The actors of a study on a Ray cluster: one feeder that reads the corpus, and workers that load the model once."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.drafts import About, Draft
from interp_plugin.corpus.run import drafted
from interp_plugin.corpus.scorer import Scored
from interp_plugin.corpus.stream import Failure, Window
from interp_plugin.corpus.study import CorpusStudy
from interp_plugin.text.storage import load_pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

CAREFUL = 3  # the try of a window from which on its texts are scored one by one
KILLS = 2  # workers that died of a text before it is left out
TRIES = 12  # of a window


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        window: to score.
        one_by_one: whether to say of each text that it is begun, and to score it alone.
        left_out: the texts that must not be scored, for they killed workers.
    """

    window: Window
    one_by_one: bool
    left_out: tuple[Failure, ...]


class Feeder:
    """Reads the corpus where the driver is, hands out its windows, and finds the texts that kill workers.

    It reads no further than it is asked to.  A worker that dies leaves its window behind, and the one that takes its
    place asks for it again: that is how a death is known.  A window's first two tries are alike, for a worker may die
    of something else; from the third on its texts are scored one by one, and one that was begun by two workers that
    died is left out.

    Args:
        make_windows: gives the windows of the corpus, the same at every call.
        todo: numbers of those that will be asked for, about in their order.

    Examples::
        >>> from interp_plugin.corpus.stream import Reader, windows
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

    def take(self, number: int) -> Order:
        """A window to score.

        Raises:
            RuntimeError: too many workers died of it.
            ValueError: the corpus has become shorter.
        """
        window = self._window(number)
        self.tries[number] += 1
        tries, begun = self.tries[number], self.begun.pop(number, None)
        if tries > CAREFUL:
            self.deaths[number, begun] += 1
        if tries > TRIES or self.deaths[number, None] >= KILLS:
            rows = [entry.row for entry in window.entries]
            raise RuntimeError(
                f"{tries - 1} workers died of rows {rows[0]} to {rows[-1]}, and not of single texts; look into Ray's "
                "logs (is there too little memory?) and run again"
            )
        killers = [item for item in window.items if self.deaths[number, item.row] >= KILLS]
        reason = RuntimeError(f"{KILLS} workers died while they scored it")
        left_out = tuple(Failure.of(item.row, reason, item) for item in killers)
        return Order(window, tries >= CAREFUL, left_out)

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

    The model is loaded with the first window, so that the feeder knows of a worker that dies of that.

    Args:
        make_study: called once.
        size: rows in a window.
        ask: calls a method of the feeder, by its name.
    """

    def __init__(self, make_study: Callable[[], CorpusStudy], size: int, ask: Callable[..., Any]) -> None:
        self.make_study, self.size, self.ask = make_study, size, ask
        self.study: CorpusStudy | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The parts of the windows of these numbers, packed."""
        arrow, _ = load_pyarrow("a corpus study")
        rows = [self._row(number) for number in batch["window"].to_pylist()]
        return arrow.Table.from_pylist(rows, schema=_schema(arrow))

    def _row(self, number: int) -> dict[str, Any]:
        """A part, or why there is none: Ray would bury that under its own words."""
        try:
            made = self._draft(number)
        except Exception as error:  # whatever stops a worker is told to the driver, which raises it
            return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        about, files = json.dumps(asdict(made.about)), made.files
        return {"about": about, "names": list(files), "contents": list(files.values())}

    def _draft(self, number: int) -> Draft:
        order: Order = self.ask("take", number)
        if self.study is None:
            self.study = self.make_study()
            self.scorer, self.settings = self.study.scorer(), self.study.settings(self.size)
        start = time.perf_counter()
        scored, failed = self._scored(order)
        found = drafted(order.window, scored, [*failed, *order.left_out], self.scorer, self.settings, start)
        self.ask("done", number)
        return found

    def _scored(self, order: Order) -> tuple[list[Scored], list[Failure]]:
        left_out = {failure.row for failure in order.left_out}
        items = [item for item in order.window.items if item.row not in left_out]
        if not order.one_by_one:
            return self.scorer(items)
        scored: list[Scored] = []
        failed: list[Failure] = []
        for item in items:
            self.ask("begin", order.window.number, item.row)
            found, refused = self.scorer([item])
            scored += found
            failed += refused
        self.ask("begin", order.window.number, None)
        return scored, failed


def unpacked(row: Mapping[str, Any]) -> Draft:
    """A part that a worker sent.

    Raises:
        RuntimeError: it sent what stopped it instead.
    """
    if row["error"] is not None:
        raise RuntimeError(f"a worker of Ray failed: {row['error']}") from RuntimeError(row["trace"])
    return Draft(About(**json.loads(row["about"])), dict(zip(row["names"], row["contents"])))


def _schema(arrow: ModuleType) -> pa.Schema:
    """Of what a worker sends."""
    return arrow.schema(
        {
            "about": arrow.string(),
            "names": arrow.list_(arrow.string()),
            "contents": arrow.list_(arrow.binary()),
            "error": arrow.string(),
            "trace": arrow.string(),
        }
    )
