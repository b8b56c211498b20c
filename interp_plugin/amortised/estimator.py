"""AmortisedEstimator: a trained head, the model and settings it was trained for, and its error on held-out texts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interp_plugin import files
from interp_plugin.amortised.head import Head, Recorder, examples, features, solved_texts, train, watch
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.files import Kinds, check_fields, differences, weights_digest
from interp_plugin.method.solver import Solver
from interp_plugin.statistics import HeldOut
from interp_plugin.text.batch import Batch, batches
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.explanation import Explanation, Row, TextExplanation
from interp_plugin.text.inputs import Text
from interp_plugin.text.models import OUTPUT, Encoding, TextModel, shown
from interp_plugin.text.scoring import Plan, score
from interp_plugin.text.states import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = "interp_plugin amortised head 5"
EPOCHS = 60
WORDS = 3  # number of training texts that are stored with their token ids, to recognise another tokenizer
MADE_FOR = ("weights", "noise_layer", "layers", "rate", "max_sigma", "input_std", "calibration")
SOLVER = ("seed", "tolerance", "draws", "iterations")
_SETTINGS: Kinds = {
    "weights": str, "noise_layer": str, "layers": list, "rate": (float, int), "max_sigma": (float, int),
    "input_std": (float, int), "calibration": (str, None), "seed": int, "tolerance": (float, int), "draws": int,
    "iterations": (int, None),
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """The settings that a head was trained for, and its error.

    Attributes:
        settings: settings that must be equal when it is used, and those of the solver that it learned from.
        texts: number of training texts.
        held_out: its error on other texts.
        words: some texts (with their pair) and their token ids.
    """

    settings: Mapping[str, Any]
    texts: int
    held_out: HeldOut
    words: Sequence[tuple[str, str | None, Sequence[int]]]

    @classmethod
    def of_file(cls, plain: Mapping[str, Any]) -> About:
        """Create it from its fields as JSON values.

        Raises:
            ValueError: the fields are not those of a head.
        """
        check_fields(plain, {"settings": dict, "texts": int, "held_out": dict, "words": list})
        settings, held_out = plain["settings"], plain["held_out"]
        check_fields(settings, _SETTINGS)
        for name in ("rate", "max_sigma", "input_std", "tolerance"):
            if not 0 < settings[name] < math.inf:
                raise ValueError(f"{name} is {settings[name]}, which must be positive")
        labels = settings["layers"]
        if not labels or not all(isinstance(label, (int, str)) for label in labels):
            raise ValueError(f"layers is {labels!r}: it must be a list of labels that is not empty")
        lists = {field.name: list for field in fields(HeldOut) if field.name != "texts"}
        check_fields(held_out, {"texts": int, **lists})
        for name in lists:
            if [type(value) for value in held_out[name]] != [float] * len(labels):
                raise ValueError(
                    f"{name} of the texts held out is {held_out[name]!r}, not a number for each layer"
                )
        for each in plain["words"]:
            if not _is_words(each):
                raise ValueError(f"words holds {shown(repr(each))}, not a text, its pair and their token ids")
        return cls(**{**plain, "held_out": HeldOut.restored(held_out)})


class AmortisedEstimator:
    """Predicts sigma of every token and layer from one forward pass without noise, in place of the solver.

    The head is trained on studies computed by the solver, for one model, tokenizer, layers, rate, cap and unit of
    distortion; with any others an error is raised.  Pass it to :class:`~interp_plugin.CorpusStudy` as ``amortised``.

    Attributes:
        model: the model that it was trained for.
        calibration: the unit of distortion; give it to the studies that use the head.
        about: the settings that it was trained for, and its error on held-out texts.

    Examples::
        >>> import tempfile
        >>> from interp_plugin import AmortisedEstimator, CorpusStudy, Solver, huggingface
        >>> model, tokenizer = huggingface.load(huggingface.default_model_path())
        >>> texts = [f"a {how} {what}" for how in ("good", "bad", "dull", "funny", "long") for what in (
        ...     "film", "story", "end", "plot", "cast")]
        >>> study = CorpusStudy(model, tokenizer, layers=[1, 2], solver=Solver(tolerance=0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = study.run(texts, folder, show_progress=False)
        ...     head = AmortisedEstimator.train(model, tokenizer, result, held_out=0.2, show_progress=False)
        >>> predicted = head.predict("a funny film")
        >>> predicted[0].layers, predicted[0].rows[0].n_forward, predicted[0].rows[0].n_backward
        ((1, 2), 1, 0)
    """

    def __init__(self, explainer: TextExplainer, head: Head, about: About) -> None:
        self.model, self.calibration, self.about = explainer.model, explainer.calibration, about
        self._explainer, self._head = explainer, head
        known = about.settings
        solver = Solver(**{name: known[name] for name in SOLVER})
        self._plan = _plan(explainer, known, solver)

    @classmethod
    def train(
        cls,
        model: PreTrainedModel | TextModel,
        tokenizer: PreTrainedTokenizerBase | None,
        studies: CorpusResult | str | os.PathLike[str] | Sequence[CorpusResult | str | os.PathLike[str]],
        calibration: Calibration | None = None,
        *,
        held_out: float = 0.1,
        epochs: int = EPOCHS,
        seed: int = 0,
        batch_size: int = 16,
        show_progress: bool = True,
    ) -> AmortisedEstimator:
        """Train a head on studies computed by the solver.

        The states of all texts are held in memory, with two bytes per number.

        Args:
            model, tokenizer: of the studies.
            studies: one or more, or their folders, with hundreds of texts or more.  Their solvers may differ in seed
                and budget: several seeds are better than one, because all texts have the same draws at a position.
            calibration: of the studies.
            held_out: share of the texts that are not used for training, but to measure the error.
            epochs: number of passes over the training texts.
            seed: of the choice of held-out texts, and of the training.
            batch_size: maximum number of texts in a forward pass of the model.
            show_progress: show progress bars.

        Raises:
            ValueError: the studies are of another model, tokenizer or calibration, or differ in other settings of a
                head; there are too few texts; a study is of erasures, of predictions or of a language model's output,
                or has no input_std.
        """
        several = [studies] if isinstance(studies, (CorpusResult, str, os.PathLike)) else studies
        results = [each if isinstance(each, CorpusResult) else CorpusResult.load(each) for each in several]
        known = common_settings(results)
        explainer = explainer_of(model, tokenizer, known, calibration, "the study")
        texts = solved_texts(explainer.model, results)
        given = examples(explainer.model, _plan(explainer, known), texts, batch_size, show_progress)
        found = [text for text, _ in texts]
        head, error = train(found, given, held_out, epochs, seed, show_progress)
        shortest = sorted(texts, key=lambda pair: len(pair[1].ids))[:WORDS]
        words = [(text.text, text.pair, list(encoding.ids)) for text, encoding in shortest]
        return cls(explainer, head, About(known, len(texts) - error.texts, error, words))

    @property
    def digest(self) -> str:
        """A digest of the head's weights and of ``about``."""
        found = hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode())
        found.update(weights_digest(self._head).encode())
        return found.hexdigest()[:16]

    @property
    def held_out(self) -> HeldOut:
        """Its error on texts that it was not trained on."""
        return self.about.held_out

    @property
    def layers(self) -> tuple[int | str, ...]:
        """Labels of the layers, in forward order."""
        return tuple(self.about.settings["layers"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the head, its calibration and a few short texts atomically to a safetensors file."""
        tensors = {f"head.{name}": value for name, value in self._head.state_dict().items()}
        about = self._plain()
        if self.calibration is not None:
            about["calibration"] = self.calibration.about
            tensors |= {f"calibration.{key}": v for key, v in self.calibration.state_std.items()}
        files.write_tensors(path, FORMAT, about, tensors)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: PreTrainedModel | TextModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> AmortisedEstimator:
        """Load a file written by :meth:`save`.

        Args:
            path: of the file.
            model, tokenizer: that the head was trained for.

        Raises:
            OSError: the file does not exist.
            ValueError: the file is not a head, is damaged, or comes from another version; the head was trained for
                another model or tokenizer.
        """
        about, tensors = files.read_tensors(path, FORMAT, "give the file of a saved head, or train one again")
        try:
            unit = about.pop("calibration", None)
            if unit is not None:
                unit = Calibration.of_file(unit, _part("calibration", tensors))
            known = About.of_file(about)
            head = Head.of(_part("head", tensors), len(known.settings["layers"]))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r} holds no head: {error}; train one again") from error
        explainer = explainer_of(model, tokenizer, known.settings, unit, f"the head in {os.fspath(path)!r}")
        check_words(explainer.model, known)
        return cls(explainer, head, known)

    def predict(
        self,
        texts: Text | Sequence[Text],
        batch_size: int = 16,
        truncation: bool = False,
        show_progress: bool = False,
    ) -> Explanation:
        """Predict the result of :meth:`TextExplainer.explain`.

        The standard errors of a row are the error on held-out texts; its E and D are not known (NaN).

        Args:
            texts: one text, one pair of sentences, or a list of either.
            batch_size: maximum number of texts in a forward pass.
            truncation: truncate texts that are too long for the model.
            show_progress: show a progress bar.

        Raises:
            ValueError, TypeError: as for :meth:`TextExplainer.encode`.
        """
        start = time.perf_counter()
        encodings = self._explainer.encode(texts, truncation)
        found: dict[int, TextExplanation] = {}
        with tqdm(total=len(encodings), desc="texts", disable=not show_progress) as bar:
            for some in batches(encodings, batch_size, self.model.pads):
                scored = score(self.model, [encodings[i] for i in some], self._plan, self)
                found.update(zip(some, scored))
                bar.update(len(some))
        items = tuple(found[index] for index in range(len(encodings)))
        settings = replace(self._explainer.settings(self._plan), amortised=self.digest)
        return Explanation(items, settings, time.perf_counter() - start)

    def watch(self, model: TextModel, encodings: Sequence[Encoding]) -> Recorder:
        """Return a context around the forward pass of the model; see :class:`scoring.Finder`."""
        return watch(model, encodings)

    @torch.no_grad()
    def rows(self, batch: Batch, plan: Plan, seen: Recorder) -> list[tuple[Row, ...]]:
        """Return the rows of each text of a batch; see :class:`scoring.Finder`.

        Raises:
            ValueError: the forward pass gives more or fewer features than in training.
        """
        vectors, few = features(self.model, batch, plan.states, seen)
        head = self._head.to(vectors.device)
        if few.shape[-1] != head.few:
            raise ValueError(
                f"a forward pass gives {few.shape[-1]} numbers of each token, and the head was trained with "
                f"{head.few}: the attention kernel differs; load the model with the attn_implementation of the training"
            )
        log_sigma = head(vectors, few, batch.token_mask).cpu()
        return [
            tuple(self._row(number, plan, values[mask, number]) for number in range(len(plan.states)))
            for values, mask in zip(log_sigma, batch.token_mask.cpu())
        ]

    def check(self, model: TextModel, settings: Mapping[str, Any]) -> None:
        """Check that a study has the settings that the head was trained for.

        Args:
            model, settings: of the study.

        Raises:
            ValueError: they differ.
        """
        check_settings(settings, self.about.settings, "the head")
        check_words(model, self.about)

    def _row(self, number: int, plan: Plan, log_sigma: Tensor) -> Row:
        cap = float(self.about.settings["max_sigma"])
        error, mean_error = (getattr(self.held_out, name)[number] for name in ("error", "mean_error"))
        sigma = log_sigma.exp().clamp(max=cap)
        below = sigma < cap
        return Row(
            layer=plan.states[number].label,
            position=None,
            sigma=sigma,
            standard_error=error * below,
            common_error=mean_error * float(below.float().mean()),
            max_sigma=cap,
            input_std=float(self.about.settings["input_std"]),
            regime_index=math.nan,
            distortion=math.nan,
            converged=error <= plan.solver.tolerance,
            n_forward=1,
            n_backward=0,
        )

    def _plain(self) -> dict[str, Any]:
        """Return everything but the weights, ready for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self.about)))
        return plain


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without the prefix."""
    return {
        key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
    }


def common_settings(studies: Sequence[CorpusResult]) -> dict[str, Any]:
    """Return the settings that the studies have in common, and those of the first study's solver.

    Raises:
        ValueError: there is no study, the studies differ, or a head cannot be trained on them.
    """
    if not studies:
        raise ValueError("there is no study to train on: give at least one")
    first = studies[0].settings
    for study in studies:
        settings = study.settings
        check_settings(settings, first, f"the study in {str(studies[0].path)!r}")
        if settings.get("amortised") is not None:
            raise ValueError(
                f"the study in {str(study.path)!r} was predicted by a head; give one computed by the solver"
            )
        if study.is_erased:
            raise ValueError(
                f"the study in {str(study.path)!r} is of erasures, and a head predicts sigma; give a study with "
                "score='kept'"
            )
        if settings["input_std"] is None:
            raise ValueError(
                f"the study in {str(study.path)!r} has no input_std, so every text has its own; run it with input_std"
            )
    return {name: first[name] for name in (*MADE_FOR, *SOLVER)}


def explainer_of(
    model: PreTrainedModel | TextModel,
    tokenizer: PreTrainedTokenizerBase | None,
    known: Mapping[str, Any],
    calibration: Calibration | None,
    what: str,
) -> TextExplainer:
    """Return an explainer with the model and settings of ``what``.

    Raises:
        ValueError: the model, tokenizer or calibration differs.
    """
    bare = TextExplainer(model, tokenizer)
    check_settings({"weights": weights_digest(bare.model.module)}, known, what)
    if OUTPUT in known["layers"] and bare.model.task == "next token":
        raise ValueError(
            "a head cannot predict the output of a language model, which depends on its target; leave 'output' out of "
            "the layers"
        )
    plan = _plan(bare, known)
    usual = bare.settings(plan).noise_layer == known["noise_layer"]
    explainer = TextExplainer(bare.model, None, None if usual else known["noise_layer"], calibration)
    check_settings({"calibration": explainer.settings(plan).calibration}, known, what)
    return explainer


def _plan(explainer: TextExplainer, known: Mapping[str, Any], solver: Solver | None = None) -> Plan:
    """Return the plan for the settings of a head."""
    names = ("rate", "max_sigma", "input_std")
    return explainer.plan(known["layers"], solver=solver, **{name: known[name] for name in names})


def check_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """Check that the settings that a head is trained for are equal.

    Raises:
        ValueError: they differ.
    """
    names = [name for name in MADE_FOR if name in ours and name in theirs]
    found = differences({name: ours[name] for name in names}, {name: theirs[name] for name in names})
    if found:
        wrong = [f"{name} is {here!r} here and {there!r} there" for name, here, there in found]
        raise ValueError(
            f"{what} was made for other settings, and heads do not extrapolate: {', '.join(wrong)}; use the same "
            "settings, or train a head for these"
        )


def check_words(model: TextModel, about: About) -> None:
    """Check that the tokenizer gives the same tokens as in training.

    Raises:
        ValueError: it does not.
    """
    for text, pair, ids in about.words:
        if list(model.encode(text, pair, truncation=True).ids) != list(ids):
            raise ValueError(
                f"the head was trained with another tokenizer, which gives other tokens for {shown(text)}; use that one"
            )


def _is_words(each: Any) -> bool:
    """Return whether a JSON value is a text, its pair and their token ids."""
    if not isinstance(each, list) or len(each) != 3:
        return False
    text, pair, ids = each
    return isinstance(text, str) and isinstance(pair, (str, type(None))) and isinstance(ids, list)
