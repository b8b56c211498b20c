"""CorpusResult: a study of a corpus, read from its parts: tables, explanations, figures and a page."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from interp_plugin.corpus import quantities, tables, words
from interp_plugin.corpus.parts import Folder, Part, explanations
from interp_plugin.corpus.quantities import RESAMPLES, Sentences
from interp_plugin.corpus.reading import Failure
from interp_plugin.corpus.tables import Per, Quantity
from interp_plugin.corpus.words import WORD, By
from interp_plugin.files import differences, replace_file
from interp_plugin.report.model import Curve
from interp_plugin.text.explanation import Explanation, Settings
from interp_plugin.text.models import OUTPUT, Label
from interp_plugin.text.rows import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

Kind = Literal["curve", "classes", "regime"]

# what two studies must share for their numbers to be paired
DRAWS = ("seed", "tolerance", "draws", "iterations", "rate", "truncation", "erased")


@dataclass(frozen=True)
class CorpusResult:
    """A study of a corpus; its numbers are read from the parts when they are needed, in bounded memory.

    Attributes:
        path: the folder of its parts.
        parts: the whole ones, in the order of the corpus.
        settings: that the numbers depend on: model, weights, layers, rate, solver, versions and more.

    Examples: see :class:`CorpusStudy`.
    """

    path: Path
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], partial: bool = False, max_errors: int | None = None
    ) -> CorpusResult:
        """The study in a folder, every part of it checked.

        Args:
            path: of the folder.
            partial: accept a study that is still running, or lost some parts.
            max_errors: failed texts at most: of several processes that made it each has counted its own.

        Raises:
            ValueError: there is no study, or (unless partial) some of it is missing or damaged; parts with other
                settings; more texts failed.
        """
        folder = Folder(path)
        numbers = folder.windows()
        found = {number: part for number in numbers if (part := folder.part(number)) is not None}
        if not numbers or (partial and not found):
            raise ValueError(f"{str(path)!r} holds no study; give the folder that CorpusStudy.run wrote to")
        settings = [part.about.settings for part in found.values()]
        if any(differences(other, settings[0]) for other in settings[1:]):
            raise ValueError(f"{str(path)!r} holds parts with different settings; keep those of one study")
        last = max((n for n, part in found.items() if part.about.last), default=None)
        expected = range((max(numbers) if last is None else last) + 1)
        missing = [number for number in expected if number not in found]
        if not partial and (missing or last is None or max(numbers) > last):
            state = f"parts {missing[:5]} are missing or damaged" if missing else "the end is missing"
            raise ValueError(
                f"the study in {str(path)!r} is not whole: {state}; run it again with the same texts and folder, or "
                "load it with partial=True"
            )
        result = cls(Path(path), tuple(found[number] for number in sorted(found)), settings[0])
        failed = len(result.failures())
        if max_errors is not None and failed > max_errors:
            raise ValueError(f"{failed} texts failed and max_errors is {max_errors}; mend the texts")
        return result

    @property
    def is_amortised(self) -> bool:
        """Whether a head predicted the numbers."""
        return self.settings.get("amortised") is not None

    @property
    def is_erased(self) -> bool:
        """Whether tokens were erased; otherwise they bore noise."""
        return self.settings.get("erased") is not None

    @property
    def units(self) -> dict[Label, str]:
        """The unit of each layer's erasure scores: nats for log-odds or a log probability of the output, else D."""
        output = self.settings.get("output_unit", "nats")
        return {label: output if label == OUTPUT else "D" for label in self.layer_labels}

    @property
    def layer_labels(self) -> tuple[Label, ...]:
        """The layers, in forward order."""
        return tuple(self.settings["layers"])

    @property
    def texts(self) -> int:
        """How many have numbers."""
        return sum(part.about.texts for part in self.parts)

    @property
    def seconds(self) -> float:
        """That scoring took, of all processes together."""
        return sum(part.about.seconds for part in self.parts)

    def failures(self) -> list[Failure]:
        """Rows of the corpus without numbers, and why."""
        return [failure for part in self.parts for failure in part.failures]

    def __repr__(self) -> str:
        failed = sum(part.about.failures for part in self.parts)
        layers = ", ".join(map(repr, self.layer_labels))
        model = self.settings["model"]
        return f"CorpusResult({self.texts} texts, {failed} failed, layers {layers}, model {model!r})"

    @cached_property
    def sentences(self) -> Sentences:
        """A number for each sentence, layer and quantity: all that is held in memory of the whole corpus."""
        return Sentences.read(self.parts, self.layer_labels, self.is_erased)

    def layers(self, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Means over the corpus, a line for each layer, quantity and unit.

        "kept" is I and "loss" is H(X|S), in nats; mean "per"

        * "sentence": sum over its tokens, mean over sentences (the paper's corpus level);
        * "token": sum over all tokens of the corpus, divided by their number;
        * "token of a sentence": mean over a sentence's tokens, mean over sentences, so that long ones count no more;
        * "dimension": as "token", divided by K, so that models of different widths compare.

        Per sentence also regime_index (of sentences whose state moved), distortion, rate, converged (0 or 1) and
        n_forward, n_backward (sample passes).  A few sentences can have any E and D, so both have a line per "median
        sentence" too, whose "mean" is the median, with the interval of the sign test.  H(X) is the same for every layer
        and model, so differences of "loss" are those of MI with the other sign.

        Where tokens were erased the quantity is "erased", the score that is lost with them, signed, in nats of
        log-odds of the predicted class for the output, in D for other layers (:attr:`units`); per "sentence", "token",
        "word" (sum over the words of the corpus, divided by their number) and "word of a sentence"; special tokens,
        which are never erased, are not counted.  Per sentence also damage, n_forward and n_backward.

        Returns:
            Columns layer, quantity, per, mean, standard_error (over sentences), low, high (95 % bootstrap interval
            over sentences), solver_error (of the noise draws or masks, if those of all sentences deviated in the same
            direction: they share their seed), sentences, converged (share of the layer's rows that met the tolerance;
            NaN where they were predicted, or tokens were erased).
        """
        return quantities.layer_means(self.sentences, resamples, seed)

    def monotonicity(self, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Whether a layer keeps more than the one it is computed from.

        No layer can know more of the input than what it is computed from (the data-processing inequality).  Kept
        information need not obey that exactly: it is what remains at a given weight of distortion, measured in each
        layer's own unit, so without a calibration, or far from E = 1, it may grow.  Where it grows by more than chance,
        compare layers with care.

        Returns:
            Columns layer, after (the layer before), growth (kept here less kept there, nats per sentence, paired),
            standard_error, low, high, share (of sentences that grow), p (one-sided t-test), p_holm (corrected for all
            pairs of layers), violation (growth above 0 with p_holm below 0.05), converged (share of sentences whose
            rows of both layers met the tolerance).

        Raises:
            ValueError: tokens were erased, which measures no information.
        """
        self._check_noise("growth with depth")
        return quantities.growth(self.sentences, resamples, seed)

    def compare(self, other: CorpusResult, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """This study less another of the same texts and draws: two models, or two checkpoints of one.

        Paired sentence by sentence, which removes the differences between sentences; texts that failed in one are left
        out.  "kept" is counted against each model's own input_std, and "loss" depends on the scale of its embeddings.

        Returns:
            Columns layer, quantity, per (as of :meth:`layers`), difference, standard_error, low, high, p (paired
            t-test), p_holm (corrected for the layers), sentences, converged (share of sentences whose rows of both
            studies met the tolerance).

        Raises:
            ValueError: other texts, no layer in common, or settings that differ in more than the model.
        """
        for name in DRAWS:
            ours, theirs = self.settings.get(name), other.settings.get(name)
            if ours != theirs:
                raise ValueError(
                    f"{name} is {ours!r} in one study and {theirs!r} in the other, so their numbers are not paired; "
                    "run both with the same"
                )
        return quantities.differences(self.sentences, other.sentences, resamples, seed)

    def check(self) -> pd.DataFrame:
        """How far the predictions of an amortised study are from the solver, on the texts that it checked.

        Returns:
            Columns layer; texts (that were checked); held_out and error: r.m.s. of predicted less solved log sigma
            where the head was trained, and here; noise (r.m.s. standard error of the solver here, a part of error);
            spearman (over a text's tokens, mean over texts); covered (share of tokens within two standard errors);
            shift (nats kept of a token, predicted less solved, mean over texts) and shift_error (its standard error);
            p (one-sided Welch test on the logarithms of texts' mean squares that errors are more than a tenth larger
            here), p_holm (corrected for the layers), drift (p_holm below 0.01).

        Raises:
            ValueError: the solver found the numbers, so that there is nothing to check.
        """
        if not self.is_amortised:
            raise ValueError(f"the solver found all the numbers of {str(self.path)!r}: nothing was predicted")
        return quantities.agreement(self.parts, self.layer_labels, self.settings["held_out"])

    def word_classes(
        self,
        by: By = "kind",
        lexicon: Mapping[str, str] | None = None,
        stop_words: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """What each layer keeps of each class of words, per token.

        A token belongs to the class of its word.  Special tokens are a class of their own in all ways of telling
        words apart:

        * "kind": special tokens, punctuation, stop words (scikit-learn's English ones unless given), other words;
        * "lexicon": the class of the word in ``lexicon``, or "other"; capitals do not count;
        * "tag": the word's tag in the corpus's tag column, or the whole text's;
        * "frequency": how often the word is in this corpus, counted in a pass of its own.

        Returns:
            Columns layer, class, tokens, sentences (that have one), kept (nats per token), standard_error (over
            sentences), low, high (95 %), loss (nats per token), share (of all nats that the layer keeps), converged
            (share of the layer's rows that met the tolerance).  Where tokens were erased: words in place of tokens,
            erased (per word, signed, in :attr:`units`) in place of kept, magnitude (mean of the words' absolute scores)
            in place of loss, share (of the sum of absolute scores), and no special tokens, which are never erased.
        """
        classify, order = self._classifier(by, lexicon, stop_words)
        sums = words.sums_of(self.parts, self.layer_labels, classify, self.is_erased)
        return words.table(sums, self.sentences.converged.mean(0), order)

    def knowledge(
        self,
        threshold: float = 0.2,
        foreground: Collection[str] = (WORD,),
        by: By = "kind",
        lexicon: Mapping[str, str] | None = None,
        stop_words: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Knowledge points and concentration of each layer.

        A knowledge point is a token of which a layer loses less than of the background by more than a threshold:
        mean H of the background over the corpus - H_i > b (Cheng et al., Explaining Knowledge Distillation by
        Quantifying the Knowledge, CVPR 2020, on regions of images; here tokens).  The quality of a layer's knowledge
        is the share of its points that lie in the foreground, averaged over sentences that have any.  Concentration
        is what a layer keeps of a token of the foreground less that of the background, over all tokens of the
        corpus, as a difference and as a ratio: after Ma et al. (Quantification and Analysis of Layer-wise and
        Pixel-wise Information Discarding, arXiv:1906.04109), who look at the pixels of an object and around it; the
        formula here is our own.

        Args:
            threshold: b, in nats per dimension of the embedding: 0.2 is a noise smaller by 18 %.
            foreground: classes that are the foreground; all others are the background.
            by, lexicon, stop_words: as of :meth:`word_classes`.

        Returns:
            Columns layer; background, foreground (nats kept of a token) and foreground_error; concentration, its
            error, low and high; concentration_ratio; threshold (nats); foreground_points, background_points (per
            sentence) and their errors; foreground_share and its error; foreground_tokens, background_tokens; converged
            (share of the layer's rows that met the tolerance).

        Raises:
            ValueError: the foreground is none or all of the corpus; tokens were erased, which measures no information.
        """
        self._check_noise("knowledge points")
        classify, _ = self._classifier(by, lexicon, stop_words)
        converged = self.sentences.converged.mean(0)
        return words.knowledge(self.parts, self.layer_labels, classify, foreground, threshold, converged)

    def table(self) -> pd.DataFrame:
        """A line for each sentence and layer.

        Of words and tokens, ``result.explanation(rows).to_pandas("word")`` has the lines.

        Returns:
            Columns row (of the corpus), layer, tokens, kept, loss, kept_error, loss_error (of the solver),
            regime_index, distortion, rate, converged, n_forward, n_backward; where tokens were erased row, layer,
            tokens, words, erased, erased_error, damage, n_forward, n_backward.
        """
        import pandas as pd

        found, count = self.sentences, len(self.layer_labels)
        columns = {
            "row": np.repeat(found.rows, count),
            "layer": list(found.layers) * len(found.rows),
            "tokens": np.repeat(found.tokens.astype(int), count),
            **({"words": np.repeat(found.words.astype(int), count)} if found.erased else {}),
            **{name: values.ravel() for name, values in found.totals.items()},
            **{f"{name}_error": values.ravel() for name, values in found.errors.items()},
            **{name: values.ravel() for name, values in found.facts.items()},
        }
        whole = {"converged": bool, "n_forward": int, "n_backward": int}
        return pd.DataFrame(columns).astype({name: kind for name, kind in whole.items() if name in columns})

    def explanation(self, rows: Collection[int] | None = None) -> Explanation:
        """Some texts in full, to be drawn or listed; rows are numbers of the corpus, None is all of them.

        Raises:
            ValueError: a row that is not there, or has no numbers.
        """
        found = dict(explanations(self.parts, self.layer_labels, None if rows is None else set(rows)))
        if rows is not None:
            missing = sorted(set(rows) - set(found))
            if missing:
                raise ValueError(f"rows {missing[:5]} have no numbers in this study; failures() may say why")
        known = {f.name: self.settings[f.name] for f in fields(Settings) if f.name in self.settings}
        order = sorted(found) if rows is None else rows
        return Explanation(tuple(found[row] for row in order), Settings(**known), self.seconds)

    def plot(
        self,
        kind: Kind = "curve",
        *,
        per: Per | None = None,
        quantity: Quantity | None = None,
        others: Mapping[str, CorpusResult] | None = None,
        name: str | None = None,
        **classes: Any,
    ) -> Figure:
        """A Matplotlib figure.

        * "curve": means by layer with the 95 % interval; ``others`` adds more studies, by their names;
        * "classes": kept per token, or erased per word, word class x layer (further arguments are those of
          :meth:`word_classes`);
        * "regime": the distribution of E over the sentences by layer.

        Args:
            kind: one of the three.
            per, quantity: of the curve, as of :meth:`layers`; None: "kept" per token, or "erased" per word.
            others: of the curve: name -> study.
            name: of this study among them; None: its model's.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: another kind.
        """
        from interp_plugin.report import figures

        if kind == "curve":
            mine = {name or str(self.settings["model"]): self}
            found = [each.curve(label, per, quantity) for label, each in {**mine, **(others or {})}.items()]
            return figures.draw_curves(tables.curves(self, found, per, quantity))
        if kind == "classes":
            return figures.draw_heat_map(tables.classes(self.word_classes(**classes)))
        if kind == "regime" and (self.is_amortised or self.is_erased):
            raise ValueError("E is known only where the solver found the numbers, and not a head or erasures")
        if kind == "regime":
            return figures.draw_boxes(tables.regime(self))
        raise ValueError(f"kind {kind!r} is not known; there are: {', '.join(get_args(Kind))}")

    def curve(self, name: str, per: Per | None = None, quantity: Quantity | None = None) -> Curve:
        """A line of the plot of layers; ``per`` and ``quantity`` as of :meth:`plot`."""
        per = per or ("word" if self.is_erased else "token")
        return tables.curve(self.layers(), name, per, quantity or ("erased" if self.is_erased else "kept"))

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | Path:
        """A page with curves, tables and settings: the string, or the path of the file it was written to.

        Raises:
            ImportError: matplotlib is missing.
            OSError: the file cannot be written; one that was there before stays as it was.
        """
        from interp_plugin.report import html

        page = html.page(tables.report(self))
        if path is None:
            return page
        replace_file(path, page.encode())
        return Path(path)

    def to_dict(self, other: CorpusResult | None = None) -> dict[str, Any]:
        """The tables and what they depend on, ready for strict JSON; what is not finite is None.

        Args:
            other: is taken from this one, as in :meth:`compare`.
        """
        found = {"layers": self.layers()}
        found |= (
            {"word_classes": self.word_classes()} if self.is_erased else {"monotonicity": self.monotonicity()}
        )
        if self.is_amortised:
            found["check"] = self.check()
        if other is not None:
            found["differences"] = self.compare(other)
        values: dict[str, Any] = plain(
            {
                "settings": dict(self.settings),
                "texts": self.texts,
                "seconds": self.seconds,
                "failures": [asdict(failure) for failure in self.failures()],
                **{name: table.to_dict("records") for name, table in found.items()},
            }
        )
        return values

    def show(self, other: CorpusResult | None = None, console: Console | None = None) -> None:
        """Print the layers' table and, where another study of the same texts is given, how they differ.

        Args:
            other: is taken from this one, as in :meth:`compare`.
            console: default a new one on stdout.

        Raises:
            ValueError: as of :meth:`compare`.
        """
        from interp_plugin.report import terminal

        terminal.show(tables.report(self, other, whole=False), console)

    def _classifier(
        self, by: By, lexicon: Mapping[str, str] | None, stop_words: Collection[str] | None
    ) -> tuple[words.Classify, list[str] | None]:
        if not self.texts:
            raise ValueError(quantities.NO_NUMBERS)
        return words.classifier(by, self.parts, len(self.layer_labels), lexicon, stop_words)

    def _check_noise(self, what: str) -> None:
        if self.is_erased:
            raise ValueError(
                f"{what}: of information kept, and the study was run with score='erased'; run it with score='kept'"
            )
