"""A study small enough to be killed many times, and made-up parts; as a script, one process of a study."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet
from tiny_plain import WORDS, cnn

from interp_plugin.corpus.parts import FOLDER_LOCK, About, Folder, Scored, part_files
from interp_plugin.corpus.reading import Failure, Item
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.corpus.study import CorpusStudy
from interp_plugin.method.solver import Solver
from interp_plugin.text.explanation import Row, TextExplanation
from interp_plugin.text.models import Label
from interp_plugin.text.scores import Offset

TEXTS = 24
WINDOW = 4
SOLVER = Solver(tolerance=0.1)
SETTINGS: dict[str, Any] = {
    "model": "made up",
    "noise_layer": "embedding",
    "rate": 0.1,
    "seed": 0,
    "tolerance": 0.02,
    "draws": 28,
    "iterations": None,
    "state_std": False,
    "calibration": None,
    "part": None,
    "truncation": False,
    "versions": {"torch": "2"},
}


def texts(count: int = TEXTS) -> list[str]:
    """Sentences of 2 to 8 words."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        places = torch.randint(len(WORDS), (length,), generator=generator)
        found.append(" ".join(WORDS[i] for i in places.tolist()))
    return found


def study(**settings: Any) -> CorpusStudy:
    return CorpusStudy(cnn(), **{"batch_size": 3, "solver": SOLVER, **settings})


def run(folder: Path, given: Any = None, window: int = WINDOW, **options: Any) -> CorpusResult:
    """The tiny study of some texts."""
    return study().run(
        texts() if given is None else given, folder, window=window, show_progress=False, **options
    )


def rows(result: CorpusResult) -> pa.Table:
    return pa.concat_tables(
        [parquet.read_table(part.path) for part in result.parts]
    ).replace_schema_metadata()


def files(folder: Path) -> list[str]:
    """Names in the folder of a study, except that of its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != FOLDER_LOCK)


def slowly(given: Sequence[str]) -> Iterator[str]:
    """Slow, so that there is time for a kill."""
    for text in given:
        time.sleep(0.02)
        yield text


def made_up(
    folder: Path,
    sentences: Sequence[Sequence[tuple[str, str | None]]],
    sigmas: Sequence[Sequence[Sequence[float]]],
    layers: Sequence[Label] = (1, 2),
    window: int = 4,
    size: int = 10,
    cap: float = 1.0,
    failures: Sequence[Failure] = (),
    errors: float = 0.0,
    noise: float = 0.0,
    facts: dict[str, Any] | None = None,
    **settings: Any,
) -> CorpusResult:
    """A study with these words (with tags; "[...]" is a special token) and sigmas, (sentences, layers, tokens)."""
    known = {**SETTINGS, **settings, "layers": list(layers), "window": window}
    parts = Folder(folder)
    parts.path.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(sentences), window):
        some = range(first, min(first + window, len(sentences)))
        scored = [
            _scored(i, sentences[i], sigmas[i], layers, size, cap, errors, noise, facts or {}) for i in some
        ]
        failed = [f for f in failures if f.row in range(first, first + window)]
        about = About(
            first // window, first, len(some) + len(failed), some[-1] + 1 == len(sentences),
            "digest", "ids", len(scored), len(failed), known, 0.5,
        )  # fmt: skip
        parts.write(part_files(about, scored, failed))
    return CorpusResult.load(folder)


def _scored(
    number: int,
    words: Sequence[tuple[str, str | None]],
    sigmas: Sequence[Sequence[float]],
    layers: Sequence[Label],
    size: int,
    cap: float,
    error: float,
    noise: float,
    facts: dict[str, Any],
) -> Scored:
    spoken = [(word, tag) for word, tag in words if not word.startswith("[")]
    text, end = " ".join(word for word, _ in spoken), -1
    offsets: list[Offset | None] = []
    for word, _ in words:
        special = word.startswith("[")
        offsets.append(None if special else (0, end + 1, end + 1 + len(word)))
        end += 0 if special else 1 + len(word)
    known = {"regime_index": 1.0, "distortion": 0.05, "converged": True, "n_forward": 30, "n_backward": 20}
    rows = tuple(
        Row(
            layer=layer, position=None, sigma=torch.tensor(sigma), standard_error=noise * (torch.tensor(sigma) < cap),
            common_error=error, max_sigma=cap, input_std=cap / 10, **{**known, **facts},
        )
        for layer, sigma in zip(layers, sigmas)
    )  # fmt: skip
    names = tuple(word for word, _ in words)
    found = TextExplanation(text, None, names, tuple(offsets), size, None, None, None, rows)
    tags = None if any(tag is None for _, tag in spoken) else tuple(str(tag) for _, tag in spoken)
    return Scored(Item(number, text, None, tags), found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    study().run(slowly(texts()), sys.argv[1], window=WINDOW, show_progress=False)
