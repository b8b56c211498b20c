"""Scores of a text's tokens, and their sums over words, sentences and the whole text."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

Granularity = Literal["token", "word", "sentence"]
Aggregate = Literal["sum", "mean", "max"]
Offset = tuple[int, int, int]  # segment (0 = text, 1 = pair), start, end, in characters
Span = tuple[int, int]

_CHUNK = re.compile(r"\S+")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ENDS = ".!?…。！？؟۔।"  # noqa: RUF001
_CLOSERS = "\"'”’»›)]}」』）】》"  # noqa: RUF001
_FULL_WIDTH_END = re.compile(f"[。！？][{_ENDS}]*[{re.escape(_CLOSERS)}]*")  # noqa: RUF001


@dataclass(frozen=True)
class Unit:
    """Tokens that are read as one.

    Attributes:
        name: what the text says there; for a token, and for every special token, the token itself.
        offset: (segment, start, end) in characters, None for a special token.
        tokens: their indices.
    """

    name: str
    offset: Offset | None
    tokens: tuple[int, ...]


def group(
    texts: Sequence[str | None],
    tokens: Sequence[str],
    offsets: Sequence[Offset | None],
    granularity: Granularity,
    words: Sequence[Offset] = (),
) -> tuple[Unit, ...]:
    """The units that hold the T tokens, each token in exactly one, in order of their first tokens.

    A token goes to the unit with the first character of its span that is no space, so "Ġfilm" belongs to
    "film"; a token without such a character goes to the next unit, and to the last one at the end of the
    text. Special tokens (offset None) stay alone. Words without a token are left out.

    Args:
        texts: the text and its pair, one for each segment.
        tokens: T of them.
        offsets: (segment, start, end) of each token; None for a special one.
        granularity: "token", "word" (see `word_spans`) or "sentence" (see `sentence_spans`).
        words: (segment, start, end) of the words, where they are given.

    Raises:
        ValueError: another granularity.

    Example::

        >>> offsets = [None, (0, 0, 2), (0, 2, 5), (0, 5, 10), None]
        >>> [unit.name for unit in group(["don't stop"], ["<s>", "do", "n't", " stop", "</s>"], offsets, "word")]
        ['<s>', "don't", 'stop', '</s>']
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is {granularity!r}: choose from {', '.join(get_args(Granularity))}")
    if granularity == "token":
        return tuple(Unit(*pair, (i,)) for i, pair in enumerate(zip(tokens, offsets, strict=True)))
    find_spans: Callable[[str], list[Span]] = word_spans if granularity == "word" else sentence_spans
    spans = [find_spans(text or "") for text in texts]
    if granularity == "word" and words:
        spans = [[place[1:] for place in words if place[0] == segment] for segment in range(len(texts))]

    # a special token's own index, or the unit's place; and how often the text was begun again, for another choice
    members: dict[tuple[int | Offset, int], list[int]] = {}
    segment = begun = 0
    for i, offset in enumerate(offsets):
        begun += offset is not None and offset[0] < segment
        segment = segment if offset is None else offset[0]
        place = i if offset is None else _unit_of(offset, texts, spans)
        members.setdefault((place, begun), []).append(i)
    return tuple(
        Unit(tokens[place], None, tuple(inside))
        if isinstance(place, int)
        else Unit((texts[place[0]] or "")[place[1] : place[2]], place, tuple(inside))
        for (place, _), inside in members.items()
    )


def check_aggregate(aggregate: str) -> None:
    """Raise a ValueError for a way to aggregate that does not exist."""
    if aggregate not in get_args(Aggregate):
        raise ValueError(f"aggregate is {aggregate!r}: choose from {', '.join(get_args(Aggregate))}")


def word_spans(text: str) -> list[Span]:
    """(start, end) of each word: what stands between spaces, without the punctuation at its two ends.

    A run of punctuation at an end is a unit of its own (Unicode category P; symbols such as $ and emoji
    belong to the word). Inner punctuation stays: "don't", "state-of-the-art". Marks and joiners go with the
    character before them. A script without spaces, such as Chinese, is not split further.

    Example::

        >>> text = '"Don\\'t," she said...'
        >>> [text[start:end] for start, end in word_spans(text)]
        ['"', "Don't", ',"', 'she', 'said', '...']
    """
    return [span for chunk in _CHUNK.finditer(text) for span in _peel(chunk.group(), chunk.start())]


def sentence_spans(text: str) -> list[Span]:
    """(start, end) of each sentence, without the space around it.

    One ends at a chunk of text that ends in one of ``. ! ? … 。 ！ ？ ؟ ۔ ।``, closing quotes and brackets
    aside; after 。 ！ ？ also where no space follows; and at a blank line. That is all: "Dr. No" is two.

    Example::

        >>> text = 'It works. "Really?" Yes'
        >>> [text[start:end] for start, end in sentence_spans(text)]
        ['It works.', '"Really?"', 'Yes']
    """
    cuts = {0, len(text)} | {blank.end() for blank in _BLANK_LINE.finditer(text)}
    for chunk in _CHUNK.finditer(text):
        if chunk.group().rstrip(_CLOSERS).endswith(tuple(_ENDS)):
            cuts.add(chunk.end())
        cuts |= {chunk.start() + end.end() for end in _FULL_WIDTH_END.finditer(chunk.group())}
    stripped = [_strip(text, *span) for span in pairwise(sorted(cuts))]
    return [(start, end) for start, end in stripped if start < end]


def _unit_of(offset: Offset, texts: Sequence[str | None], spans: Sequence[list[Span]]) -> Offset:
    """The place of the unit that holds a token."""
    segment, start, _ = offset
    text, inside = texts[segment] or "", spans[segment]
    if not inside:  # nothing but space: the whole segment is the unit
        return segment, 0, len(text)
    character = _CHUNK.search(text, start)
    if character is None:
        return segment, *inside[-1]
    # no unit starts or ends inside a space, so the last one that starts at or before a character holds it
    return segment, *inside[bisect_right(inside, character.start(), key=lambda span: span[0]) - 1]


def _peel(chunk: str, start: int) -> list[Span]:
    """The punctuation before, the core and the punctuation after, as far as they are there."""
    punctuation: list[bool] = []
    for character in chunk:
        category = unicodedata.category(character)
        attached = bool(punctuation) and (category[0] == "M" or category == "Cf")
        punctuation.append(punctuation[-1] if attached else category[0] == "P")
    if all(punctuation):
        return [(start, start + len(chunk))]
    first, last = punctuation.index(False), len(chunk) - punctuation[::-1].index(False)
    cuts = (start, start + first, start + last, start + len(chunk))
    return [span for span in pairwise(cuts) if span[0] < span[1]]


def _strip(text: str, start: int, end: int) -> Span:
    """The span without the space at its two ends."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


Kind = Literal["kept", "loss", "sigma", "erased"]

TIE = 2.0  # standard errors of a difference below which two units cannot be told apart


@dataclass(frozen=True, eq=False)
class Scores:
    """One score for each of U units (tokens, words or sentences) in each of R rows (states).

    Attributes:
        kind: "kept" or "loss", in nats; "sigma", in units of the noisy layer's output; or "erased", in nats of a
            class's log-odds or of a target's log probability, in D of other states.
        granularity: "token", "word" or "sentence".
        aggregate: how a unit's value comes of its tokens': "sum", "mean" or "max".
        units: their names, U.
        offsets: (segment, start, end) in characters, U; None for a special token.
        rows: (layer, position), R.
        values: (R, U) float64.
        standard_error: (R, U) float64, of the nats; for "sigma" of log sigma.
        tied: (R, U) bool, true where the unit lies within two standard errors of the difference of the next
            one in the row's rank order, from the unit it keeps most to the one it keeps least.

    Example::

        >>> from interp_plugin.text.explanation import example
        >>> scores = example()[0].scores("kept", "word")
        >>> scores.units, scores.values.shape
        (('[CLS]', 'a', 'film', '[SEP]'), torch.Size([2, 4]))
        >>> film = scores.of("film").at("output")
        >>> round(film.values.item(), 1), round(film.standard_error.item(), 1)
        (8.1, 0.2)
    """

    kind: Kind
    granularity: Granularity
    aggregate: Aggregate
    units: tuple[str, ...]
    offsets: tuple[Offset | None, ...]
    rows: tuple[tuple[int | str, int | None], ...]
    values: Tensor
    standard_error: Tensor
    tied: Tensor

    def of(self, name: str, *others: str) -> Scores:
        """The scores of the units with these names, in the order of the text.

        Every unit of a name is there, so a word that stands twice in the text has two columns.

        Raises:
            KeyError: no unit has one of the names; the message lists those that exist.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> scores = example()[0].scores("kept", "word")
            >>> scores.of("film").values.round().tolist()
            [[15.0], [8.0]]
            >>> scores.of("book")
            Traceback (most recent call last):
                ...
            KeyError: "there is no word 'book': choose from '[CLS]', 'a', 'film', '[SEP]'"
        """
        names = (name, *others)
        for each in names:
            if each not in self.units:
                raise KeyError(f"there is no {self.granularity} {each!r}: choose from {listed(self.units)}")
        columns = [column for column, unit in enumerate(self.units) if unit in names]
        return replace(
            self,
            units=tuple(self.units[column] for column in columns),
            offsets=tuple(self.offsets[column] for column in columns),
            values=self.values[:, columns],
            standard_error=self.standard_error[:, columns],
            tied=self.tied[:, columns],
        )

    def at(self, layer: int | str) -> Scores:
        """The scores in the rows of a layer: one, or one for each position that was explained.

        Raises:
            KeyError: the layer was not explained; the message lists those that were.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> example()[0].scores("kept", "word").at(1).values.round().tolist()
            [[0.0, 8.0, 15.0, 0.0]]
        """
        places = [place for place, row in enumerate(self.rows) if row[0] == layer]
        if not places:
            layers = dict.fromkeys(row[0] for row in self.rows)
            raise KeyError(f"layer {layer!r} was not explained: choose from {listed(layers)}")
        return replace(
            self,
            rows=tuple(self.rows[place] for place in places),
            values=self.values[places],
            standard_error=self.standard_error[places],
            tied=self.tied[places],
        )


def listed(names: Iterable[object]) -> str:
    """For a message: what there is to choose from."""
    return ", ".join(map(repr, names))


@dataclass(frozen=True)
class Known:
    """What was learned about T tokens by R rows, in float64: log sigma and its covariance between tokens.

    The errors of a row's tokens share noise draws. One common covariance stands for all pairs of tokens;
    it is the one that gives the mean over tokens the variance it is known to have.
    """

    size: int  # K
    log_sigma: Tensor  # (R, T)
    log_cap: Tensor  # (R, 1)
    log_std: Tensor  # (R, 1), of tau
    variance: Tensor  # (R, T), of log sigma
    covariance: Tensor  # (R, 1), between two tokens that are not at the cap

    @classmethod
    def of(
        cls,
        size: int,
        sigma: Tensor,
        cap: Tensor,
        input_std: Tensor,
        standard_error: Tensor,
        common_error: Tensor,
    ) -> Known:
        """From sigma and its standard error (R, T), the cap, tau and the error of the mean of log sigma (R,)."""
        variance = standard_error.double().square()  # (R, T)
        free = (variance > 0).sum(1)  # (R,), a token at the cap has no error
        total = (variance.shape[1] * common_error).square()  # (R,), of the sum of log sigma
        shared = (total - variance.sum(1)) / (free * (free - 1))
        return cls(
            size=size,
            log_sigma=sigma.double().log(),
            # as float32, like sigma: a token at the cap keeps exactly 0
            log_cap=cap.float().double().log()[:, None],
            log_std=input_std.double().log()[:, None],
            variance=variance,
            covariance=torch.where(free > 1, shared, 0.0)[:, None],
        )

    def per_token(self, kind: Kind) -> Tensor:
        """What adds up over tokens, (R, T): nats, or log sigma."""
        if kind == "kept":  # as in objective.information_kept
            passed = softplus(2 * (self.log_std - self.log_sigma)) - softplus(
                2 * (self.log_std - self.log_cap)
            )
            return self.size / 2 * torch.where(self.log_sigma >= self.log_cap, 0.0, passed).clamp(min=0)
        if kind == "loss":
            return self.size * (0.5 * math.log(2 * math.pi * math.e) + self.log_sigma)
        return self.log_sigma

    def slope(self, kind: Kind) -> Tensor:
        """By how much :meth:`per_token` changes with log sigma, (R, T), without its sign."""
        if kind == "kept":  # K tau^2 / (tau^2 + sigma^2)
            return self.size * (2 * (self.log_std - self.log_sigma)).sigmoid()
        return torch.full_like(self.log_sigma, self.size if kind == "loss" else 1)


def check_kind(kind: str) -> None:
    """Raise a ValueError for a kind that does not exist."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: choose from {', '.join(get_args(Kind))}")


def score(
    kind: Kind, known: Known, units: Sequence[Unit], aggregate: Aggregate = "sum"
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, standard errors and ties of the units, (R, U) each.

    A unit's nats are the sum over its tokens, their mean, or those of the token that the state keeps most of; its
    sigma is the one of equal entropy, the geometric mean, or that token's.
    """
    unit_of = torch.empty(known.log_sigma.shape[1], dtype=torch.long)
    for number, unit in enumerate(units):
        unit_of[list(unit.tokens)] = number

    def gather(per_token: Tensor) -> Tensor:  # (R, T) -> (R, U); no matrix product: 0 * inf is NaN
        return per_token.new_zeros(len(per_token), len(units)).index_add(1, unit_of, per_token)

    if aggregate == "max":
        weight = _most_kept(known, units)
    elif aggregate == "mean" or kind == "sigma":
        weight = (1 / gather(torch.ones_like(known.log_sigma)))[:, unit_of]
    else:
        weight = torch.ones_like(known.log_sigma)  # (R, T)

    slope = known.slope(kind) * weight
    reach = gather(slope * (known.variance > 0))  # (R, U), what the common covariance acts on
    pairs = reach.square() - gather(slope.square() * (known.variance > 0))
    between = torch.where(pairs.abs() > 1e-12 * reach.square(), pairs * known.covariance, 0.0)
    variance = (gather(known.variance * slope.square()) + between).clamp(min=0)

    values = gather(torch.where(weight > 0, known.per_token(kind) * weight, 0.0))  # (R, U)
    tied = _tied(values if kind == "kept" else -values, variance, reach, known.covariance)
    return (values.exp() if kind == "sigma" else values), variance.sqrt(), tied


def erased_score(
    erased: Tensor, standard_error: Tensor, units: Sequence[Unit], aggregate: Aggregate
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, standard errors and ties of the units, (R, U) each, of what is lost with each token, (R, T).

    A unit's value is the sum over its tokens, their mean, or that of the largest absolute value.
    """
    weight = torch.zeros(len(erased), len(units), erased.shape[1], dtype=torch.float64)  # (R, U, T)
    for number, unit in enumerate(units):
        tokens = torch.tensor(unit.tokens)
        if aggregate == "max":
            largest = tokens[erased[:, tokens].abs().argmax(1)]  # (R,)
            weight[torch.arange(len(erased)), number, largest] = 1
        else:
            weight[:, number, tokens] = 1 / len(tokens) if aggregate == "mean" else 1
    values = (weight @ erased.double().unsqueeze(2)).squeeze(2)
    variance = (weight.square() @ standard_error.double().square().unsqueeze(2)).squeeze(2)
    nothing = torch.zeros_like(values)
    return values, variance.sqrt(), _tied(values, variance, nothing, nothing[:, :1])


def _most_kept(known: Known, units: Sequence[Unit]) -> Tensor:
    """1 for the token of each unit that bears the least noise, 0 for the others, (R, T)."""
    weight = torch.zeros_like(known.log_sigma)
    for unit in units:
        tokens = torch.tensor(unit.tokens)
        least = tokens[known.log_sigma[:, tokens].argmin(1)]  # (R,)
        weight[torch.arange(len(least)), least] = 1
    return weight


def _tied(importance: Tensor, variance: Tensor, reach: Tensor, covariance: Tensor) -> Tensor:
    """Whether each unit cannot be told apart from the next one in rank, (R, U)."""
    order = importance.argsort(dim=1, descending=True, stable=True)
    importance, variance, reach = (each.gather(1, order) for each in (importance, variance, reach))
    difference = (
        variance[:, :-1] + variance[:, 1:] - 2 * covariance * reach[:, :-1] * reach[:, 1:]
    )  # (R, U - 1)
    near = importance[:, :-1] - importance[:, 1:] <= TIE * difference.clamp(min=0).sqrt()
    return torch.zeros_like(importance, dtype=torch.bool).scatter(1, order[:, :-1], near)
