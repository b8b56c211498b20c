"""What a model of ``transformers`` gives out: which task its head is for, and the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from interp_plugin.forwards import uncompiled
from interp_plugin.huggingface.architectures import forward_names
from interp_plugin.state import at_site
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
                return _masked(model, head)
    if getattr(model, "base_model", None) is model:
        return Head("none")
    shape = _shape_of_logits(model, names, device)
    if len(shape) == 2:
        return Head("sequence classes")
    if len(shape) == 3:
        if not model.can_generate():
            return Head("token classes")
        return _masked(model, Head("next token", of_tokens=True))
    raise ValueError(
        f"{type(model).__name__} gives out no logits of shape (B, C) or (B, T, C): a head must be for sequence "
        "classes, token classes, masked or next tokens; give its base_model to look at its layers"
    )


def _masked(model: PreTrainedModel, head: Head) -> Head:
    """The head of a language model, which in XLM and FlauBERT is one for masked tokens unless it says "causal"."""
    masked = head.task == "next token" and not getattr(model.config, "causal", True)
    return Head("token classes", of_tokens=True) if masked else head


@torch.no_grad()
def _shape_of_logits(model: nn.Module, names: Sequence[str], device: torch.device) -> tuple[int, ...]:
    """Shape of the logits for a single token; () if there are none, or one score for each token or choice."""
    shapes = set()
    for length in (1, 2):
        tokens = torch.zeros(1, length, dtype=torch.long, device=device)
        inputs = {name: tokens + 1 if name == "attention_mask" else tokens for name in names}
        try:
            with torch.random.fork_rng():  # dropout, in training mode
                logits = getattr(run(model, inputs), "logits", None)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return ()  # a head for other inputs: the caller says so
        shapes.add(_shape_for_one_token(logits, length) if isinstance(logits, Tensor) else ())
    return shapes.pop() if len(shapes) == 1 else ()


def _shape_for_one_token(logits: Tensor, length: int) -> tuple[int, ...]:
    """Shape of logits (B, C), or of (B, T, C) with T = 1."""
    shape = tuple(logits.shape)
    return (shape[0], shape[1] // length, shape[2]) if len(shape) == 3 else shape


def answer(model: PreTrainedModel, base: nn.Module, task: Task, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits, (B, C) or (B, T, C); the last hidden state, (B, T, H), of a model without a head.

    Args:
        base: the model of transformers inside ``model``, or ``model`` itself.
    """
    with uncompiled():  # before transformers 5 ModernBERT compiled parts of itself on a GPU
        scores = _scores_of_tokens(base) if task == "sequence classes" else None
        if scores is not None:
            return _score_of_last_token(model, scores, inputs)
        output = run(model, inputs)
        return cast(Tensor, output.last_hidden_state if task == "none" else output.logits)


def _scores_of_tokens(model: Any) -> nn.Module | None:
    """The head of a decoder's classifier, which scores every token; None: it is no such classifier."""
    name = "classifier" if getattr(model.config, "model_type", "") == "ctrl" else "score"
    head = getattr(model, name, None)
    return head if isinstance(head, nn.Module) else None


class _ScoresRead(BaseException):
    """Raised by a hook to leave the model's forward: what it does with the scores is not needed."""


def _score_of_last_token(model: Any, scores: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of a decoder's classifier, (B, C), at each text's last token.

    transformers looks for the last token that is not the padding token: it finds another one where a text
    ends with that token, and refuses batches where there is none (config.pad_token_id is None).
    """
    found: list[Tensor] = []

    def read(output: Tensor) -> None:
        found.append(output)
        raise _ScoresRead

    with suppress(_ScoresRead), at_site(scores, read):
        run(model, inputs)
    [logits] = found
    mask = inputs["attention_mask"].to(logits.device)
    logits = logits[:, -mask.shape[1] :]  # (B, T, C), after virtual tokens
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
