"""Origin: the one model and settings that a head was trained for; with any other it refuses to work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from interp_plugin.corpus.check import HeldOut
from interp_plugin.corpus.result import CorpusResult
from interp_plugin.fingerprint import differences, weights_digest
from interp_plugin.text.calibration import Calibration
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.models import OUTPUT, TextModel, shown
from interp_plugin.text.storage import Kinds, check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MADE_FOR = ("weights", "noise_layer", "layers", "rate", "max_sigma", "input_std", "calibration")
SOLVER = ("seed", "tolerance", "draws", "iterations")
_SETTINGS: Kinds = {
    "weights": str, "noise_layer": str, "layers": list, "rate": (float, int), "max_sigma": (float, int),
    "input_std": (float, int), "calibration": (str, None), "seed": int, "tolerance": (float, int), "draws": int,
    "iterations": (int, None),
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a head was trained for, and how it did.

    Attributes:
        settings: what must be the same where it is used, and the solver's that it learned from.
        texts: how many it learned from.
        held_out: how far it is off on others.
        words: some texts (with their pair) and the ids that the tokenizer makes of them.
    """

    settings: Mapping[str, Any]
    texts: int
    held_out: HeldOut
    words: Sequence[tuple[str, str | None, Sequence[int]]]

    @classmethod
    def of_file(cls, plain: Mapping[str, Any]) -> About:
        """From its fields as JSON gives them.

        Raises:
            ValueError: no head has these.
        """
        check_fields(plain, {"settings": dict, "texts": int, "held_out": dict, "words": list})
        settings, held_out = plain["settings"], plain["held_out"]
        check_fields(settings, _SETTINGS)
        for name in ("rate", "max_sigma", "input_std", "tolerance"):
            if not 0 < settings[name] < math.inf:
                raise ValueError(f"{name} is {settings[name]}, which must be positive")
        labels = settings["layers"]
        if not labels or not all(isinstance(label, (int, str)) for label in labels):
            raise ValueError(f"layers is {labels!r}, and there must be some")
        lists = {field.name: list for field in fields(HeldOut) if field.name != "texts"}
        check_fields(held_out, {"texts": int, **lists})
        for name in lists:
            if [type(value) for value in held_out[name]] != [float] * len(labels):
                raise ValueError(
                    f"{name} of the texts held out is {held_out[name]!r}, not a number for each layer"
                )
        for each in plain["words"]:
            if not _is_words(each):
                raise ValueError(f"words holds {shown(repr(each))}, not a text, its pair and their ids")
        return cls(**{**plain, "held_out": HeldOut.restored(held_out)})


def common_settings(studies: Sequence[CorpusResult]) -> dict[str, Any]:
    """What all the studies share, and the solver of the first.

    Raises:
        ValueError: none are given, they differ, or no head can learn from them.
    """
    if not studies:
        raise ValueError("there is no study to learn from: give at least one")
    first = studies[0].settings
    for study in studies:
        settings = study.settings
        check_settings(settings, first, f"the study in {str(studies[0].path)!r}")
        if settings.get("amortised") is not None:
            raise ValueError(
                f"the study in {str(study.path)!r} was predicted by a head itself; give one that the solver made"
            )
        if settings["distortion"] is not None:
            raise ValueError(
                f"the study in {str(study.path)!r} is at equal distortion {settings['distortion']}, where every text "
                "has a rate of its own; give one at equal rate"
            )
        if settings["input_std"] is None:
            raise ValueError(
                f"the study in {str(study.path)!r} has no input_std, so that every text has its own; give it one"
            )
    return {name: first[name] for name in (*MADE_FOR, *SOLVER)}


def explainer_of(
    model: PreTrainedModel | TextModel,
    tokenizer: PreTrainedTokenizerBase | None,
    known: Mapping[str, Any],
    calibration: Calibration | None,
    what: str,
) -> TextExplainer:
    """The model, ready to be asked as it was where ``what`` was made.

    Raises:
        ValueError: it is another one.
    """
    bare = TextExplainer(model, tokenizer)
    check_settings({"weights": weights_digest(bare.model.module)}, {"weights": known["weights"]}, what)
    _check_output(bare.model, known["layers"])
    plan = bare.plan(
        known["layers"], rate=known["rate"], max_sigma=known["max_sigma"], input_std=known["input_std"]
    )
    usual = bare.settings(plan).noise_layer == known["noise_layer"]
    explainer = TextExplainer(bare.model, None, None if usual else known["noise_layer"], calibration)
    digest = explainer.settings(plan).calibration
    check_settings({"calibration": digest}, {"calibration": known["calibration"]}, what)
    return explainer


def check_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """See that what both say of what a head is good for is the same.

    Raises:
        ValueError: it is not.
    """
    names = [name for name in MADE_FOR if name in ours and name in theirs]
    found = differences({name: ours[name] for name in names}, {name: theirs[name] for name in names})
    if found:
        wrong = [f"{name} is {here!r} here and {there!r} there" for name, here, there in found]
        raise ValueError(
            f"{what} was made for something else, and nothing is extrapolated: {', '.join(wrong)}; give what it was "
            "made for, or train a head for this"
        )


def check_words(model: TextModel, about: About) -> None:
    """See that the tokens are those of the training.

    Raises:
        ValueError: they are not.
    """
    for text, pair, ids in about.words:
        if list(model.encode(text, pair, truncation=True).ids) != list(ids):
            raise ValueError(
                f"the head was trained with another tokenizer, which has other tokens for {shown(text)}; give that one"
            )


def _is_words(each: Any) -> bool:
    """Whether this is a text, its pair and their ids, as JSON gives them."""
    if not isinstance(each, list) or len(each) != 3:
        return False
    text, pair, ids = each
    return isinstance(text, str) and isinstance(pair, (str, type(None))) and isinstance(ids, list)


def _check_output(model: TextModel, layers: Sequence[int | str]) -> None:
    if OUTPUT in layers and model.task == "next token":
        raise ValueError(
            "a head cannot predict the output of a language model, which depends on what it is asked for; leave "
            "'output' out of the layers"
        )
