"""TextModel, the interface of a model with its tokenizer, and PlainModel, which wraps a plain PyTorch module."""

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
"""Largest length of a text, about a million tokens: tokenizing more would take minutes and gigabytes."""
OUTPUT = "output"
HIDDEN = "hidden_states."
"""Prefix of a block's label for the block's own output, in models whose layer state is read after the next norm."""
Label = int | str
"""A layer: the number of a block, a name, or OUTPUT for what the model returns."""
Offset = tuple[int, int, int]
"""Segment (0 for the text, 1 for its pair), first character, and the character after the last."""
EACH = "each"
"""Target for every class, or for both ends of an answer, in a row each."""
Source = str | Sequence[str] | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, its words, its token ids, or the messages of a chat."""
Second = str | Sequence[str] | None
"""Second input besides a text: a second text, or choices, each of which is read together with the text."""
Axis = Literal["input", "decoder"]
Target = str | int | tuple[str, str | tuple[int, int]] | None
"""A continuation, the id of one token, or a continuation and the span of its characters that is the target.

For answer spans: "start", "end" or "both", alone or in a pair with the answer."""
Function = Literal["logit", "log_probability", "probability", "log_odds", "margin"]
"""Function of the scores of a class or token; see :func:`watched`."""
Task = Literal["sequence classes", "token classes", "next token", "answer span", "none"]


PER_TOKEN = ("token_type_ids", "position_ids", "langs", "bbox")
"""Arguments of a forward that have one value for each token."""


class Words(tuple[str, ...]):
    """A text that is already split into words."""


@dataclass(frozen=True)
class Encoding:
    """One text, tokenised and not padded; T tokens.

    Attributes:
        text, pair: the tokenised texts; the pair is a second sentence, a continuation or a decoder's text.
        tokens: T readable tokens.
        offsets: offset of each token in its text; None for special tokens.
        ids: T token ids.
        extra: further inputs of the model, by name: one value for each token, a decoder's sequence, or values of the
            whole text.
        target: ids of the target tokens of a language model; for an answer span, indices of its first and last token.
        target_positions: output position that predicts each target token; for an answer span, 0 for its start and 1
            for its end.
        foils: ids with which the target tokens are contrasted, one for each; empty: no contrast.
        parts: for a chat, number and role of each token's message, None for tokens of the template; otherwise empty.
        units: unit number of each token; tokens of a unit share one noise scale, -1 means no noise; empty: each token
            is a unit.
        choices: the choices that are read with the text; ``extra["choice"]`` has the choice number of each token.
        words: offsets of the words, if the text was given as words; otherwise empty.
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
        """The same encoding with its choice as an ordinary pair."""
        extra = {name: values for name, values in self.extra.items() if name != "choice"}
        return replace(self, extra=extra, choices=())

    def only(self, kept: Sequence[bool]) -> Encoding:
        """Keep only some of the tokens, (T,); target positions move accordingly.

        Raises:
            ValueError: the model reads a second sequence, or no token is left.

        Examples::
            >>> Encoding("a b", None, ("a", "b"), ((0, 0, 1), (0, 2, 3)), (5, 6), {}, (7,), (1,)).only([True, False])
            Encoding(text='a b', pair=None, tokens=('a',), offsets=((0, 0, 1),), ids=(5,), extra={}, target=(7,), \
target_positions=(0,), foils=(), parts=(), units=(), choices=(), words=())
        """
        if any(len(values) != len(self.ids) for values in self.extra.values()):
            raise ValueError(
                "tokens cannot be deleted, because the model reads a second sequence that would not change; use 'mask' "
                "instead"
            )
        if not any(kept):
            raise ValueError("no token of the text would be left; keep the special ones, or use 'mask'")

        def select(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(value for value, keep in zip(values, kept) if keep)

        return replace(
            self,
            tokens=select(self.tokens),
            offsets=select(self.offsets),
            ids=select(self.ids),
            extra={name: select(values) for name, values in self.extra.items()},
            parts=select(self.parts),
            units=select(self.units),
            target_positions=tuple(max(sum(kept[: at + 1]) - 1, 0) for at in self.target_positions),
        )


class TextModel(Protocol):
    """A model that reads text.

    Attributes:
        embedding: the default noise layer.
        layers: where each layer's state is read, in forward order.
        axis: which tokens dimension 1 of a layer's state (and of "output") runs over.
        task: kind of the output: (B, C) class scores, (B, T, C), (B, T, vocabulary), (B, 2, T) scores of the first
            and of the last token of an answer, or no scores.
        pads: whether texts of different lengths may share a batch.
        module: the model itself.
        vocabulary: size of a language model's vocabulary; 0 for other models.
        pad_id: id of the padding token.
        mask_id: id of the mask token; None if the model has none.
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
        """Return where a layer's attention heads are concatenated in the last dimension; their number and width."""
        ...

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """Tokenise a text; ``target`` is a language model's continuation (classifiers ignore it)."""
        ...

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the arguments of a call, (B, ...) each, padded on the right; and the token mask, (B, T).

        Ids come first, then the attention mask if the model takes one.
        """
        ...

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the output, of the kind that ``task`` says."""
        ...

    def class_index(self, target: int | str) -> int:
        """Return the number of a class, given by number or name."""
        ...

    def class_name(self, index: int) -> str:
        """Return the name of a class."""
        ...

    def predicted(self, scores: Tensor) -> tuple[str, float] | None:
        """Return the name and probability of the likeliest class or token, from scores (C,) or (vocabulary,)."""
        ...

    def target_name(self, encoding: Encoding) -> str:
        """Return the target of a language model as text."""
        ...


def _of_one_text(values: Any, dimensions: int) -> Any:
    """Return a tokenizer's result for one text as lists, without the batch dimension of return_tensors="pt"."""
    values = plain_values(values)
    depth, inner = 0, values
    while isinstance(inner, (list, tuple)) and len(inner):
        depth, inner = depth + 1, inner[0]
    return values[0] if depth > dimensions and len(values) == 1 else values


_NO_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.loss._Loss, nn.ModuleList, nn.ModuleDict)


class PlainModel:
    """A classifier written in plain PyTorch (an LSTM, a CNN), with its tokenizer and embedding.

    Args:
        module: takes ids (B, T) and, if its forward's second parameter is required or has "mask" in its
            name, a mask (B, T) of real tokens; returns class scores (B, C).
        tokenizer: text -> ids, or a mapping with "input_ids" and optionally "tokens" and
            "offset_mapping" (start and end character of each token).
        embedding: the module that turns ids into vectors (B, T, K).
        layers: name -> module whose (first) output (B, T, ...) or (B, ...) is a state; None: every
            direct child except the embedding, dropout, losses and containers of modules.
        classes: names of the classes.
        pads: whether texts of different lengths may share a batch: the module must ignore masked tokens, and
            dimension 1 of every state must run over the tokens.
        pad_id: id of the padding token.
        mask_id: id of the mask token, if the model has one.

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
                f"embedding {type(embedding).__name__} is not part of the model; give the module that the model calls"
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
        """Name of the model's class."""
        return type(self.module).__name__

    def head_site(self, label: Label) -> None:
        return None

    def encode(
        self, text: Source, pair: Second = None, *, target: Target = None, truncation: bool = False
    ) -> Encoding:
        """Tokenise one text; see :class:`TextModel`."""
        if not isinstance(text, str):
            raise TypeError("a plain PyTorch model takes texts, not token ids or chats; give a str")
        if pair is not None:
            raise ValueError("a plain PyTorch model takes one text, not a pair; join the two yourself")
        if len(text) > CHARACTERS:
            raise ValueError(f"text has {len(text)} characters: at most {CHARACTERS} are read; shorten it")
        found = self.tokenizer(text)
        given = _of_one_text(found["input_ids"] if isinstance(found, Mapping) else found, 1)
        try:
            ids = tuple(map(operator.index, given))
        except TypeError as error:
            raise TypeError(
                f"the tokenizer gives {shown(str(given))} for text {shown(text)}: it must give a whole number for each "
                'token, or a mapping with these in "input_ids"'
            ) from error
        if not ids:
            raise ValueError(f"text {text!r} has no tokens: it must hold at least one; give some words")
        rows = getattr(self.embedding.layer, "num_embeddings", None)
        if rows is not None and not all(0 <= i < rows for i in ids):
            raise ValueError(
                f"id {next(i for i in ids if not 0 <= i < rows)} is not one of the embedding's {rows}: tokenizer and "
                "model do not fit; give the tokenizer that the model was trained with"
            )
        fields = found if isinstance(found, Mapping) else {}
        offsets = fields.get("offset_mapping")
        spans = (
            _spans(text, len(ids))
            if offsets is None
            else [(int(a), int(b)) for a, b in _of_one_text(offsets, 2)]
        )
        of_fast = (
            found.tokens() if callable(getattr(found, "tokens", None)) else None
        )  # fast transformers tokenizer
        tokens = fields.get("tokens") or of_fast or [text[a:b] for a, b in spans]
        if not len(ids) == len(spans) == len(tokens):
            raise ValueError(
                f"the tokenizer gives {len(ids)} ids, {len(tokens)} tokens and {len(spans)} offsets; they must agree"
            )
        return Encoding(text, None, tuple(tokens), tuple((0, a, b) if a < b else None for a, b in spans), ids)

    def collate(self, encodings: Sequence[Encoding]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return ids (B, T), and the mask if the model takes one; see :class:`TextModel`."""
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
        """Return the number of a class; see :class:`TextModel`."""
        known = list(self.classes or [])
        target = as_int(target)
        if isinstance(target, int) and (not known or 0 <= target < len(known)):
            return target
        if target not in known:
            raise ValueError(f"target {target!r} is not a class of the model, whose classes are {known}")
        return known.index(target)

    def class_name(self, index: int) -> str:
        """Return the name of a class; see :class:`TextModel`."""
        return self.classes[index] if self.classes else str(index)

    def predicted(self, scores: Tensor) -> tuple[str, float] | None:
        """Return the likeliest class and its probability; see :class:`TextModel`."""
        if scores.ndim != 1 or len(scores) < 2:
            return None
        probability, index = scores.float().softmax(-1).max(-1)
        return self.class_name(int(index)), float(probability)

    def target_name(self, encoding: Encoding) -> str:
        """Raise an error: a classifier has no target tokens."""
        raise ValueError(f"{self.name} is a classifier and has no target tokens")


def are_exclusive(model: TextModel) -> bool:
    """Whether the classes exclude each other (softmax); otherwise each has its own probability (sigmoid)."""
    return getattr(model, "exclusive", True)


def watched(
    scores: Tensor, ids: Tensor, function: Function, foils: Tensor | None = None, exclusive: bool = True
) -> Tensor:
    """Compute a function of the scores of classes or tokens, (..., C), at the classes ids, (...); shape (...).

    "logit": the score itself.  "log_probability" and "probability": after a softmax.  "log_odds": log p / (1 - p), the
    score minus the logsumexp of the other scores.  "margin": the score minus the largest other score.  With foils: the
    function at ids minus the function at foils; for log probabilities this equals the difference of the scores.
    Classes that do not exclude each other have a sigmoid instead of the softmax; their log-odds are the score.

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
    """Return the log-odds of a class, (R, C) -> (R,): its score if the classes do not exclude each other."""
    return log_odds(scores, target) if are_exclusive(model) else scores[:, target]


def check_function(function: str | None) -> None:
    """Raise a ValueError for an unknown function of the output."""
    if function is not None and function not in get_args(Function):
        raise ValueError(f"function is {function!r}; choose from {', '.join(get_args(Function))}, or None")


def contrasted(target: Encoding, foil: Encoding) -> Encoding:
    """Contrast a target with a foil at the first token in which they differ.

    Args:
        target, foil: the same text with the one and the other target.

    Raises:
        ValueError: one of them begins with the other, or the text before them is tokenised differently.
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
            "the text before target and before instead_of is tokenised differently, so no position predicts both; "
            "begin both with a space, or neither"
        )
    contrast = replace(
        target, target=(target.target[first],), target_positions=(place,), foils=(foil.target[first],)
    )
    if "decoder_input_ids" in target.extra:
        return contrast
    return contrast.only([index <= place for index in range(len(target.ids))])


def state_sites(model: TextModel) -> Mapping[Label, LayerCall]:
    """Return where the state of each layer is read, by label: the model's ``states``, or else its ``layers``."""
    sites: Mapping[Label, LayerCall] = getattr(model, "states", model.layers)
    return sites


def is_cut_already(text: Any) -> bool:
    """Whether a text is given as token ids or as the messages of a chat."""
    if not isinstance(text, (list, tuple)) or not text:
        return False
    return all(isinstance(part, Mapping) for part in text) or all(
        isinstance(part, int) and not isinstance(part, bool) for part in text
    )


def as_int(value: Any) -> Any:
    """Convert an integer of NumPy or torch to an int; return anything else unchanged.

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
    """Convert an array, tensor or Series to a list, or to a number if it is a scalar; return anything else unchanged.

    Examples::
        >>> plain_values(torch.tensor([1, 2])), plain_values(torch.tensor(3)), plain_values(("a", "b"))
        ([1, 2], 3, ('a', 'b'))
    """
    return values.tolist() if callable(getattr(values, "tolist", None)) else values


def shown(text: str, most: int = 40) -> str:
    """Format a text for a message: its beginning, in quotes.

    Examples::
        >>> shown("a film"), shown("a long film", 6)
        ("'a film'", "'a lon…'")
    """
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")


def _spans(text: str, count: int) -> list[tuple[int, int]]:
    """Return the character spans of the words of a text; there must be ``count`` words."""
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
