"""Scores of a text's tokens, aggregated over words, sentences or the whole text."""

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
    """A group of tokens that get one score: a token, word or sentence.

    Attributes:
        name: the text of the unit; for a single token or a special token, the token itself.
        offset: (segment, start, end) in characters; None for a special token.
        tokens: indices of the tokens.
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
    """Group the T tokens into units, each token in exactly one, in the order of their first tokens.

    A token belongs to the unit of its first non-space character, so "Ġfilm" belongs to "film"; a token of spaces only
    belongs to the next unit, or at the end of the text to the last one. Every special token (offset None) is a unit of
    its own. Words without a token are left out.

    Args:
        texts: the text and its pair, one for each segment.
        tokens: T tokens.
        offsets: (segment, start, end) of each token; None for a special token.
        granularity: "token", "word" (see `word_spans`) or "sentence" (see `sentence_spans`).
        words: (segment, start, end) of the words, if the text was given as words.

    Raises:
        ValueError: an unknown granularity.

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

    # key: index of a special token or place of a unit; and the number of the choice, as the text repeats for each
    members: dict[tuple[int | Offset, int], list[int]] = {}
    segment = repetition = 0
    for i, offset in enumerate(offsets):
        repetition += offset is not None and offset[0] < segment
        segment = segment if offset is None else offset[0]
        place = i if offset is None else _unit_of(offset, texts, spans)
        members.setdefault((place, repetition), []).append(i)
    return tuple(
        Unit(tokens[place], None, tuple(inside))
        if isinstance(place, int)
        else Unit((texts[place[0]] or "")[place[1] : place[2]], place, tuple(inside))
        for (place, _), inside in members.items()
    )


def check_aggregate(aggregate: str) -> None:
    """Raise a ValueError for an unknown way to aggregate."""
    if aggregate not in get_args(Aggregate):
        raise ValueError(f"aggregate is {aggregate!r}: choose from {', '.join(get_args(Aggregate))}")


def word_spans(text: str) -> list[Span]:
    """Find (start, end) of each word: the text between spaces, without punctuation at its two ends.

    A run of punctuation at an end is a unit of its own (Unicode category P; symbols such as $ and emoji
    belong to the word). Inner punctuation is part of the word: "don't", "state-of-the-art". Marks and joiners belong
    to the character before them. Scripts without spaces, such as Chinese, are not split further.

    Example::

        >>> text = '"Don\\'t," she said...'
        >>> [text[start:end] for start, end in word_spans(text)]
        ['"', "Don't", ',"', 'she', 'said', '...']
    """
    return [span for chunk in _CHUNK.finditer(text) for span in _peel(chunk.group(), chunk.start())]


def sentence_spans(text: str) -> list[Span]:
    """Find (start, end) of each sentence, without the space around it.

    A sentence ends at a blank line, and where text before a space ends in one of ``. ! ? … 。 ！ ？ ؟ ۔ ।`` and
    possibly closing quotes and brackets; after 。 ！ ？ no space is needed. There are no other rules: "Dr. No" is two.

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
    """Return the place of the unit that contains a token."""
    segment, start, _ = offset
    text, inside = texts[segment] or "", spans[segment]
    if not inside:  # nothing but space: the whole segment is the unit
        return segment, 0, len(text)
    character = _CHUNK.search(text, start)
    if character is None:
        return segment, *inside[-1]
    # no unit starts or ends within a space, so the last one that starts at or before a character contains it
    return segment, *inside[bisect_right(inside, character.start(), key=lambda span: span[0]) - 1]


def _peel(chunk: str, start: int) -> list[Span]:
    """Split a chunk into leading punctuation, core and trailing punctuation; empty parts are left out."""
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
    """Remove the space at the two ends of a span."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


Kind = Literal["kept", "loss", "sigma", "erased"]

TIE = 2.0  # two units are tied if they differ by less than so many standard errors of their difference


@dataclass(frozen=True, eq=False)
class Scores:
    """One score for each of U units (tokens, words or sentences) in each of R rows (states).

    Attributes:
        kind: "kept" or "loss", in nats; "sigma", in units of the noise layer's output; or "erased", in nats of a
            class's log-odds or of a target's log probability, for other states in D.
        granularity: "token", "word" or "sentence".
        aggregate: how a unit's value is computed from its tokens' values: "sum", "mean" or "max".
        units: U names.
        offsets: U offsets (segment, start, end) in characters; None for a special token.
        rows: R pairs (layer, position).
        values: (R, U) float64.
        standard_error: (R, U) float64, of the nats; for "sigma" of log sigma.
        tied: (R, U) bool, true if the unit differs from the next one in the row's ranking, from most kept to least
            kept, by at most two standard errors of the difference.

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
        """Return the scores of the units with these names, in the order of the text.

        All units of a name are included: a word that occurs twice in the text has two columns.

        Raises:
            KeyError: a name is not that of a unit; the message lists those that exist.

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
        """Return the scores in the rows of a layer: one row, or one for each explained position.

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
    """Format a list of choices for a message."""
    return ", ".join(map(repr, names))


@dataclass(frozen=True)
class Known:
    """Learned log sigma of T tokens in R rows, and its covariance between tokens, in float64.

    The errors of a row's tokens are correlated, because they share noise samples. One common covariance is used for
    all pairs of tokens, chosen so that the mean over tokens has its known variance.
    """

    size: int  # K
    log_sigma: Tensor  # (R, T)
    log_cap: Tensor  # (R, 1)
    log_std: Tensor  # (R, 1), log tau
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
        """Build from sigma and its standard error (R, T), the cap, tau and the error of the mean log sigma (R,)."""
        variance = standard_error.double().square()  # (R, T)
        free = (variance > 0).sum(1)  # (R,), a token at the cap has no error
        total = (variance.shape[1] * common_error).square()  # (R,), of the sum of log sigma
        shared = (total - variance.sum(1)) / (free * (free - 1))
        return cls(
            size=size,
            log_sigma=sigma.double().log(),
            # rounded to float32 like sigma, so that a token at the cap keeps exactly 0
            log_cap=cap.float().double().log()[:, None],
            log_std=input_std.double().log()[:, None],
            variance=variance,
            covariance=torch.where(free > 1, shared, 0.0)[:, None],
        )

    def per_token(self, kind: Kind) -> Tensor:
        """Return the additive value of each token, (R, T): nats, or for "sigma" log sigma."""
        if kind == "kept":  # as in objective.information_kept
            passed = softplus(2 * (self.log_std - self.log_sigma)) - softplus(
                2 * (self.log_std - self.log_cap)
            )
            return self.size / 2 * torch.where(self.log_sigma >= self.log_cap, 0.0, passed).clamp(min=0)
        if kind == "loss":
            return self.size * (0.5 * math.log(2 * math.pi * math.e) + self.log_sigma)
        return self.log_sigma

    def slope(self, kind: Kind) -> Tensor:
        """Return the absolute derivative of :meth:`per_token` with respect to log sigma, (R, T)."""
        if kind == "kept":  # K tau^2 / (tau^2 + sigma^2)
            return self.size * (2 * (self.log_std - self.log_sigma)).sigmoid()
        return torch.full_like(self.log_sigma, self.size if kind == "loss" else 1)


def check_kind(kind: str) -> None:
    """Raise a ValueError for an unknown kind."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: choose from {', '.join(get_args(Kind))}")


def score(
    kind: Kind, known: Known, units: Sequence[Unit], aggregate: Aggregate = "sum"
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute values, standard errors and ties of the units, (R, U) each.

    A unit's nats are the sum over its tokens, their mean, or those of the token that the state keeps most of; its
    sigma is the geometric mean (equal entropy), or for "max" that token's.
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
    total_slope = gather(slope * (known.variance > 0))  # (R, U), factor of the common covariance
    pairs = total_slope.square() - gather(slope.square() * (known.variance > 0))
    between = torch.where(pairs.abs() > 1e-12 * total_slope.square(), pairs * known.covariance, 0.0)
    variance = (gather(known.variance * slope.square()) + between).clamp(min=0)

    values = gather(torch.where(weight > 0, known.per_token(kind) * weight, 0.0))  # (R, U)
    tied = _tied(values if kind == "kept" else -values, variance, total_slope, known.covariance)
    return (values.exp() if kind == "sigma" else values), variance.sqrt(), tied


def erased_score(
    erased: Tensor,
    standard_error: Tensor,
    units: Sequence[Unit],
    aggregate: Aggregate,
    erased_together: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute values, standard errors and ties of the units, (R, U) each, from erasure scores of tokens, (R, T).

    A unit's value is the sum over its tokens, their mean, or the value that is largest in magnitude.  Tokens that were
    erased together, those with one number in ``erased_together``, (T,), share one score and its error.
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
    share = weight * standard_error.double().unsqueeze(1)  # (R, U, T)
    if erased_together:
        _, number = torch.tensor(erased_together).unique(return_inverse=True)
        share = torch.zeros_like(share).index_add(2, number, share)
    variance = share.square().sum(2)
    zeros = torch.zeros_like(values)  # other errors are taken as independent
    return values, variance.sqrt(), _tied(values, variance, zeros, zeros[:, :1])


def _most_kept(known: Known, units: Sequence[Unit]) -> Tensor:
    """Return weights, (R, T): 1 for the token with the smallest sigma in each unit, 0 for the others."""
    weight = torch.zeros_like(known.log_sigma)
    for unit in units:
        tokens = torch.tensor(unit.tokens)
        least = tokens[known.log_sigma[:, tokens].argmin(1)]  # (R,)
        weight[torch.arange(len(least)), least] = 1
    return weight


def _tied(importance: Tensor, variance: Tensor, slope: Tensor, covariance: Tensor) -> Tensor:
    """Whether each unit is tied with the next one in rank, (R, U)."""
    order = importance.argsort(dim=1, descending=True, stable=True)
    importance, variance, slope = (each.gather(1, order) for each in (importance, variance, slope))
    # variance of the difference, (R, U - 1)
    difference = variance[:, :-1] + variance[:, 1:] - 2 * covariance * slope[:, :-1] * slope[:, 1:]
    is_tied = importance[:, :-1] - importance[:, 1:] <= TIE * difference.clamp(min=0).sqrt()
    return torch.zeros_like(importance, dtype=torch.bool).scatter(1, order[:, :-1], is_tied)
