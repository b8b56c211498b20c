"""What a model of ``transformers`` gives out: logits and the task they are for, labels, attention weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from interp_plugin.huggingface.architectures import forward_names, is_encoder_decoder
from interp_plugin.huggingface.tokenization import label_names, listed
from interp_plugin.method.perturbation import LayerCall, at_site, uncompiled
from interp_plugin.text.models import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head(NamedTuple):
    """What a model gives out.

    Attributes:
        task: of the model.
        of_tokens: its classes are the tokens of the vocabulary.
        reads: further texts that it must be given: a second text, choices, or none.
        names: of the classes, where the configuration does not say.
    """

    task: Task
    of_tokens: bool = False
    reads: Literal["any", "pair", "choices"] = "any"
    names: tuple[str, ...] = ()


# By the end of the class's name, which transformers keeps to.
HEADS = {
    "ForSequenceClassification": Head("sequence classes"),
    "ForTokenClassification": Head("token classes"),
    "ForQuestionAnswering": Head("answer span", names=("start", "end")),
    "ForQuestionAnsweringSimple": Head("answer span", names=("start", "end")),
    "ForMultipleChoice": Head("sequence classes", reads="choices"),
    "ForNextSentencePrediction": Head(
        "sequence classes", reads="pair", names=("next sentence", "other sentence")
    ),
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
        "classes, token classes, masked or next tokens, answer spans or choices; give its base_model to look at its "
        "layers"
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


def answer(
    model: PreTrainedModel, base: nn.Module, task: Task, inputs: Mapping[str, Tensor], **options: Any
) -> Tensor:
    """Logits, (B, C), (B, T, C) or (B, 2, T); the last hidden state, (B, T, H), of a model without a head.

    Args:
        base: the model of transformers inside ``model``, or ``model`` itself.
        options: go to its forward.
    """
    with uncompiled():  # before transformers 5 ModernBERT compiled parts of itself on a GPU
        scores = _scores_of_tokens(base) if task == "sequence classes" else None
        if scores is not None:
            return _score_of_last_token(model, scores, inputs)
        output = run(model, inputs, **options)
        if task == "answer span":
            return _ends_of_answer(model, output)
        return cast(Tensor, output.last_hidden_state if task == "none" else output.logits)


def _ends_of_answer(model: nn.Module, output: Any) -> Tensor:
    """The scores of every token as the first and as the last of the answer, (B, 2, T)."""
    if getattr(output, "start_logits", None) is None:
        raise ValueError(
            f"{type(model).__name__} searches for its answer and gives out no start_logits; give the family's "
            "ForQuestionAnsweringSimple"
        )
    return torch.stack([output.start_logits, output.end_logits], 1)


def answer_of_choices(
    model: PreTrainedModel, base: nn.Module, head: Head, inputs: Mapping[str, Tensor], count: int
) -> Tensor:
    """The score of each of so many choices, (B, count); inputs are (B, count * T, ...), one choice after another.

    Of a classifier of sentence pairs a choice's score is that of "entailment", as in a zero-shot pipeline.
    """
    rows = {name: value.unflatten(1, (count, -1)).flatten(0, 1) for name, value in inputs.items()}
    if head.reads == "choices":  # one choice a row: none looks at another
        rows.pop(
            "position_ids", None
        )  # DistilBERT takes them of single sequences only; they count from 0 by themselves
        rows = {name: value.unsqueeze(1) for name, value in rows.items()}
        return answer(model, base, head.task, rows).reshape(-1, count)
    scores = answer(model, base, head.task, rows)  # (B * count, C)
    return scores[:, entailment(model.config)].reshape(-1, count)


def entailment(config: Any) -> int:
    """The class that says that a text entails the second one, as the zero-shot pipeline of transformers finds it.

    Raises:
        ValueError: there is none.
    """
    names = label_names(config)
    for index, name in enumerate(names):
        if name.lower().startswith("entail"):
            return index
    raise ValueError(
        f"choices are scored by a model for multiple choice, or by the class 'entailment', and the classes are "
        f"{listed(names)}; give one second text"
    )


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


# Where a block's self-attention computes its values: the whole output of these modules, ...
_VALUES = (
    "attention.self.value", "attention.self.value_proj", "attention.value", "attention.v_lin", "self_attn.v_proj",
    "SelfAttention.v",
)  # fmt: skip
# ... or the last third of these.
_VALUES_LAST = ("attn.c_attn", "attn.Wqkv")
_ONE_AT_A_TIME = threading.Lock()  # two that switch the model at once could leave it so
_HOOKED = "_output_capturing_hooks_installed"  # transformers' mark of a model that has its recording hooks


@torch.no_grad()
def attention_weights(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What every token attends to in each block, (R, heads, T, T) each; rows sum to 1.

    Raises:
        ValueError: an encoder-decoder, or a model that gives no weights out.
    """
    if is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, whose attention is no single stack; use another method"
        )
    with _ONE_AT_A_TIME, _eager(model), _recording(model):
        found = getattr(run(model.base_model, inputs, output_attentions=True), "attentions", None)
    if not found or any(weights is None or weights.ndim != 4 for weights in found):
        raise ValueError(
            f"{type(model).__name__} gives no attention weights out (output_attentions); use another method"
        )
    return tuple(weights.float() for weights in found)


def value_site(block: LayerCall) -> tuple[LayerCall, int] | None:
    """Where a block's self-attention computes its value vectors, and into how many parts that output falls.

    The values are the last part.  None: no such module is known.

    Examples::
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> site, parts = value_site(LayerCall(BertModel(config).encoder.layer[0]))
        >>> site.layer, parts
        (Linear(in_features=4, out_features=4, bias=True), 1)
    """
    for suffixes, parts in ((_VALUES, 1), (_VALUES_LAST, 3)):
        for name, module in block.layer.named_modules():
            if f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes)):
                return LayerCall(module, block.call), parts
    return None


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Inside the block attention is computed step by step: fused kernels keep its weights to themselves."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, kind in before:  # parents first, who hand theirs down
            config._attn_implementation = kind


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    """Hooks that transformers puts on the model to record attention, and would leave there, are taken off."""
    modules = list(model.modules())
    before = [set(module._forward_hooks) for module in modules]
    marked = [module for module in modules if getattr(module, _HOOKED, False)]
    try:
        yield
    finally:
        new = [module for module in modules if getattr(module, _HOOKED, False) and module not in marked]
        for module in new:
            delattr(module, _HOOKED)
        for module, hooks in zip(modules if new else [], before):
            for number in set(module._forward_hooks) - hooks:
                del module._forward_hooks[number]
