"""An amortised head on pretrained MiniLM against the solver, on sentences that it did not learn from.

    python tests/benchmarks/amortised.py --data DIR_WITH_SST2 --work DIR [--folders 76] [--texts 500] [--again 20]

Sentences of at most ten words, layers 1 to 6, one unit of distortion of 100 texts.  The head learns from `--folders`
studies of 40 texts each, a seed each, by a loose solver (tolerance 0.1): all of SST-2's training sentences that are as
short, then beginnings of longer ones.  The truth is the default solver on `--texts` sentences of its test and dev sets.
All studies go on where they were stopped.  Half of the folders and a quarter show the learning curve.  "again" is the
solver with another seed on the first of those sentences: what its own noise leaves of a rank correlation.  "longer" are
sentences of the dev set of more words than the head has seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import Bert, read_texts
from scipy.stats import spearmanr

from interp_plugin import CorpusResult, CorpusStudy, Solver, TextExplainer
from interp_plugin.amortised import AmortisedEstimator
from interp_plugin.text.explanation import TextExplanation
from interp_plugin.text.states import Calibration

WORDS, EACH, WINDOW = 10, 40, 10


def short(path: Path, first: int = 0) -> list[str]:
    return [text for text in read_texts(path, 10_000)[first:] if len(text.split()) <= WORDS]


def beginnings(path: Path, first: int = 0) -> list[str]:
    """Half to all of the first ten words of sentences that have more."""
    longer = [words for text in read_texts(path, 10_000)[first:] if len(words := text.split()) > WORDS]
    shortest = WORDS // 2
    return [" ".join(words[: shortest + i % (WORDS - shortest + 1)]) for i, words in enumerate(longer)]


def unit(bert: Bert, texts: Sequence[str], path: Path) -> Calibration:
    if not path.exists():
        TextExplainer(bert.model, bert.tokenizer).calibrate(texts, show_progress=False).save(path)
    return Calibration.load(path)


def agreement(ours: Sequence[TextExplanation], theirs: Sequence[TextExplanation]) -> str:
    """Spearman over the tokens of a sentence, mean over sentences, and r.m.s. difference of log sigma; by layer."""
    ranks, errors = [], []
    for layer in range(len(theirs[0].rows)):
        pairs = [(a.rows[layer].sigma.log(), b.rows[layer].sigma.log()) for a, b in zip(ours, theirs)]
        found = [float(spearmanr(a, b).statistic) for a, b in pairs]
        ranks.append(sum(found) / len(found))
        errors.append(float(torch.cat([a - b for a, b in pairs]).square().mean().sqrt()))
    return (
        f"{' '.join(f'{r:.3f}' for r in ranks)} | error of log sigma {' '.join(f'{e:.3f}' for e in errors)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folders", type=int, default=76)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--again", type=int, default=20)
    parser.add_argument("--longer", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bert = Bert.minilm()
    given.work.mkdir(parents=True, exist_ok=True)
    calibration = unit(
        bert, read_texts(given.data / "train.tsv", 100), given.work / "calibration.safetensors"
    )

    def solved(name: str, texts: Sequence[str], solver: Solver) -> CorpusResult:
        study = CorpusStudy(bert.model, bert.tokenizer, calibration=calibration, solver=solver)
        return study.run(texts, given.work / name, window=WINDOW, show_progress=False)

    whole, begun = (of(given.data / "train.tsv", 100) for of in (short, beginnings))
    folders = {
        f"{name}-{i // EACH}": texts[i : i + EACH]
        for name, texts in (("train", whole), ("begun", begun))
        for i in range(0, len(texts), EACH)
    }
    truth = (short(given.data / "test.tsv") + short(given.data / "dev.tsv"))[: given.texts]
    studies = [
        solved(name, texts, Solver(tolerance=0.1, seed=200 + k))
        for k, (name, texts) in enumerate(list(folders.items())[: given.folders])
    ]
    exact = solved("truth", truth, Solver())
    known = {*whole, *begun}  # some sentences stand in several of SST-2's files
    theirs = [text for text in exact.explanation() if text.text not in known]
    passes = sum(row.n_forward + row.n_backward for text in theirs for row in text.rows) / len(theirs)
    print(
        f"truth: {len(theirs)} sentences, {passes:.0f} forward and backward passes each for all layers; the head 1"
    )
    for count in sorted({max(1, given.folders // 4), max(1, given.folders // 2), given.folders}):
        start = time.process_time()
        head = AmortisedEstimator.train(
            bert.model, bert.tokenizer, studies[:count], calibration, show_progress=False
        )
        seconds = time.process_time() - start
        ours = list(head.predict([text.text for text in theirs], show_progress=False))
        learned_from = sum(study.texts for study in studies[:count])
        print(
            f"{learned_from} sentences, trained in {seconds:.0f} CPU s: ranks {agreement(ours, theirs)}",
            flush=True,
        )
    longer = [text for text in read_texts(given.data / "dev.tsv", 10_000) if len(text.split()) > WORDS]
    theirs_longer = solved("longer", longer[: given.longer], Solver()).explanation()
    ours = list(head.predict([text.text for text in theirs_longer], show_progress=False))
    lengths = [len(text.tokens) for text in theirs_longer]
    print(
        f"longer, {len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens: ranks "
        f"{agreement(ours, list(theirs_longer))}"
    )
    some = truth[: given.again]
    once = {text.text: text for text in theirs}
    again = [text for text in solved("again", some, Solver(seed=1)).explanation() if text.text in once]
    print(
        f"the solver again, {len(again)} sentences: ranks {agreement(again, [once[text.text] for text in again])}"
    )


if __name__ == "__main__":
    main()
