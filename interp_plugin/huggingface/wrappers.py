"""Models that come wrapped (a pipeline, DataParallel, PEFT), and the model of transformers inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from interp_plugin.text.models import Axis

# Of PEFT's ways to learn virtual tokens: those that put them into the text, and those that leave it as long as it is.
_IN_THE_TEXT = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT")
_BESIDE_THE_TEXT = ("PREFIX_TUNING", "CARTRIDGE")


def unwrapped(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """A model as it is run, and its tokenizer: the given one, or what a wrapper has.

    A pipeline, a CrossEncoder, DataParallel, a compiled model and a PEFT model whose adapters lie inside the
    base model (LoRA, merged or not) are taken off; PEFT's prompts stay, as they are no part of the base model.

    Raises:
        TypeError: a wrapper whose answer is not its model's.
    """
    inner = _inside(model)
    while inner is not None:
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        model, inner = inner, _inside(inner)
    return model, tokenizer


def _inside(model: Any) -> Any:
    """What the outermost wrapper holds; None: there is none."""
    names = {kind.__name__ for kind in type(model).__mro__}
    if "SentenceTransformer" in names:
        raise TypeError(
            f"model is a {type(model).__name__}, which pools and scales what its model gives: a model of transformers "
            "is needed; give model[0].auto_model with model.tokenizer to look at its layers"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if "OptimizedModule" in names:
        return model._orig_mod
    if names & {"Pipeline", "CrossEncoder"}:
        return model.model
    if not _is_peft(model) or prompt_of(model) is not None:
        return None
    if type(model.base_model).__name__ == "XLoraModel":
        raise TypeError(
            f"model is a {type(model).__name__} of X-LoRA, which runs its base model twice: a model that runs once is "
            "needed; give one of its adapters"
        )
    return model.get_base_model()


def _is_peft(model: Any) -> bool:
    return isinstance(model, nn.Module) and hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def prompt_of(model: Any) -> Any:
    """The configuration of the virtual tokens that PEFT puts around a model; None: there are none."""
    if not _is_peft(model) or not hasattr(model, "active_peft_config"):
        return None
    config = model.active_peft_config
    return config if getattr(config, "is_prompt_learning", False) else None


def base_of(model: Any) -> Any:
    """The model of transformers inside a PEFT model, or the model itself."""
    return model if prompt_of(model) is None else model.get_base_model()


def virtual_tokens(model: Any) -> dict[Axis, int]:
    """How many places before the first token the states of a prompt-tuned model have, on each axis.

    Raises:
        ValueError: virtual tokens of an unknown kind.
    """
    config = prompt_of(model)
    kind = None if config is None else str(getattr(config.peft_type, "value", config.peft_type))
    if kind is None or kind in _BESIDE_THE_TEXT:
        return {"input": 0, "decoder": 0}
    if kind not in _IN_THE_TEXT:
        raise ValueError(
            f"{type(model).__name__} learns virtual tokens by {kind}, and where they stand is known of "
            f"{', '.join(_IN_THE_TEXT + _BESIDE_THE_TEXT)} only; give the base model"
        )
    count = int(config.num_virtual_tokens)
    in_decoder = config.num_transformer_submodules == 2 and kind not in ("PROMPT_TUNING", "P_TUNING")
    return {"input": count, "decoder": count if in_decoder else 0}


def names_kept(model: Any) -> set[str]:
    """Which further arguments of its base model a model with virtual tokens hands on: it sets positions itself."""
    classes = ("ForSequenceClassification", "ForTokenClassification")
    return {"decoder_input_ids"} | ({"token_type_ids"} if type(model).__name__.endswith(classes) else set())


def uses_room(model: Any) -> int:
    """How many of the places that a model has for tokens its virtual tokens take."""
    config = prompt_of(model)
    return 0 if config is None else int(config.num_virtual_tokens)


def adapter_name(model: Any) -> str:
    """The kind of PEFT's adapter, to stand after the name of its base model; "" of other models."""
    if not _is_peft(model):
        return ""
    kinds = {
        str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()
    }
    return f" ({', '.join(sorted(kinds))})"


def name_of(model: Any) -> str:
    """The id of a model, the name of its folder (not where that is), or its class."""
    name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
    return Path(name).name if Path(name).is_dir() else name


def check_parts(model: Any, tokenizer: Any) -> None:
    """Refuse what is no model or tokenizer of transformers."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model is a {type(model).__name__}: it must be a model of transformers, as huggingface.load "
            "gives; a plain PyTorch module comes in as PlainModel(module, tokenizer, embedding)"
        )
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}: it must be a tokenizer of transformers; wrap a tokenizers one "
            "as PreTrainedTokenizerFast(tokenizer_object=tokenizer)"
        )
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu":
            raise ValueError(
                f"{type(model).__name__} has 4-bit weights that bitsandbytes packs on a CPU for a kernel without "
                "gradients; load it with huggingface.load(..., load_in='4bit')"
            )
    if any(type(module).__name__ == "ModernBertUnpaddedRotaryEmbedding" for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} with flash attention joins the texts of a batch into one row: the batch dimension "
            "must stay; load it with attn_implementation='sdpa', or use transformers 5"
        )
