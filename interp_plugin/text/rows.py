"""Row and TextExplanation: results for the states of one text, and their conversion to plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from interp_plugin.text.scores import (
    Aggregate,
    Granularity,
    Kind,
    Known,
    Offset,
    Scores,
    Unit,
    check_aggregate,
    check_kind,
    erased_score,
    group,
    listed,
    score,
)

Layer = int | str

LABELS = ("layer", "position")
FACTS = (
    *("max_sigma", "input_std", "regime_index", "distortion", "converged", "n_forward", "n_backward"),
    *("rate", "saturated"),
)
ABOUT = ("predicted", "target")  # columns with values of the text
_PLACE = ("text_index", "text", "pair", "unit_index", "unit", "segment", "start", "end", *LABELS)
COLUMNS = (
    *_PLACE,
    *("kept", "loss", "sigma", "standard_error", "loss_standard_error", "tied", *FACTS, *ABOUT),
)
"""Columns of the table if noise was learned."""
ERASED_FACTS = ("damage", "n_forward", "n_backward")
ERASED_COLUMNS = (*_PLACE, "erased", "standard_error", "tied", *ERASED_FACTS, *ABOUT)
"""Columns of the table if tokens were erased."""


class Record:
    """Base class: records are equal if all fields are; tensors compare by value, and NaN equals NaN."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)


@dataclass(frozen=True, eq=False)
class Row(Record):
    """The result for one state: the noise that each of T tokens can bear.

    Attributes:
        layer: number of a block (1 is the first), or a name such as "output".
        position: the token whose hidden vector is the state; None: the layer's output at all tokens.
        sigma: standard deviation of the noise, (T,) float32 on the CPU, in units of the noise layer's output.
        standard_error: standard error of log sigma, (T,) float32 on the CPU; 0 at the cap.
        common_error: standard error of the mean of log sigma over the tokens, whose errors are correlated.
        max_sigma: the cap, in the units of sigma.
        input_std: tau, the standard deviation of one element of the noise layer's output, in the same units.
        regime_index: E, 1 = small-noise regime.
        distortion: D at sigma.
        converged: whether the standard error met the tolerance.
        n_forward, n_backward: forward and backward passes, counted in samples.
        rate: lambda of the solution; smaller than the requested one if samples cannot determine the scales there, as
            for a class output, or if the state saturates; NaN if not known.
        saturated: whether the state of a row that has not converged saturates, so that a lower rate helps, not more
            passes.

    Raises:
        TypeError: the layer is neither an int nor a str.
        ValueError: sigma and standard_error are not both of shape (T,).

    Example::

        >>> sigma, error = torch.tensor([0.1, 0.4]), torch.tensor([0.02, 0.0])
        >>> Row(3, None, sigma, error, 0.01, 0.4, 0.04, 1.02, 0.049, True, 144, 160).layer
        3
    """

    layer: Layer
    position: int | None
    sigma: Tensor
    standard_error: Tensor
    common_error: float
    max_sigma: float
    input_std: float
    regime_index: float
    distortion: float
    converged: bool
    n_forward: int
    n_backward: int
    rate: float = math.nan
    saturated: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layer, (int, str)):
            raise TypeError(
                f"layer is {self.layer!r}, a {type(self.layer).__name__}: it must be an int or a str"
            )
        if self.sigma.dim() != 1 or self.sigma.shape != self.standard_error.shape:
            raise ValueError(
                f"sigma is {tuple(self.sigma.shape)} and standard_error {tuple(self.standard_error.shape)}: "
                "both must be (T,), one number for each token"
            )
        for name in ("sigma", "standard_error"):
            plain = getattr(self, name).detach().to("cpu", torch.float32)
            object.__setattr__(self, name, plain)


@dataclass(frozen=True, eq=False)
class ErasedRow(Row):
    """The result of erasure for one state: what is lost with each of T tokens; sigma is NaN.

    Attributes:
        erased: s_i, what is lost when the token is erased (negative if its erasure raises the answer), (T,) float32:
            nats of log-odds for a class, nats of log probability for a language model's target, D for any other state.
        standard_error: standard error of ``erased``, (T,).
        erasure_probability: p_i, the erasure probabilities at which ``erased`` is the derivative, (T,).
        damage: Delta(p), the damage at these probabilities.

    Example::

        >>> row = ErasedRow.of("output", None, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.1]))
        >>> row.erased.tolist(), row.layer, row.sigma.isnan().all().item()
        ([0.0, 2.0], 'output', True)
    """

    erased: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32))
    erasure_probability: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32))
    damage: float = math.nan

    @classmethod
    def of(
        cls,
        layer: Layer,
        position: int | None,
        erased: Tensor,
        standard_error: Tensor,
        erasure_probability: Tensor | None = None,
        damage: float = math.nan,
        n_forward: int = 0,
        n_backward: int = 0,
    ) -> ErasedRow:
        """Create a row without noise."""
        nothing = math.nan
        return cls(
            layer, position, torch.full_like(erased, nothing), standard_error, nothing, nothing, nothing, nothing,
            nothing, True, n_forward, n_backward, nothing, False, erased,
            torch.full_like(erased, nothing) if erasure_probability is None else erasure_probability, damage,
        )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("erased", "erasure_probability"):
            plain = getattr(self, name).detach().to("cpu", torch.float32)
            object.__setattr__(self, name, plain)
        if self.erased.shape != self.standard_error.shape:
            raise ValueError(
                f"erased is {tuple(self.erased.shape)} and standard_error {tuple(self.standard_error.shape)}: both "
                "must be (T,), one number for each token"
            )


@dataclass(frozen=True, eq=False, repr=False)
class TextExplanation(Record):
    """The results of R states for the T tokens of one text, or of a pair of texts.

    Attributes:
        text: the text.
        pair: the second text (of a pair; a continuation; the decoder's text), else None.
        tokens: T readable tokens.
        offsets: (segment, start, end) in characters for each token, segment 0 = text, 1 = pair; None for a
            special token.
        size: K, number of elements of a token's embedding.
        predicted: the predicted class or next token, else None.
        probability: probability of ``predicted``, else None.
        target: the target of the output's rows, readable, else None.
        rows: R rows, in forward order.
        words: (segment, start, end) of each word, if the text was given as words; else empty.
        units: the unit of each token, T numbers, -1 for a fixed one, if tokens shared a unit or were fixed; else empty.

    Raises:
        ValueError: no row, two rows for one state, or tokens, offsets, text and rows that do not match.

    Example::

        >>> from interp_plugin.text.explanation import example
        >>> example()[0]
        TextExplanation('a film', 4 tokens, layers 1, 'output')
        >>> example()[0].layers
        (1, 'output')
    """

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    offsets: tuple[Offset | None, ...]
    size: int
    predicted: str | None
    probability: float | None
    target: str | None
    rows: tuple[Row, ...]
    words: tuple[Offset, ...] = ()
    units: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_offsets(self)
        _check_rows(self)

    def __repr__(self) -> str:
        return f"TextExplanation({self.text!r}, {len(self.tokens)} tokens, layers {listed(self.layers)})"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Labels of the layers, in forward order, without repeats."""
        return tuple(dict.fromkeys(row.layer for row in self.rows))

    def row(self, layer: Layer, position: int | None = None) -> Row:
        """Return the row of a layer at a position; without a position, its only row or that of all positions.

        Raises:
            KeyError: there is no such row; the message lists those that exist.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> example()[0].row("output").regime_index
            1.5
        """
        rows = self.rows_of(layer)
        if position is None and len(rows) == 1:
            return rows[0]
        for row in rows:
            if row.position == position:
                return row
        raise KeyError(
            f"layer {layer!r} has no row at position {position!r}: choose from "
            f"{listed([row.position for row in rows])}"
        )

    def rows_of(self, layer: Layer) -> tuple[Row, ...]:
        """Return the rows of a layer, one for each of its positions.

        Raises:
            KeyError: the layer was not explained; the message lists those that were.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> len(example()[0].rows_of(1))
            1
        """
        rows = tuple(row for row in self.rows if row.layer == layer)
        if not rows:
            raise KeyError(f"layer {layer!r} was not explained: choose from {listed(self.layers)}")
        return rows

    @property
    def is_erased(self) -> bool:
        """Whether tokens were erased; otherwise noise was learned."""
        return isinstance(self.rows[0], ErasedRow)

    def scores(
        self, kind: Kind | None = None, granularity: Granularity = "token", aggregate: Aggregate = "sum"
    ) -> Scores:
        """Return the scores of tokens, words or sentences in every row, with standard errors.

        Args:
            kind: "kept" (nats; high = the state still holds it), "loss" (nats) or "sigma" if noise was learned;
                "erased" if tokens were erased (what is lost with the token). None: "kept" or "erased".
            granularity: "token", "word" or "sentence". Special tokens are always units of their own.
            aggregate: nats of a unit are the "sum" over its tokens (information adds up, so a word of more
                tokens has more), their "mean" (to compare words), or those of the token that the state keeps
                most of ("max"). Sigma of a unit is the geometric mean, or for "max" that token's.

        Returns:
            `Scores` with values and standard errors (R, U).

        Raises:
            ValueError: an unknown kind, granularity or aggregate, or a kind that was not computed for these texts.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> example()[0].scores().values.round().tolist()
            [[0.0, 8.0, 15.0, 0.0], [0.0, 5.0, 8.0, 0.0]]
        """
        kind = ("erased" if self.is_erased else "kept") if kind is None else kind
        check_kind(kind)
        check_aggregate(aggregate)
        self._check_channel(kind)
        units = group((self.text, self.pair), self.tokens, self.offsets, granularity, self.words)
        if kind == "erased":
            rows = [row for row in self.rows if isinstance(row, ErasedRow)]
            errors = torch.stack([row.standard_error for row in rows])
            values, error, tied = erased_score(
                torch.stack([row.erased for row in rows]), errors, units, aggregate, self.units
            )
        else:
            values, error, tied = score(kind, self._known(), units, aggregate)
        return Scores(
            kind=kind,
            granularity=granularity,
            aggregate=aggregate,
            units=tuple(unit.name for unit in units),
            offsets=tuple(unit.offset for unit in units),
            rows=tuple((row.layer, row.position) for row in self.rows),
            values=values,
            standard_error=error,
            tied=tied,
        )

    def total(self, kind: Literal["kept", "loss"] = "kept") -> tuple[Tensor, Tensor]:
        """Return the nats of the whole text in each row and their standard error, (R,) each.

        For "loss" they are H(X|s), the sum over the tokens.

        Raises:
            ValueError: an unknown kind, or "sigma", which has no sum.

        Example::

            >>> from interp_plugin.text.explanation import example
            >>> nats, error = example()[0].total("kept")
            >>> nats.round(decimals=2).tolist(), error.round(decimals=2).tolist()
            ([23.11, 13.08], [0.29, 0.38])
        """
        if kind not in ("kept", "loss"):
            raise ValueError(f"kind is {kind!r}: the total of a text is 'kept' or 'loss'")
        self._check_channel(kind)
        known = self._known()
        nats = known.per_token(kind).sum(1)
        if kind == "loss":
            return nats, self.size * len(self.tokens) * self._each("common_error")
        _, error, _ = score(kind, known, [Unit("", None, tuple(range(len(self.tokens))))])
        return nats, error[:, 0]

    def _check_channel(self, kind: Kind) -> None:
        if (kind == "erased") != self.is_erased:
            made = "erased" if self.is_erased else "kept"
            raise ValueError(
                f"kind is {kind!r}, and the texts were explained with score={made!r}: explain them with "
                f"score={'erased' if kind == 'erased' else 'kept'!r}"
            )

    def _each(self, name: str) -> Tensor:
        """Return one attribute of every row, (R,) float64."""
        return torch.tensor([getattr(row, name) for row in self.rows], dtype=torch.float64)

    def _known(self) -> Known:
        return Known.of(
            size=self.size,
            sigma=torch.stack([row.sigma for row in self.rows]),
            cap=self._each("max_sigma"),
            input_std=self._each("input_std"),
            standard_error=torch.stack([row.standard_error for row in self.rows]),
            common_error=self._each("common_error"),
        )


def text_dict(
    item: TextExplanation, granularity: Granularity, aggregate: Aggregate = "sum"
) -> dict[str, Any]:
    """Convert a text to lists, strings and numbers, ready for strict JSON."""
    units, columns = _columns(item, granularity, aggregate)
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(item.rows):
        names = ("converged", *ERASED_FACTS) if item.is_erased else FACTS
        values = {name: column[index] for name, column in columns.items()}
        rows.append({**_facts(row, LABELS), **values, **_facts(row, names)})
    if not item.is_erased:
        for row_dict, total, error in zip(rows, *item.total(), strict=True):
            row_dict |= {"total": total, "total_standard_error": error}
    about = _facts(item, ("text", "pair", "predicted", "probability", "target"))
    found: dict[str, Any] = plain({**about, "units": units.units, "offsets": units.offsets, "rows": rows})
    return found


def table_lines(
    number: int, item: TextExplanation, granularity: Granularity, aggregate: Aggregate = "sum"
) -> Iterator[dict[str, Any]]:
    """Yield the table lines of one text, with the columns COLUMNS or ERASED_COLUMNS."""
    units, columns = _columns(item, granularity, aggregate)
    for index, row in enumerate(item.rows):
        values = [column[index].tolist() for column in columns.values()]
        of_row = {
            "text_index": number,
            **_facts(item, ("text", "pair", *ABOUT)),
            **_facts(row, (*LABELS, *(ERASED_FACTS if item.is_erased else FACTS))),
        }
        for place, (unit, offset, *scores) in enumerate(
            zip(units.units, units.offsets, *values, strict=True)
        ):
            span = zip(("segment", "start", "end"), offset or (None, None, None))
            yield {**of_row, "unit_index": place, "unit": unit, **dict(span), **dict(zip(columns, scores))}


def _columns(
    item: TextExplanation, granularity: Granularity, aggregate: Aggregate
) -> tuple[Scores, dict[str, Tensor]]:
    """Return the units and, by name, their values in each row, (R, U)."""
    if item.is_erased:
        erased = item.scores("erased", granularity, aggregate)
        return erased, {
            "erased": erased.values,
            "standard_error": erased.standard_error,
            "tied": erased.tied,
        }
    kept = item.scores("kept", granularity, aggregate)
    loss = item.scores("loss", granularity, aggregate)
    sigma = item.scores("sigma", granularity, aggregate)
    return kept, {
        "kept": kept.values,
        "loss": loss.values,
        "sigma": sigma.values,
        "standard_error": kept.standard_error,
        "loss_standard_error": loss.standard_error,
        "sigma_standard_error": sigma.values * sigma.standard_error,
        "tied": kept.tied,
    }


def _facts(item: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def plain(value: Any) -> Any:
    """Convert to JSON values: tensors and tuples become lists, and numbers that are not finite become None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _check_offsets(item: TextExplanation) -> None:
    if len(item.offsets) != len(item.tokens):
        raise ValueError(
            f"there are {len(item.tokens)} tokens and {len(item.offsets)} offsets: give one offset, or None, "
            "for each token"
        )
    if len(item.units) not in (0, len(item.tokens)):
        raise ValueError(
            f"there are {len(item.tokens)} tokens and {len(item.units)} units: give the unit of each token, or none"
        )
    lengths = [len(text) for text in (item.text, item.pair) if text is not None]
    for token, offset in zip(item.tokens, item.offsets, strict=True):
        if offset is None:
            continue
        segment, start, end = offset
        if segment not in range(len(lengths)) or not 0 <= start <= end <= lengths[segment]:
            raise ValueError(
                f"token {token!r} has offset {offset!r}: it must be (segment, start, end) within "
                f"{len(lengths)} text(s) of {listed(lengths)} characters, or None for a special token"
            )


def _check_rows(item: TextExplanation) -> None:
    if not item.rows:
        raise ValueError(f"text {item.text!r} has no rows: give at least one layer")
    seen: set[tuple[Layer, int | None]] = set()
    for row in item.rows:
        if len(row.sigma) != len(item.tokens):
            raise ValueError(
                f"layer {row.layer!r} has {len(row.sigma)} sigmas: it needs one for each of the "
                f"{len(item.tokens)} tokens"
            )
        if isinstance(row, ErasedRow) != isinstance(item.rows[0], ErasedRow):
            raise ValueError(
                f"layer {row.layer!r} has another kind of row than the first: give rows of one kind"
            )
        if (row.layer, row.position) in seen:
            raise ValueError(
                f"layer {row.layer!r} has two rows at position {row.position!r}: keep one of them"
            )
        seen.add((row.layer, row.position))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)
