"""What TextExplainer asks of a model and its tokenizer, and the answer for plain PyTorch modules."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from interp_plugin.method.erasure import log_odds
from interp_plugin.method.perturbation import LayerCall, device_of, first_tensor

CHARACTERS = 2**22
"""Of a text at most: a million tokens of usual length.  To tokenize more would take minutes and gigabytes."""
OUTPUT = "output"
HIDDEN = "hidden_states."
"""Before the label of a block: its own output, where the layer's state is read after the normalisation that follows."""
Label = int | str
"""A layer: the number of a block, a name, or OUTPUT for what the model returns."""
Offset = tuple[int, int, int]
"""Which text (0, or 1 for its pair), first character, and the one after the last."""
EACH = "each"
"""As a target: every class, or both ends of an answer, in a row of its own."""
Source = str | Sequence[str] | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, its words, its token ids, or the messages of a chat."""
Second = str | Sequence[str] | None
"""What is read together with a text: a second text, or choices, each of which is read with it in turn."""
Axis = Literal["input", "decoder"]
Target = str | int | tuple[str, str | tuple[int, int]] | None
"""A continuation, the id of one token, or a continuation and the characters of it that are asked about.

Where a model answers with a span of the text: "start", "end" or "both", alone or with the answer in a pair."""
Function = Literal["logit", "log_probability", "probability", "log_odds", "margin"]
"""What is watched of a class or token, see :func:`watched`."""
Task = Literal["sequence classes", "token classes", "next token", "answer span", "none"]


PER_TOKEN = ("token_type_ids", "position_ids", "langs", "bbox")
"""Arguments of forwards that have a value for each token."""


class Words(tuple[str, ...]):
    """A text that is split into words already."""


@dataclass(frozen=True)
class Encoding:
    """One text, tokenised and not padded; T tokens.

    Attributes:
        text, pair: what was tokenised; the pair is a second sentence, a continuation or a decoder's text.
        tokens: T of them, readable.
        offsets: of each token in its text, None for special tokens.
        ids: what enters the embedding.
        extra: further inputs of the model, by name: a value of each token, a decoder's own sequence, or what the text
            as a whole has.
        target: ids of the tokens that a language model is asked for; of an answer span, its first and last token.
        target_positions: the position of its output that predicts each of them; of an answer span 0 for its start and
            1 for its end.
        foils: as many ids that each of them is compared with; empty: it is taken alone.
        parts: of a chat, number and role of the message that each token is of, None of the template's; else empty.
        units: number of the unit whose scale of noise each token has, -1: it bears none; empty: each has its own.
        choices: each of which is read with the text, in turn; ``extra["choice"]`` has the number of each token's.
        words: where the words are, of a text that was given as such; else empty.
    """

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    offsets: tuple[Offset | None, ...]
    ids: tuple[int, ...]
    extra: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    target: tuple[int, ...] = ()
    target_positions: tuple[int, ...] = ()
    foils: tuple[int, ...] = ()
    parts: tuple[tuple[int, str] | None, ...] = ()
    units: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    words: tuple[Offset, ...] = ()

    @property
    def unasked(self) -> Encoding:
        """The same text without a target."""
        return replace(self, target=(), target_positions=(), foils=())

    @property
    def without_choices(self) -> Encoding:
        """The text with one choice as a pair like any other."""
        extra = {name: values for name, values in self.extra.items() if name != "choice"}
        return replace(self, extra=extra, choices=())

    def only(self, kept: Sequence[bool]) -> Encoding:
        """The same with only some of its tokens, (T,); targets are asked for where they follow now.

        Raises:
            ValueError: a second sequence, whose tokens would not follow, or no token left.

        Examples::
            >>> Encoding("a b", None, ("a", "b"), ((0, 0, 1), (0, 2, 3)), (5, 6), {}, (7,), (1,)).only([True, False])
            Encoding(text='a b', pair=None, tokens=('a',), offsets=((0, 0, 1),), ids=(5,), extra={}, target=(7,), \
target_positions=(0,), foils=(), parts=(), units=(), choices=(), words=())
        """
        if any(len(values) != len(self.ids) for values in self.extra.values()):
            raise ValueError(
                "the model reads a second sequence, whose tokens would not follow deleted ones; use 'mask' to take "
                "tokens away"
            )
        if not any(kept):
            raise ValueError("no token would be left of the text; keep the special ones, or use 'mask'")

        def those(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(value for value, keep in zip(values, kept) if keep)

        return replace(
            self,
            tokens=those(self.tokens),
            offsets=those(self.offsets),
            ids=those(self.ids),
            extra={name: those(values) for name, values in self.extra.items()},
            parts=those(self.parts),
            units=those(self.units),
            target_positions=tuple(max(sum(kept[: at + 1]) - 1, 0) for at in self.target_positions),
        )


class TextModel(Protocol):
    """A model that reads text.

    Attributes:
        embedding: where noise enters unless another layer is asked for.
        layers: where each layer's state is read, in the order they run.
        axis: which tokens dimension 1 of a layer's state (and of "output") runs over.
        task: what the output is: (B, C) class scores, (B, T, C), (B, T, vocabulary), (B, 2, T) scores of the first
            and of the last token of an answer, or no scores.
        pads: whether texts of different lengths may share a batch.
        module: the model itself.
        vocabulary: scores of a language model for each place; 0 of others.
        pad_id: fills the places of missing tokens.
        mask_id: stands for a hidden word; None: the model has no such token.
    """

    @property
    def name(self) -> str: ...
    @property
    def embedding(self) -> LayerCall: ...
    @property
    def layers(self) -> Mapping[Label, LayerCall]: ...
    @property
    def axis(self) -> Mapping[Label, Axis]: ...
    @property
    def task(self) -> Task: ...
    @property
    def pads(self) -> bool: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...

    def head_site(self, label: Label) -> tuple[LayerCall, int, int] | None:
        """Where a layer's attention heads lie side by side in the last dimension; their number and width."""
        ...

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """Tokenise; ``target`` as a language model's continuation (classifiers ignore it)."""
        ...

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Arguments for a call, (B, ...) each, padded on the right; and the token mask, (B, T).

        Ids come first, then the attention mask of a model that takes one.
        """
        ...

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The output, as ``task`` says."""
        ...

    def class_index(self, target: int | str) -> int:
        """Number of a class, given as a number or by name."""
        ...

    def class_name(self, index: int) -> str:
        """Name of a class."""
        ...

    def predicted(self, scores: Tensor) -> tuple[str, float] | None:
        """Name and probability of what (C,) or (vocabulary,) scores say is likeliest."""
        ...

    def target_name(self, encoding: Encoding) -> str:
        """The target of a language model as text."""
        ...


_NO_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.loss._Loss, nn.ModuleList, nn.ModuleDict)


class PlainModel:
    """A classifier written in plain PyTorch (an LSTM, a CNN), with its tokenizer and embedding.

    Args:
        module: takes ids (B, T) and, if its forward's second parameter must be given or has "mask" in its
            name, a mask (B, T) of real tokens; returns class scores (B, C).
        tokenizer: text -> ids, or a mapping with "input_ids" and, if there are, "tokens" and
            "offset_mapping" (first and last character of each token).
        embedding: the module that turns ids into vectors (B, T, K).
        layers: name -> module whose (first) output (B, T, ...) or (B, ...) is a state; None: every
            direct child that is neither the embedding, dropout, a loss nor a mere list of others.
        classes: names of the classes.
        pads: whether texts of different lengths may share a batch: the module must ignore what its mask
            leaves out, and every state have its tokens in dimension 1.
        pad_id: what fills the places of missing tokens.
        mask_id: what stands for a hidden word, where the model knows such a token.

    Examples::
        >>> embed, words = torch.nn.Embedding(9, 4), ["a", "good", "film"]
        >>> net = torch.nn.Sequential(embed, torch.nn.LSTM(4, 3, batch_first=True))
        >>> model = PlainModel(net, lambda text: [words.index(w) for w in text.split()], embed)
        >>> list(model.layers), model.encode("a good film").ids
        (['1'], (0, 1, 2))
    """

    task: Task = "sequence classes"
    vocabulary = 0

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Callable[[str], Any],
        embedding: nn.Module,
        layers: Mapping[str, nn.Module] | None = None,
        classes: Sequence[str] | None = None,
        pads: bool = False,
        pad_id: int = 0,
        mask_id: int | None = None,
    ) -> None:
        if embedding not in set(module.modules()):
            raise ValueError(
                f"embedding {type(embedding).__name__} is not a part of the model; give the module that it calls"
            )
        if layers is None:
            layers = {
                name: child
                for name, child in module.named_children()
                if child is not embedding and not isinstance(child, _NO_LAYERS)
            }
        self.module = module
        self.tokenizer = tokenizer
        self.embedding = LayerCall(embedding)
        self.layers: dict[Label, LayerCall] = {name: LayerCall(layer) for name, layer in layers.items()}
        self.axis: dict[Label, Axis] = dict.fromkeys((*self.layers, OUTPUT), "input")
        self.classes = classes
        self.pad_id = pad_id
        self.mask_id = mask_id
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(module.forward).parameters.values()
        second = [p for p in parameters if p.kind in positional][1:2]
        self._masked = any("mask" in p.name or p.default is inspect.Parameter.empty for p in second)
        if pads and not self._masked:
            raise ValueError(
                f"pads is true, but {type(module).__name__}.forward takes no mask; give it a second parameter or leave "
                "pads out"
            )
        self.pads = pads

    @property
    def name(self) -> str:
        """The model's class."""
        return type(self.module).__name__

    def head_site(self, label: Label) -> None:
        return None

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """One text; see :class:`TextModel`."""
        if not isinstance(text, str):
            raise TypeError("a plain PyTorch model takes texts, and neither token ids nor chats; give a str")
        if pair is not None:
            raise ValueError("a plain PyTorch model takes one text, not a pair; join the two yourself")
        if len(text) > CHARACTERS:
            raise ValueError(f"text has {len(text)} characters: at most {CHARACTERS} are read; shorten it")
        found = self.tokenizer(text)
        ids = tuple(int(i) for i in (found["input_ids"] if isinstance(found, Mapping) else found))
        if not ids:
            raise ValueError(f"text {text!r} has no tokens: it must hold at least one; give some words")
        rows = getattr(self.embedding.layer, "num_embeddings", None)
        if rows is not None and not all(0 <= i < rows for i in ids):
            raise ValueError(
                f"id {next(i for i in ids if not 0 <= i < rows)} is not one of the embedding's {rows}: tokenizer and "
                "model do not fit; give the tokenizer that the model was trained with"
            )
        given = found if isinstance(found, Mapping) else {}
        offsets = given.get("offset_mapping")
        spans = _spans(text, len(ids)) if offsets is None else [(int(a), int(b)) for a, b in offsets]
        of_fast = found.tokens() if callable(getattr(found, "tokens", None)) else None  # transformers' own
        tokens = given.get("tokens") or of_fast or [text[a:b] for a, b in spans]
        if not len(ids) == len(spans) == len(tokens):
            raise ValueError(
                f"the tokenizer gives {len(ids)} ids, {len(tokens)} tokens and {len(spans)} offsets; they must agree"
            )
        return Encoding(text, None, tuple(tokens), tuple((0, a, b) if a < b else None for a, b in spans), ids)

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Ids (B, T), and the mask where the model takes one; see :class:`TextModel`."""
        device = device_of(self.embedding.layer)
        longest = max(len(e.ids) for e in encodings)
        ids = torch.full((len(encodings), longest), self.pad_id)
        mask = torch.zeros(len(encodings), longest, dtype=torch.bool)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = True
        ids, mask = ids.to(device), mask.to(device)
        return ((ids, mask) if self._masked else (ids,)), mask

    def __call__(self, *arguments: Tensor) -> Tensor:
        output: Tensor = first_tensor(self.module(*arguments))
        return output

    def class_index(self, target: int | str) -> int:
        """Number of a class; see :class:`TextModel`."""
        known = list(self.classes or [])
        target = as_int(target)  # of NumPy or torch
        if isinstance(target, int) and (not known or 0 <= target < len(known)):
            return target
        if target not in known:
            raise ValueError(f"target {target!r} is not a class of the model, whose classes are {known}")
        return known.index(target)

    def class_name(self, index: int) -> str:
        """Name of a class; see :class:`TextModel`."""
        return self.classes[index] if self.classes else str(index)

    def predicted(self, scores: Tensor) -> tuple[str, float] | None:
        """The likeliest class; see :class:`TextModel`."""
        if scores.ndim != 1 or len(scores) < 2:
            return None
        probability, index = scores.float().softmax(-1).max(-1)
        return self.class_name(int(index)), float(probability)

    def target_name(self, encoding: Encoding) -> str:
        """Not of a classifier."""
        raise ValueError(f"{self.name} is a classifier and has no target tokens")


def are_exclusive(model: TextModel) -> bool:
    """Whether a text has one of the model's classes; otherwise each class has a probability of its own (a sigmoid)."""
    return getattr(model, "exclusive", True)


def watched(
    scores: Tensor, ids: Tensor, function: Function, foils: Tensor | None = None, exclusive: bool = True
) -> Tensor:
    """A function of the scores of classes or tokens, (..., C), for the classes ids, (...); shape (...).

    "logit": the score itself.  "log_probability" and "probability": after a softmax.  "log_odds": log p / (1 - p), the
    score less the logarithm of the others' sum.  "margin": the score less the largest other one.  With foils:
    what is watched of ids less what is watched of foils, where logarithms of probabilities differ as scores do.
    Classes that are not exclusive have a sigmoid in place of the softmax, whose log-odds are the score.

    Examples::
        >>> scores, ids = torch.tensor([0.2, 0.6, 0.2]).log(), torch.tensor(1)
        >>> [round(float(watched(scores, ids, name)), 3) for name in ("probability", "log_odds", "margin")]
        [0.6, 0.405, 1.099]
        >>> round(float(watched(scores, ids, "log_probability", torch.tensor(0)).exp()), 3)
        3.0
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not exclusive and function == "log_probability":
        scores = logsigmoid(scores)
    elif not exclusive and function == "probability":
        scores = scores.sigmoid()
    elif foils is not None and function == "probability":
        scores = scores.softmax(-1)
    own = _of(scores, ids)
    if foils is not None:
        return own - _of(scores, foils)
    if function == "logit" or (not exclusive and function != "margin"):
        return own
    if function in ("log_probability", "probability"):
        logs = _of(scores.log_softmax(-1), ids)
        return logs.exp() if function == "probability" else logs
    others = scores.scatter(-1, ids.unsqueeze(-1), -torch.inf)
    return own - (others.amax(-1) if function == "margin" else others.logsumexp(-1))


def _of(scores: Tensor, ids: Tensor) -> Tensor:
    return scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def class_log_odds(model: TextModel, scores: Tensor, target: int) -> Tensor:
    """The log-odds of a class by the scores of all, (R, C) -> (R,): its score where they are not exclusive."""
    return log_odds(scores, target) if are_exclusive(model) else scores[:, target]


def check_function(function: str | None) -> None:
    """Raise a ValueError for a function of the output that does not exist."""
    if function is not None and function not in get_args(Function):
        raise ValueError(f"function is {function!r}; choose from {', '.join(get_args(Function))}, or None")


def contrasted(target: Encoding, foil: Encoding) -> Encoding:
    """One text with a target and another one that it is compared with, at the first token in which they differ.

    Args:
        target, foil: the same text with each of the two.

    Raises:
        ValueError: one of them begins with the other, or the text before them is cut into other tokens.
    """
    pairs = zip(target.target, foil.target)
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if first is None:
        raise ValueError(
            "target and instead_of must differ in a token, and one is, or begins with, the other; give two "
            "continuations of which neither begins with the other"
        )
    place = target.target_positions[first]
    decoder, other = (e.extra.get("decoder_input_ids", e.ids) for e in (target, foil))
    if place != foil.target_positions[first] or decoder[: place + 1] != other[: place + 1]:
        raise ValueError(
            "the text before target and before instead_of is cut into different tokens, so that no place predicts "
            "both; begin both with a space, or neither"
        )
    asked = replace(
        target, target=(target.target[first],), target_positions=(place,), foils=(foil.target[first],)
    )
    if "decoder_input_ids" in target.extra:
        return asked
    return asked.only([index <= place for index in range(len(target.ids))])


def state_sites(model: TextModel) -> Mapping[Label, LayerCall]:
    """Where the state of each layer is read, by label: the layers' outputs, where the model does not say otherwise."""
    sites: Mapping[Label, LayerCall] = getattr(model, "states", model.layers)
    return sites


def is_cut_already(text: Any) -> bool:
    """Whether a text is token ids, or the messages of a chat."""
    if not isinstance(text, (list, tuple)) or not text:
        return False
    return all(isinstance(part, Mapping) for part in text) or all(
        isinstance(part, int) and not isinstance(part, bool) for part in text
    )


def as_int(value: Any) -> Any:
    """A whole number of NumPy or torch as an int; anything else as it is.

    Examples::
        >>> as_int(torch.tensor(3)), as_int(True), as_int("3"), as_int(torch.tensor(3.0))
        (3, True, '3', tensor(3.))
    """
    if isinstance(value, (int, str)) or not hasattr(value, "__index__"):
        return value
    dtype: Any = getattr(value, "dtype", None)
    dimensions: Any = getattr(value, "ndim", None)
    if dtype is torch.bool or dimensions:
        return value
    try:
        return operator.index(value)
    except TypeError:  # a float
        return value


def plain_values(values: Any) -> Any:
    """What an array, tensor or Series holds, as a list, or of a single number that number; anything else as it is.

    Examples::
        >>> plain_values(torch.tensor([1, 2])), plain_values(torch.tensor(3)), plain_values(("a", "b"))
        ([1, 2], 3, ('a', 'b'))
    """
    return values.tolist() if callable(getattr(values, "tolist", None)) else values


def shown(text: str, most: int = 40) -> str:
    """A text in a message: its beginning, in quotes.

    Examples::
        >>> shown("a film"), shown("a long film", 6)
        ("'a film'", "'a lon…'")
    """
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")


def _spans(text: str, count: int) -> list[tuple[int, int]]:
    """Where the words of a text are, which must be ``count``."""
    spans, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        spans.append((start, end))
    if len(spans) != count:
        raise ValueError(
            f"the tokenizer gives {count} ids for a text of {len(spans)} words and no offsets; let it return a mapping "
            'with "input_ids", "tokens" and "offset_mapping"'
        )
    return spans
