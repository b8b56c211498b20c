"""Run: one process's way through a corpus, past the windows that are done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.drafts import About, Draft, draft
from interp_plugin.corpus.parts import Folder, Part
from interp_plugin.corpus.scorer import Scored, Scorer
from interp_plugin.corpus.stream import Failure, Window
from interp_plugin.fingerprint import differences, ids_digest
from interp_plugin.text.models import shown
from interp_plugin.text.scoring import warn_of_deaf_states

if TYPE_CHECKING:
    from tqdm import tqdm


class Run:
    """One process's way through the corpus, window by window.

    Args:
        folder: of the study, held.
        settings: what the numbers depend on; the window's size among them.
        scorer: what scores the texts.
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
        self.folder.write(drafted(window, scored, failed, self.scorer, self.settings, start))
        self._warn(scored)

    def is_done(self, window: Window, mine: bool = True) -> bool:
        """Whether a window that is ours has a part; counts the window, and the failures of its part.

        Raises:
            ValueError: the part is of other texts or settings; too many texts failed.
        """
        self.windows += 1
        part = self.folder.part(window.number) if mine else None
        if part is None:
            return False
        self._check_settings(part.about)
        self._check_texts(part, window)
        self._count(part.failures)
        self.scorer.trusted |= part.about.texts > 0
        return True

    def take(self, draft: Draft, digest: str) -> None:
        """Write what another process made of a window.

        Args:
            draft: the part.
            digest: of the window's texts, as they were read here.

        Raises:
            ValueError: it is of other texts or settings; too many texts failed.
            OSError: the part cannot be written.
        """
        about = draft.about
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
        self.folder.write(draft)
        part = self.folder.part(about.window)
        if part is None:
            raise ValueError(
                f"the part of window {about.window} in {str(self.folder.path)!r} was damaged while it was written; "
                "look at the disk and run again"
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
                f"{str(self.folder.path)!r} has {len(beyond)} parts of rows from {first} on, where these texts end "
                "before: it holds a study of other texts; give another folder"
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
        if about.ids != _ids(window, self.scorer):
            raise ValueError(
                f"{str(self.folder.path)!r} holds a study with another tokenizer: {rows} have other tokens; give the "
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
        deaf = [each.found for each in scored if any(row.distortion == 0 for row in each.found.rows)]
        if deaf and not self.warned:
            self.warned = True
            warn_of_deaf_states(deaf)


def drafted(
    window: Window,
    scored: Sequence[Scored],
    failed: Sequence[Failure],
    scorer: Scorer,
    settings: Mapping[str, Any],
    start: float,
) -> Draft:
    """The part of a window that is scored.

    Args:
        window: of the corpus.
        scored, failed: what the scorer made of its texts.
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
    return draft(about, scored, failures)


def _ids(window: Window, scorer: Scorer) -> str:
    """A name for the tokens of the first text that has any."""
    for item in window.items:
        for encoding in scorer.encoded([item])[0].values():
            return ids_digest(encoding.ids)
    return ""
