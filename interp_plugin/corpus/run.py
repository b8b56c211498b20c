"""Run: one process's way through a corpus, past the windows that are done."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.parts import About, Folder, Part
from interp_plugin.corpus.scorer import Scored, Scorer
from interp_plugin.corpus.stream import Failure, Window
from interp_plugin.fingerprint import differences
from interp_plugin.scoring import warn_of_deaf_states
from interp_plugin.tokens import shown

if TYPE_CHECKING:
    from tqdm import tqdm


class Run:
    """One process's way through the corpus, window by window.

    Args:
        folder: of the study.
        settings: what the numbers depend on; the window's size among them.
        scorer: what scores the texts.
        max_errors: more failures than this stop it; None: however many.

    Raises:
        ValueError: the folder holds a study with other settings.
        OSError: it cannot be written to.
    """

    def __init__(
        self, folder: Folder, settings: Mapping[str, Any], scorer: Scorer, max_errors: int | None = None
    ) -> None:
        self.folder, self.settings, self.scorer, self.max_errors = folder, settings, scorer, max_errors
        self.failures = 0
        self.windows = 0
        self.warned = False
        folder.prepare()
        first = next((part for number in folder.windows() if (part := folder.part(number))), None)
        if first is not None:
            self._check_settings(first)

    def visit(self, window: Window, mine: bool, bar: tqdm[Any]) -> None:
        """Score a window unless that is done, or another's to do.

        Raises:
            ValueError: its part is of other texts or settings; too many texts failed.
            OSError: the part cannot be written.
            RuntimeError: as of :class:`Scorer`.
        """
        self.windows += 1
        part = self.folder.part(window.number) if mine else None
        if part is not None:
            self._check_settings(part)
            self._check_texts(part, window)
            self._count(part.failures)
            self.scorer.trusted |= part.about.texts > 0
        if part is not None or not mine:
            # or the rate would count what cost nothing; a bar that is switched off has no beginning
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
        seconds = time.perf_counter() - start
        failures = sorted([*window.failures, *failed], key=lambda failure: failure.row)
        self.folder.write(self._about(window, len(scored), len(failures), seconds), scored, failures)
        self._warn(scored)

    def failed(self, count: int, which: str = "") -> None:
        """Count texts that failed.

        Raises:
            ValueError: they are too many.
        """
        self.failures += count
        if self.max_errors is not None and self.failures > self.max_errors:
            raise ValueError(
                f"{self.failures} texts failed and max_errors is {self.max_errors}{which}; mend the texts, or allow "
                "more"
            )

    def finish(self) -> None:
        """Check that the corpus had any rows, and no fewer than before."""
        if not self.windows:
            raise ValueError("there are no texts: the corpus must hold at least one")
        beyond = [number for number in self.folder.windows() if number >= self.windows]
        if beyond:
            first = beyond[0] * self.settings["window"]
            raise ValueError(
                f"{str(self.folder.path)!r} has {len(beyond)} parts of rows from {first} on, where these texts end "
                "before: it holds a study of other texts; give another folder"
            )

    def _about(self, window: Window, texts: int, failures: int, seconds: float) -> About:
        return About(
            window=window.number,
            first_row=window.number * self.settings["window"],
            rows=len(window.entries),
            last=window.last,
            digest=window.digest,
            ids=self._ids(window),
            texts=texts,
            failures=failures,
            settings=self.settings,
            seconds=seconds,
        )

    def _ids(self, window: Window) -> str:
        """A name for the tokens of the first text that has any."""
        for item in window.items:
            for encoding in self.scorer.encoded([item])[0].values():
                return hashlib.sha256(json.dumps(encoding.ids).encode()).hexdigest()[:16]
        return ""

    def _check_settings(self, part: Part) -> None:
        found = [
            f"{name} is {ours!r} now and {theirs!r} there"
            for name, ours, theirs in differences(self.settings, part.about.settings)
        ]
        if found:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with other settings: {', '.join(found)}; give the same "
                "settings, or another folder"
            )

    def _check_texts(self, part: Part, window: Window) -> None:
        about = part.about
        rows = f"rows {about.first_row} to {about.first_row + about.rows - 1}"
        if about.digest != window.digest:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study of other texts: {rows} differ, or their tags do; give the "
                "same texts in the same order, or another folder"
            )
        if about.last != window.last:
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study of other texts: its corpus "
                f"{'ends' if about.last else 'goes on'} after {rows}; give the same texts, or another folder"
            )
        if about.ids != self._ids(window):
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with another tokenizer: {rows} have other tokens; give the "
                "same tokenizer, or another folder"
            )

    def _count(self, failures: list[Failure]) -> None:
        last = [f"row {one.row}, {shown(one.beginning)}: {one.reason}" for one in failures[-1:]]
        self.failed(len(failures), "".join(f"; the last is {one}" for one in last))

    def _warn(self, scored: list[Scored]) -> None:
        deaf = [each.found for each in scored if any(row.distortion == 0 for row in each.found.rows)]
        if deaf and not self.warned:
            self.warned = True
            warn_of_deaf_states(deaf)
