"""Outputs of a ``transformers`` model: logits and their task, class labels, answer spans, attention weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from interp_plugin.huggingface.architectures import forward_names, is_encoder_decoder
from interp_plugin.huggingface.tokenization import Pieces, overlapping, readable, split
from interp_plugin.method.perturbation import at_site, uncompiled
from interp_plugin.text.models import EACH, Encoding, Task, as_int, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Head(NamedTuple):
    """The output of a model.

    Attributes:
        task: the task of the model.
        of_tokens: whether its classes are the tokens of the vocabulary.
        reads: which second input it requires: a second text, choices, or none ("any").
        names: names of the classes, if the configuration does not give them.
    """

    task: Task
    of_tokens: bool = False
    reads: Literal["any", "pair", "choices"] = "any"
    names: tuple[str, ...] = ()


# Suffix of the class name -> head; transformers follows these naming conventions.
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
    """Return the head of a model, by its class name; a custom head is run on short inputs to see its output shape.

    Args:
        names: names of the arguments that the model is called with.

    Raises:
        ValueError: the model returns no logits of a known shape.
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
        f"{type(model).__name__} returns no logits of shape (B, C) or (B, T, C): a head must be for sequence "
        "classes, token classes, masked or next tokens, answer spans or choices; give its base_model to look at its "
        "layers"
    )


def _masked(model: PreTrainedModel, head: Head) -> Head:
    """Correct the head of XLM and FlauBERT, which predict masked tokens unless their configuration is causal."""
    masked = head.task == "next token" and not getattr(model.config, "causal", True)
    return Head("token classes", of_tokens=True) if masked else head


@torch.no_grad()
def _shape_of_logits(model: nn.Module, names: Sequence[str], device: torch.device) -> tuple[int, ...]:
    """Return the shape of the logits for a single token; () if there are none or C depends on the text's length."""
    shapes = set()
    for length in (1, 2):
        tokens = torch.zeros(1, length, dtype=torch.long, device=device)
        inputs = {name: tokens + 1 if name == "attention_mask" else tokens for name in names}
        try:
            with torch.random.fork_rng():  # dropout in training mode draws random numbers
                logits = getattr(run(model, inputs), "logits", None)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return ()  # a head for other inputs: the caller raises the error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else ()
        shapes.add((shape[0], shape[1] // length, shape[2]) if len(shape) == 3 else shape)
    return shapes.pop() if len(shapes) == 1 else ()


def answer(
    model: PreTrainedModel, base: nn.Module, task: Task, inputs: Mapping[str, Tensor], **options: Any
) -> Tensor:
    """Return the logits, (B, C), (B, T, C) or (B, 2, T), or of a model without a head the last hidden state, (B, T, H).

    Args:
        base: the transformers model inside ``model``, or ``model`` itself.
        options: further arguments of the forward.
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
    """Return the scores of every token as the first and as the last token of the answer, (B, 2, T)."""
    if getattr(output, "start_logits", None) is None:
        raise ValueError(
            f"{type(model).__name__} searches for its answer and returns no start_logits; give the family's "
            "ForQuestionAnsweringSimple"
        )
    return torch.stack([output.start_logits, output.end_logits], 1)


def answer_of_choices(
    model: PreTrainedModel, base: nn.Module, head: Head, inputs: Mapping[str, Tensor], count: int
) -> Tensor:
    """Return the score of each choice, (B, count); inputs are (B, count * T, ...), one choice after another.

    With a classifier of sentence pairs, the score is the logit of "entailment", as in the zero-shot pipeline.
    """
    rows = {name: value.unflatten(1, (count, -1)).flatten(0, 1) for name, value in inputs.items()}
    if head.reads == "choices":  # one choice in each row: choices do not depend on each other
        # DistilBERT accepts position_ids for single sequences only; by default they count from 0
        rows.pop("position_ids", None)
        rows = {name: value.unsqueeze(1) for name, value in rows.items()}
        return answer(model, base, head.task, rows).reshape(-1, count)
    scores = answer(model, base, head.task, rows)  # (B * count, C)
    return scores[:, entailment(model.config)].reshape(-1, count)


def with_choices(encodings: Sequence[Encoding], choices: Sequence[str]) -> Encoding:
    """Join the encodings of a text with each of several choices; the joint pair has one choice on each line.

    Args:
        encodings: the text with each choice as its pair.
        choices: the choices.
    """

    def joined(name: str) -> tuple[Any, ...]:
        return tuple(value for encoding in encodings for value in getattr(encoding, name))

    starts = [sum(len(choice) + 1 for choice in choices[:number]) for number in range(len(choices))]
    offsets = tuple(
        (1, span[1] + start, span[2] + start) if span and span[0] else span
        for encoding, start in zip(encodings, starts)
        for span in encoding.offsets
    )
    extra = {
        name: tuple(value for encoding in encodings for value in encoding.extra[name])
        for name in encodings[0].extra
    }
    extra["choice"] = tuple(number for number, encoding in enumerate(encodings) for _ in encoding.ids)
    return replace(
        encodings[0], pair="\n".join(choices), tokens=joined("tokens"), offsets=offsets, ids=joined("ids"),
        extra=extra, choices=tuple(choices),
    )  # fmt: skip


def entailment(config: Any) -> int:
    """Return the index of the class "entailment", found as in the zero-shot pipeline of transformers.

    Raises:
        ValueError: there is no such class.
    """
    names = label_names(config)
    for index, name in enumerate(names):
        if name.lower().startswith("entail"):
            return index
    raise ValueError(
        "choices need a model for multiple choice or a class 'entailment', and the classes are "
        f"{listed(names)}; give one second text"
    )


def _scores_of_tokens(model: Any) -> nn.Module | None:
    """Return the head of a decoder classifier, which scores every token; None for other models."""
    name = "classifier" if getattr(model.config, "model_type", "") == "ctrl" else "score"
    head = getattr(model, name, None)
    return head if isinstance(head, nn.Module) else None


class _ScoresRead(BaseException):
    """Raised by a hook to leave the model's forward once the scores are known."""


def _score_of_last_token(model: Any, scores: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a decoder classifier, (B, C), at the last token of each text.

    transformers takes the last token whose id is not the padding id.  That is the wrong token if the text itself ends
    with the padding id, and transformers refuses batches if there is no padding id (config.pad_token_id is None).
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
    """Run a model or part of it and return an output with named fields; ``options`` go to its forward."""
    taken = forward_names(module)
    if "use_cache" in taken:
        options["use_cache"] = False
    if taken & {"return_dict", "kwargs"}:
        options["return_dict"] = True
    return module(**inputs, **options)


@dataclass(frozen=True)
class Labels:
    """The classes of a classifier.

    Examples::
        >>> labels = Labels(("negative", "positive"))
        >>> labels.index("Positive"), labels.name(0)
        (1, 'negative')
    """

    names: tuple[str, ...]

    def index(self, target: int | str) -> int:
        """Return the index of a class given by its label or its index."""
        target = checked_class(target)
        if isinstance(target, int):
            found = [target] if 0 <= target < len(self.names) else []
        else:
            found = [i for i, name in enumerate(self.names) if name == target] or [
                i for i, name in enumerate(self.names) if name.casefold() == target.casefold()
            ]
        if len(found) > 1:
            named = " or ".join(f"{i} ({self.names[i]!r})" for i in found)
            raise ValueError(f"target {target!r} may be class {named}; give the number")
        if not found:
            raise ValueError(
                f"target {target!r} is no class of the model: it has {listed(self.names)}; choose a label or its index"
            )
        return found[0]

    def name(self, index: int) -> str:
        """Return the label of a class."""
        return self.names[self.index(index)]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a language model chooses from.

    Args:
        size: number of ids that the model has.
    """

    tokenizer: PreTrainedTokenizerBase
    size: int

    def index(self, target: int | str) -> int:
        """Return the id of a token given as a string or an id."""
        target = checked_class(target)
        if isinstance(target, str):
            return self._id(target)
        if not 0 <= target < self.size:
            raise ValueError(
                f"target {target} is no token id: the model has ids 0 to {self.size - 1}; choose one of them"
            )
        return target

    def name(self, index: int) -> str:
        """Return the token in readable form."""
        pieces = Pieces((self.index(index),), ((0, 0, 0),))
        return readable(self.tokenizer, pieces, ("", None))[0]

    def _id(self, target: str) -> int:
        ids = split(self.tokenizer, target, special=False).ids
        if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
            return ids[0]
        written = self.tokenizer.get_vocab().get(target)
        if written is None:
            raise ValueError(
                f"target {target!r} is {len(ids)} tokens, or unknown: it must be one token of the vocabulary; give a "
                "shorter string or a token id"
            )
        return int(written)


def checked_class(target: Any) -> int | str:
    """Check that ``target`` is a label or an index, and convert an integer of NumPy or torch to an int."""
    target = as_int(target)
    if isinstance(target, bool) or not isinstance(target, (int, str)):
        raise TypeError(
            f"target is a {type(target).__name__}: it must be a label or an index; give one of them"
        )
    return target


def label_names(config: Any, count: int = 0) -> tuple[str, ...]:
    """Return the names of at least ``count`` classes; a class without a name is called "LABEL_" and its number.

    Args:
        config: has ``id2label``, number -> name; numbers may be strings, as in JSON.

    Raises:
        ValueError: a key is not a number.

    Examples::
        >>> from types import SimpleNamespace
        >>> label_names(SimpleNamespace(id2label={"1": "good"}), 3)
        ('LABEL_0', 'good', 'LABEL_2')
    """
    labels = getattr(config, "id2label", None) or {}
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels)
    try:
        names = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config.id2label is {labels!r}: its keys must be the numbers of the classes; swap keys and values if the "
            "keys are names"
        ) from error
    count = max([count, *(number + 1 for number in names)])
    return tuple(names.get(number, f"LABEL_{number}") for number in range(count))


def listed(names: Sequence[int | str], most: int = 20) -> str:
    """Join the first ``most`` names in one line."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def likeliest(logits: Tensor, exclusive: bool = True) -> tuple[int, float]:
    """Return the index and probability of the largest logit, (C,): softmax if classes are exclusive, else sigmoid.

    Examples::
        >>> import torch
        >>> likeliest(torch.tensor([1.0, 4.0]).log())
        (1, 0.800000011920929)
    """
    scores = logits.detach().float()
    probability, index = (scores.softmax(-1) if exclusive else scores.sigmoid()).max(-1)
    return int(index), float(probability)


ENDS = {None: (0, 1), "start": (0,), "end": (1,), "both": (0, 1), EACH: (0, 1)}


def with_answer(encoding: Encoding, target: Any) -> Encoding:
    """Set the start, the end or both of an answer span as the target of a text.

    Args:
        encoding: a context, or a question and a context.
        target: "start", "end", "both" or None (both), of the model's own answer, which is found later; or a pair of
            one of these and an answer: a string (its first occurrence counts) or characters (start, stop) of the
            context.

    Raises:
        ValueError: an invalid target, or an answer that is not in the context.

    Examples::
        >>> context = Encoding("who", "a b", ("who", "a", "b"), ((0, 0, 3), (1, 0, 1), (1, 2, 3)), (5, 6, 7))
        >>> with_answer(context, ("end", "b")).target, with_answer(context, "start").target_positions
        ((2,), (0,))
    """
    which, answer = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    if not isinstance(which, str | None) or which not in ENDS:
        raise ValueError(
            f"target {target!r} is no end of an answer: choose 'start', 'end' or 'both', or give a pair of one of them "
            "and the answer"
        )
    if answer is None:
        return replace(encoding, target_positions=ENDS[which])
    segment, context = (0, encoding.text) if encoding.pair is None else (1, encoding.pair)
    match answer:
        case str():
            start = context.find(answer)
            stop = start + len(answer)
        case (int() as start, int() as stop):
            pass
        case _:
            raise ValueError(
                f"the answer is {answer!r}; give a string, or the characters (start, stop) of the text"
            )
    pieces = Pieces(encoding.ids, tuple(s if s and s[0] == segment else None for s in encoding.offsets))
    tokens = overlapping(pieces, start, stop) if 0 <= start < stop <= len(context) else []
    if not tokens:
        raise ValueError(f"the answer {answer!r} is not in the text {shown(context)}; give one that is")
    span = (tokens[0], tokens[-1])
    return replace(encoding, target=tuple(span[end] for end in ENDS[which]), target_positions=ENDS[which])


def name_of_answer(encoding: Encoding) -> str:
    """Return the text of the target answer, or the token at which it starts or ends."""
    if len(encoding.target) == 1:
        return f"{('start', 'end')[encoding.target_positions[0]]} at {encoding.tokens[encoding.target[0]]!r}"
    first, last = (encoding.offsets[token] for token in encoding.target)
    if first is None or last is None or first[0] != last[0]:
        return " ".join(encoding.tokens[token] for token in encoding.target)
    return (encoding.text, encoding.pair or "")[first[0]][first[1] : last[2]].strip()


_ONE_AT_A_TIME = threading.Lock()  # two threads that switch the model at once could leave it switched
_HOOKED = (
    "_output_capturing_hooks_installed"  # attribute with which transformers marks models that have its hooks
)


@torch.no_grad()
def attention_weights(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the attention weights of each block, (R, heads, T, T) each; rows sum to 1.

    Raises:
        ValueError: an encoder-decoder, or a model that returns no weights.
    """
    if is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, whose attention is not one stack; use another method"
        )
    with _ONE_AT_A_TIME, _eager(model), _recording(model):
        found = getattr(run(model.base_model, inputs, output_attentions=True), "attentions", None)
    if not found or any(weights is None or weights.ndim != 4 for weights in found):
        raise ValueError(
            f"{type(model).__name__} returns no attention weights (output_attentions); use another method"
        )
    return tuple(weights.float() for weights in found)


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Inside the block, use eager attention: fused kernels do not return the weights."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, kind in before:  # parents first: setting a parent also sets its children
            config._attn_implementation = kind


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    """After the block, remove the hooks that transformers added to the model to record attention."""
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
