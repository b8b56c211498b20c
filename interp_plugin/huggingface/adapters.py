"""Adapters that PEFT saved: a folder with their weights alone, and the name of the model they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# The class of the base model by what the adapter was trained for; a bare model for anything else.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


class UntrainedError(ValueError):
    """Weights are missing that transformers would fill with random numbers."""


def adapter_of(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """What an adapter says of itself; None: there is no adapter of that name.

    Args:
        name: a folder, or a Hugging Face id that is cached or within reach.
    """
    if Path(name).is_dir():
        path: Any = Path(name, CONFIG)
        path = path if path.is_file() else None
    else:
        from transformers.utils import find_adapter_config_file

        try:
            path = find_adapter_config_file(name, revision=revision)
        except (OSError, ValueError):  # no such id: it is no model either, and the caller says so
            path = None
    return None if path is None else dict(json.loads(Path(path).read_text(encoding="utf-8")))


def base_path(name: str, adapter: dict[str, Any]) -> str:
    """Where the adapter's base model is: as written, or beside the adapter if it is a relative path.

    Raises:
        ValueError: the adapter does not say.
    """
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{CONFIG} of {name!r} names no base_model_name_or_path; write it there")
    beside = Path(name, base)
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base)


def load_adapter(
    name: str, adapter: dict[str, Any], options: dict[str, Any], revision: str | None = None
) -> Any:
    """The base model with the adapter on it.

    Args:
        options: of the base model's ``from_pretrained``, ``trust_remote_code`` among them.
        revision: of the adapter.

    Raises:
        ValueError: there are no such weights, or neither base model nor adapter has those of the head.
        ImportError: PEFT is not installed.
    """
    try:
        from peft import PeftModel
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise ImportError(
            f"{name!r} holds an adapter, and PEFT, which reads it, is not installed: pip install peft"
        ) from error
    import transformers

    weights = load_peft_weights(name, device="cpu", revision=revision)
    kind = _CLASSES.get(str(adapter.get("task_type")), "AutoModel")
    base = base_path(name, adapter)
    classes = _count_of_classes(weights) if kind.endswith("Classification") else None
    settings = transformers.AutoConfig.from_pretrained(
        base, revision=adapter.get("revision"), trust_remote_code=options["trust_remote_code"]
    )
    if classes is not None and classes != settings.num_labels:
        settings.num_labels = classes
    model, report = getattr(transformers, kind).from_pretrained(
        base, config=settings, output_loading_info=True, revision=adapter.get("revision"), **options,
        **({"ignore_mismatched_sizes": True} if classes is not None else {}),
    )  # fmt: skip
    _check_head(name, [*report["missing_keys"], *_mismatched(report)], weights)
    return PeftModel.from_pretrained(model, name, revision=revision)


def _mismatched(report: dict[str, Any]) -> list[str]:
    """Weights of the base model that were left out, as they are of another number of classes."""
    return [key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ())]


def _count_of_classes(weights: dict[str, Any]) -> int | None:
    """How many classes the head that was saved with the adapter tells apart; None: there is none."""
    ends = (
        "score.weight",
        "classifier.weight",
        "classifier.out_proj.weight",
        "classification_head.out_proj.weight",
    )
    return next((len(value) for key, value in weights.items() if key.endswith(ends)), None)


def _check_head(name: str, missing: list[str], weights: dict[str, Any]) -> None:
    """The head's weights must have been trained: transformers fills in random ones."""
    lost = [
        key for key in missing if "pooler." not in key and not any(saved.endswith(key) for saved in weights)
    ]
    if lost:
        raise UntrainedError(
            f"adapter {name!r} and its base model have no weights for {', '.join(sorted(lost)[:3])}: they must be "
            "trained whole; save the adapter with modules_to_save, or give another"
        )
