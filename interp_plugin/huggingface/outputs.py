"""What a model of ``transformers`` gives out: which task its head is for, and the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from interp_plugin.huggingface.architectures import forward_names
from interp_plugin.tokens import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head(NamedTuple):
    """What a model gives out; ``of_tokens``: its classes are the tokens of the vocabulary."""

    task: Task
    of_tokens: bool = False


# By the end of the class's name, which transformers keeps to.
HEADS = {
    "ForSequenceClassification": Head("sequence classes"),
    "ForTokenClassification": Head("token classes"),
    "ForMaskedLM": Head("token classes", of_tokens=True),
    "ForCausalLM": Head("next token", of_tokens=True),
    "LMHeadModel": Head("next token", of_tokens=True),
    "ForConditionalGeneration": Head("next token", of_tokens=True),
    "MarianMTModel": Head("next token", of_tokens=True),
}


def head_of(model: PreTrainedModel, names: Sequence[str], device: torch.device) -> Head:
    """The model's head, by its class; a head of one's own is tried on a single token.

    Args:
        names: of the arguments that the model is given.

    Raises:
        ValueError: it gives out no logits of a known shape.
    """
    for kind in type(model).__mro__:
        for end, head in HEADS.items():
            if kind.__name__.endswith(end):
                return head
    if getattr(model, "base_model", None) is model:
        return Head("none")
    shape = _shape_of_logits(model, names, device)
    if len(shape) == 2:
        return Head("sequence classes")
    if len(shape) == 3:
        return Head("next token", of_tokens=True) if model.can_generate() else Head("token classes")
    raise ValueError(
        f"{type(model).__name__} gives out no logits of shape (B, C) or (B, T, C): a head must be for sequence "
        "classes, token classes, masked or next tokens; give its base_model to look at its layers"
    )


@torch.no_grad()
def _shape_of_logits(model: nn.Module, names: Sequence[str], device: torch.device) -> tuple[int, ...]:
    """Shape of the logits for a single token; () if there are none."""
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    inputs = {name: one + 1 if name == "attention_mask" else one for name in names}
    try:
        with torch.random.fork_rng():  # dropout, in training mode
            logits = getattr(run(model, inputs), "logits", None)
    except (TypeError, ValueError, RuntimeError, IndexError):  # a head for other inputs: the caller says so
        return ()
    return tuple(logits.shape) if isinstance(logits, Tensor) else ()


def answer(model: PreTrainedModel, task: Task, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits, (B, C) or (B, T, C); the last hidden state, (B, T, H), of a model without a head."""
    with _uncompiled(model.config):
        if task == "sequence classes" and isinstance(getattr(model, "score", None), nn.Module):
            return _score_of_last_token(model, inputs)
        output = run(model, inputs)
        return cast(Tensor, output.last_hidden_state if task == "none" else output.logits)


def _score_of_last_token(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a decoder's classifier, (B, C), at each text's last token.

    transformers looks for the last token that is not the padding token: it finds another one where a text
    ends with that token, and refuses batches where there is none (config.pad_token_id is None).
    """
    hidden = run(model.base_model, inputs).last_hidden_state  # (B, T, H)
    logits = cast(Tensor, model.score(hidden))  # (B, T, C)
    mask = inputs["attention_mask"].to(logits.device)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return logits[torch.arange(len(last), device=last.device), last]


def run(module: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> Any:
    """What a model or part of it gives out, as an object with names; ``options`` go to its forward."""
    taken = forward_names(module)
    if "use_cache" in taken:
        options["use_cache"] = False
    if taken & {"return_dict", "kwargs"}:
        options["return_dict"] = True
    return module(**inputs, **options)


@contextmanager
def _uncompiled(config: Any) -> Iterator[None]:
    """Before transformers 5 ModernBERT compiled parts of itself on a GPU, hooks included: not inside the block."""
    if not hasattr(config, "reference_compile"):
        yield
        return
    before, config.reference_compile = config.reference_compile, False
    try:
        yield
    finally:
        config.reference_compile = before
