"""CorpusResult: the results of a corpus study, read from its parts: tables, explanations, figures and a page."""

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

# settings that must be equal for the results of two studies to be paired
DRAWS = ("seed", "tolerance", "draws", "iterations", "rate", "truncation", "erased")


@dataclass(frozen=True)
class CorpusResult:
    """The results of a corpus study, read from its parts when they are needed, in bounded memory.

    Attributes:
        path: the folder of the parts.
        parts: the complete parts, in the order of the corpus.
        settings: the settings that the results depend on: model, weights, layers, rate, solver, versions and more.

    Examples: see :class:`CorpusStudy`.
    """

    path: Path
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], partial: bool = False, max_errors: int | None = None
    ) -> CorpusResult:
        """Load the study in a folder, and check each part.

        Args:
            path: of the folder.
            partial: accept a study that is still running or has lost parts.
            max_errors: maximum number of failed texts, because processes that share a corpus only count their own.

        Raises:
            ValueError: there is no study; parts are missing or damaged (unless partial); parts have different
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
                f"the study in {str(path)!r} is not complete: {state}; run it again with the same texts and folder, or "
                "load it with partial=True"
            )
        result = cls(Path(path), tuple(found[number] for number in sorted(found)), settings[0])
        failed = len(result.failures())
        if max_errors is not None and failed > max_errors:
            raise ValueError(
                f"{failed} texts failed and max_errors is {max_errors}; correct the texts, or allow more"
            )
        return result

    @property
    def is_amortised(self) -> bool:
        """Whether a head predicted the results."""
        return self.settings.get("amortised") is not None

    @property
    def is_erased(self) -> bool:
        """Whether tokens were erased; otherwise noise was learned."""
        return self.settings.get("erased") is not None

    @property
    def units(self) -> dict[Label, str]:
        """The unit of each layer's erasure scores: nats for log-odds or log probability of the output, else D."""
        output = self.settings.get("output_unit", "nats")
        return {label: output if label == OUTPUT else "D" for label in self.layer_labels}

    @property
    def layer_labels(self) -> tuple[Label, ...]:
        """The layers, in forward order."""
        return tuple(self.settings["layers"])

    @property
    def texts(self) -> int:
        """Number of texts with results."""
        return sum(part.about.texts for part in self.parts)

    @property
    def seconds(self) -> float:
        """Scoring time, the sum over processes."""
        return sum(part.about.seconds for part in self.parts)

    def failures(self) -> list[Failure]:
        """Return the rows of the corpus without results, with reasons."""
        return [failure for part in self.parts for failure in part.failures]

    def __repr__(self) -> str:
        failed = sum(part.about.failures for part in self.parts)
        layers = ", ".join(map(repr, self.layer_labels))
        model = self.settings["model"]
        return f"CorpusResult({self.texts} texts, {failed} failed, layers {layers}, model {model!r})"

    @cached_property
    def sentences(self) -> Sentences:
        """Results for each sentence, layer and quantity: all that is held in memory of the corpus."""
        return Sentences.read(self.parts, self.layer_labels, self.is_erased)

    def layers(self, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Return means over the corpus, a line for each layer, quantity and unit.

        "kept" is I and "loss" is H(X|S), in nats.  Means are per

        * "sentence": sum over its tokens, mean over sentences (the paper's corpus level);
        * "token": sum over all tokens of the corpus, divided by their number;
        * "token of a sentence": mean over a sentence's tokens, mean over sentences (sentences have equal weights);
        * "dimension": as "token", divided by K, to compare models of different widths.

        Lines per sentence also exist for regime_index (over sentences whose state moved), distortion, rate, converged
        and saturated (0 or 1), n_forward and n_backward (sample passes).  A few sentences can have extreme E and D, so
        both also have a line per "median sentence", whose "mean" is the median, with the interval of the sign test.
        H(X) is the same for every layer and model, so differences of "loss" are differences of MI with the opposite
        sign.

        If tokens were erased, the quantity is "erased", the signed score that is lost with them: nats of log-odds of
        the predicted class for the output, D for other layers (:attr:`units`).  Means are per "sentence", "token",
        "word" (sum over the words of the corpus, divided by their number) and "word of a sentence"; special tokens
        are never erased and not counted.  Lines per sentence also exist for damage, n_forward and n_backward.

        Returns:
            Columns layer, quantity, per, mean, standard_error (over sentences), low, high (95 % bootstrap interval
            over sentences), solver_error (from the noise draws or masks, for the worst case that the errors of all
            sentences have the same sign: they share their seed), sentences, converged (share of the layer's rows that
            met the tolerance; NaN if they were predicted, or tokens were erased).
        """
        return quantities.layer_means(self.sentences, resamples, seed)

    def monotonicity(self, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Test whether a layer keeps more than the layer it is computed from.

        No layer can have more information on the input than the layer it is computed from (the data-processing
        inequality).  Information kept need not obey this exactly: it depends on the rate and on each layer's unit of
        distortion, so without a calibration, or far from E = 1, it may grow.  If it grows significantly, compare layers
        with care.

        Returns:
            Columns layer, after (the layer it is computed from), growth (kept in layer minus kept in after, nats per
            sentence, paired), standard_error, low, high, share (of sentences with growth), p (one-sided t-test), p_holm
            (corrected for all pairs of layers), violation (growth above 0 with p_holm below 0.05), converged (share of
            sentences whose rows of both layers met the tolerance).

        Raises:
            ValueError: tokens were erased, which does not measure information.
        """
        self._check_noise("growth with depth")
        return quantities.growth(self.sentences, resamples, seed)

    def compare(self, other: CorpusResult, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Return this study minus another of the same texts and draws: two models, or two checkpoints of one.

        Differences are paired by sentence, which removes the variation between sentences; texts that failed in either
        study are left out.  "kept" is relative to each model's own input_std, and "loss" depends on the scale of its
        embeddings.

        Returns:
            Columns layer, quantity, per (as for :meth:`layers`), difference, standard_error, low, high, p (paired
            t-test), p_holm (corrected for the layers), sentences, converged (share of sentences whose rows of both
            studies met the tolerance).

        Raises:
            ValueError: the studies have different texts, no layer in common, or settings that prevent pairing.
        """
        for name in DRAWS:
            ours, theirs = self.settings.get(name), other.settings.get(name)
            if ours != theirs:
                raise ValueError(
                    f"{name} is {ours!r} in one study and {theirs!r} in the other, so their results are not paired; "
                    "run both with the same value"
                )
        return quantities.differences(self.sentences, other.sentences, resamples, seed)

    def check(self) -> pd.DataFrame:
        """Compare the predictions of an amortised study with the solver, on the texts that it checked.

        Returns:
            Columns layer; texts (number of checked texts); held_out and error: r.m.s. of predicted minus solved log
            sigma on the held-out texts of the training, and on this corpus; noise (r.m.s. standard error of the solver
            on this corpus, a part of error); spearman (over a text's tokens, mean over texts); covered (share of tokens
            within two standard errors); shift (nats kept per token, predicted minus solved, mean over texts) and
            shift_error (its standard error); p (one-sided Welch test on the logarithms of texts' mean squares that
            errors are more than a tenth larger on this corpus), p_holm (corrected for the layers), drift (p_holm below
            0.01).

        Raises:
            ValueError: the solver computed the results, so there is nothing to check.
        """
        if not self.is_amortised:
            raise ValueError(f"the solver computed all results of {str(self.path)!r}: nothing was predicted")
        return quantities.agreement(self.parts, self.layer_labels, self.settings["held_out"])

    def word_classes(
        self,
        by: By = "kind",
        lexicon: Mapping[str, str] | None = None,
        stop_words: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Return what each layer keeps of each class of words, per token.

        A token belongs to the class of its word.  Special tokens are always a separate class.  Classes are

        * "kind": special tokens, punctuation, stop words (by default scikit-learn's English ones), other words;
        * "lexicon": the class of the word in ``lexicon``, or "other"; case is ignored;
        * "tag": the word's tag in the corpus's tag column, or the tag of the whole text;
        * "frequency": how often the word occurs in this corpus, counted in an extra pass.

        Returns:
            Columns layer, class, tokens, sentences (with a token of the class), kept (nats per token), standard_error
            (over sentences), low, high (95 %), loss (nats per token), share (of all nats that the layer keeps),
            converged (share of the layer's rows that met the tolerance).  If tokens were erased: words in place of
            tokens, erased (per word, signed, in :attr:`units`) in place of kept, magnitude (mean of the words' absolute
            scores) in place of loss, share (of the sum of absolute scores), and no special tokens, which are never
            erased.
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
        """Return knowledge points and concentration of each layer.

        A knowledge point is a token of which a layer loses less than of the background, by more than a threshold:
        mean H of the background over the corpus - H_i > b (Cheng et al., Explaining Knowledge Distillation by
        Quantifying the Knowledge, CVPR 2020, for regions of images; here for tokens).  The quality of a layer's
        knowledge is the share of its points in the foreground, averaged over sentences that have points.
        Concentration is what a layer keeps per foreground token compared with a background token, over all tokens of
        the corpus, as a difference and as a ratio: after Ma et al. (Quantification and Analysis of Layer-wise and
        Pixel-wise Information Discarding, arXiv:1906.04109), who compare the pixels of an object with those around
        it; the formula is ours.

        Args:
            threshold: b, in nats per dimension of the embedding: 0.2 is a noise smaller by 18 %.
            foreground: classes of the foreground; all others are the background.
            by, lexicon, stop_words: as for :meth:`word_classes`.

        Returns:
            Columns layer; background, foreground (nats kept per token) and foreground_error; concentration, its
            error, low and high; concentration_ratio; threshold (nats); foreground_points, background_points (per
            sentence) and their errors; foreground_share and its error; foreground_tokens, background_tokens; converged
            (share of the layer's rows that met the tolerance).

        Raises:
            ValueError: foreground or background is empty; tokens were erased, which does not measure information.
        """
        self._check_noise("knowledge points")
        classify, _ = self._classifier(by, lexicon, stop_words)
        converged = self.sentences.converged.mean(0)
        return words.knowledge(self.parts, self.layer_labels, classify, foreground, threshold, converged)

    def table(self) -> pd.DataFrame:
        """Return a line for each sentence and layer.

        For lines of words and tokens, see ``result.explanation(rows).to_pandas("word")``.

        Returns:
            Columns row (of the corpus), layer, tokens, kept, loss, kept_error, loss_error (of the solver),
            regime_index, distortion, rate, converged, saturated, n_forward, n_backward; if tokens were erased, row,
            layer, tokens, words, erased, erased_error, damage, n_forward, n_backward.
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
        whole = {"converged": bool, "saturated": bool, "n_forward": int, "n_backward": int}
        return pd.DataFrame(columns).astype({name: kind for name, kind in whole.items() if name in columns})

    def explanation(self, rows: Collection[int] | None = None) -> Explanation:
        """Return the explanations of the texts in these rows of the corpus; None: of all texts.

        Raises:
            ValueError: a row does not exist or has no results.
        """
        found = dict(explanations(self.parts, self.layer_labels, None if rows is None else set(rows)))
        if rows is not None:
            missing = sorted(set(rows) - set(found))
            if missing:
                raise ValueError(f"rows {missing[:5]} have no results in this study; failures() may tell why")
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
        """Draw a Matplotlib figure.

        * "curve": means by layer with the 95 % interval;
        * "classes": kept per token, or erased per word, for each word class and layer;
        * "regime": the distribution of E over the sentences, by layer.

        Args:
            kind: "curve", "classes" or "regime".
            per, quantity: for "curve", as for :meth:`layers`; None: "kept" per token, or "erased" per word.
            others: for "curve": further studies, by name.
            name: for "curve": name of this study; None: its model's name.
            classes: for "classes": arguments of :meth:`word_classes`.

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
            raise ValueError(
                "E is known only if the solver computed the results, not for predictions or erasures"
            )
        if kind == "regime":
            return figures.draw_boxes(tables.regime(self))
        raise ValueError(f"kind {kind!r} is not known; there are: {', '.join(get_args(Kind))}")

    def curve(self, name: str, per: Per | None = None, quantity: Quantity | None = None) -> Curve:
        """Return the curve of the plot of layers; ``per`` and ``quantity`` as for :meth:`plot`."""
        per = per or ("word" if self.is_erased else "token")
        return tables.curve(self.layers(), name, per, quantity or ("erased" if self.is_erased else "kept"))

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | Path:
        """Return a page with curves, tables and settings, or write it to a file and return the path.

        Raises:
            ImportError: matplotlib is missing.
            OSError: the file cannot be written; an existing file is left unchanged.
        """
        from interp_plugin.report import html

        page = html.page(tables.report(self))
        if path is None:
            return page
        replace_file(path, page.encode())
        return Path(path)

    def to_dict(self, other: CorpusResult | None = None) -> dict[str, Any]:
        """Return tables, settings and failures as plain values for strict JSON; numbers that are not finite are None.

        Args:
            other: a study to compare with, as in :meth:`compare`.
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
        """Print the table of layers and, if another study of the same texts is given, the differences.

        Args:
            other: a study to compare with, as in :meth:`compare`.
            console: None: a new one on stdout.

        Raises:
            ValueError: as for :meth:`compare`.
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
                f"cannot compute {what}: the study was run with score='erased', which does not measure information; "
                "run it with score='kept'"
            )
