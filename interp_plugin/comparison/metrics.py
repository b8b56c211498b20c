"""The metrics of a study by name: erasure of tokens in the order of their scores, plausibility, and robustness.

Erasure metrics measure how much of the answer is lost without the tokens.  Plausibility metrics compare the scores with
rationales marked by annotators.  The robustness metrics are in ``robustness``.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from interp_plugin.comparison.interface import REMOVALS, Metric, Removal, Trial
from interp_plugin.comparison.robustness import (
    infidelity,
    max_sensitivity,
    seed_stability,
    weight_randomisation,
)
from interp_plugin.text.models import Encoding, Task

BINS = (0.05, 0.1, 0.2, 0.5)
"""Shares of the tokens that are removed, or left."""
TOP = 0.2
"""Share of the tokens that are removed for the log-odds."""
SOFT_DRAWS = 32
"""Variants of a text for soft comprehensiveness and sufficiency."""
EXACT = 8
"""Up to this number of tokens, the bounds are taken over all orders."""
LONGEST = 20
"""Bounds are not computed for texts of more tokens."""
WIDTH = 5
"""Width of the beam search for the bounds of longer texts."""
_CACHED_TEXTS = 10_000  # number of texts whose bounds are cached
_ERASER = "DeYoung et al. 2020 (ERASER)"
_SAMEK = "Samek et al. 2017"
OVERLAP = 0.5
"""Smallest intersection over union at which two spans match."""


def bin_counts(players: int, bins: Sequence[float] = BINS) -> list[int]:
    """Return the number of tokens for each share (above 0, at most 1), rounded up and at least one.

    Examples::
        >>> bin_counts(20), bin_counts(7)
        ([1, 2, 4, 10], [1, 1, 2, 4])
    """
    return [max(1, math.ceil(share * players - 1e-9)) for share in bins]  # 0.07 * 100 is above 7


def kept_without(order: Sequence[int], counts: Sequence[int], length: int) -> Tensor:
    """Return which tokens stay when the first ones of an order are removed, (counts, T), bool.

    Args:
        order: positions of the tokens that may be removed, in order; all others always stay.
        counts: number of tokens removed in each row.
        length: number of tokens, T.

    Examples::
        >>> kept_without([2, 1], [0, 1, 2], 4).int()
        tensor([[1, 1, 1, 1],
                [1, 1, 0, 1],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    rank = torch.full((length,), length)
    rank[list(order)] = torch.arange(len(order))
    return rank >= torch.tensor(counts).unsqueeze(1)


def kept_only(order: Sequence[int], counts: Sequence[int], length: int) -> Tensor:
    """Return which tokens stay when only the first ones of an order are kept, (counts, T), bool.

    Examples::
        >>> kept_only([2, 1], [0, 1], 4).int()
        tensor([[1, 0, 0, 1],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    return kept_without(order[::-1], [len(order) - count for count in counts], length)


def answer_loss(trial: Trial, kept: Tensor, removal: Removal, in_nats: bool = False) -> Tensor:
    """Compute the loss of the answer when tokens are removed: p(x) - p(x') of a class, or the distance D of a state.

    Args:
        kept: (R, T), bool; the tokens that stay in each row.
        removal: how the other tokens are removed.
        in_nats: compute the loss of the answer itself, such as log p(target) - log p(foil).

    Returns:
        (R,), float64.
    """
    whole = torch.ones(1, kept.shape[1], dtype=torch.bool)
    answer = trial.answer
    values = answer.of_kept(torch.cat([whole, kept]), removal)
    values = values.double() if in_nats else answer.scaled(values)
    return values[0] - values[1:]


def can_remove(trial: Trial, kept: Tensor, removal: Removal) -> bool:
    """Return whether there are at least two tokens to order, and no row would be empty after deletion or hiding."""
    enough = int(trial.inputs.players.sum()) > 1
    return enough and (removal == "mask" or bool(kept.any(1).all()))


def aopc(trial: Trial, kept: Tensor, removal: Removal, in_nats: bool = False) -> float | None:
    """Area over the perturbation curve: the mean of :func:`answer_loss` over the rows of ``kept``, (R, T).

    It is None if the tokens cannot be removed in this way.
    """
    if not can_remove(trial, kept, removal):
        return None
    return float(answer_loss(trial, kept, removal, in_nats).mean())


def erasure(
    name: str,
    removal: Removal = "mask",
    *,
    judges: Literal["class", "state"] = "class",
    keep: bool = False,
    bins: Sequence[float] | None = BINS,
    contrast: bool = False,
) -> Metric:
    """Make a metric: comprehensiveness or sufficiency, as a mean over shares of the tokens.

    Comprehensiveness removes the most important tokens, and the loss should be large.  Sufficiency keeps only
    these, and the loss should be small.  The loss is :func:`answer_loss`.

    Args:
        name: its name in tables.
        removal: how tokens are removed.
        judges: whether it evaluates scores for a class or for a state (with deletion: the state of the remaining
            tokens).
        keep: True: sufficiency.
        bins: the shares; None: the whole curve, one token after another until none is left.
        contrast: for language models, evaluate log p(target) - log p(foil), in nats; the metric is None without a
            foil.

    Examples::
        >>> from interp_plugin import huggingface
        >>> from interp_plugin.comparison.interface import Inputs
        >>> from interp_plugin.comparison.interface import Method
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> scores = torch.tensor([0.0, 0.1, 0.9, 0.2, 0.0])
        >>> trial = Trial(inputs, 1, None, Method("by hand", lambda *question: scores), scores)
        >>> metric = erasure("comprehensiveness (delete)", "delete")
        >>> metric.higher_is_better, round(metric(trial), 2)
        (True, 0.31)
    """

    def measure(trial: Trial) -> float | None:
        order, length = trial.order(), trial.inputs.length
        if contrast and not trial.inputs.encoding.foils:
            return None
        if bins is None:
            kept = kept_without(order[::-1] if keep else order, range(1, len(order) + 1), length)
        else:
            kept = (kept_only if keep else kept_without)(order, bin_counts(len(order), bins), length)
        return aopc(trial, kept, removal, in_nats=contrast)

    source = _SAMEK if bins is None else _ERASER
    if contrast:
        source = f"as {source}, of log p(target) - log p(foil), nats"
    if judges == "state":
        source = f"as {source}, with the distance of states"
    task: Task | None = "next token" if contrast else None
    passes = (5, 0) if bins else (0, 1)  # for a text, and for each of its tokens
    return Metric(name, measure, not keep, source, judges, removal, task, *passes)


def log_odds(trial: Trial, removal: Removal = "mask", top: float = TOP) -> float | None:
    """Log-odds metric: log p(x') - log p(x), where x' lacks the top share of the tokens; lower is better."""
    order, length = trial.order(), trial.inputs.length
    kept = kept_without(order, [0, *bin_counts(len(order), [top])], length)
    if not can_remove(trial, kept, removal):
        return None
    whole, left = trial.answer.log_probability(trial.answer.of_kept(kept, removal))
    return float(left - whole)


def order_bounds(
    loss: Callable[[Tensor], Tensor], count: int, width: int | None = None
) -> tuple[float, float]:
    """Find the lowest and the highest AOPC over all orders in which the tokens can be removed one by one.

    The loss depends on the set of removed tokens and not on their order, so the count! orders need only
    2^count evaluations (dynamic programming over sets).

    Args:
        loss: the loss for sets of removed tokens, (R, count), bool -> (R,).
        count: number of tokens.
        width: number of sets of each size that are kept (beam search; the bounds may then be too narrow);
            None: all sets.

    Returns:
        The lowest and the highest mean of the losses along an order.

    Examples::
        >>> order_bounds(lambda gone: gone.double() @ torch.tensor([1.0, 3.0]).double(), 2)
        (2.5, 3.5)
    """
    lowest = highest = {0: 0.0}  # removed set as bits -> best sum of the losses on the way to it
    for _ in range(count):
        low, high = _one_more(lowest, count, min), _one_more(highest, count, max)
        sets = sorted(low.keys() | high.keys())
        gone = (torch.tensor(sets).unsqueeze(1) >> torch.arange(count) & 1).bool()  # (R, count)
        values = dict(zip(sets, loss(gone).tolist()))
        lowest = _best(low, values, width, -1)
        highest = _best(high, values, width, 1)
    return min(lowest.values()) / count, max(highest.values()) / count


class Bounds:
    """The lowest and highest AOPC of short texts, computed once for each text and shared by all methods.

    The bounds are exact for up to :data:`EXACT` tokens; longer texts use a beam search.

    Args:
        longest: largest number of tokens for which bounds are computed.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self._known: OrderedDict[tuple[Any, ...], tuple[float, float]] = OrderedDict()

    def of(self, trial: Trial) -> tuple[float, float] | None:
        """Return the lowest and highest AOPC for this text and question; None if it is too long or too short."""
        positions = trial.inputs.players.nonzero()[:, 0]
        if not 1 < len(positions) <= self.longest:
            return None

        def loss(gone: Tensor) -> Tensor:
            kept = torch.ones(len(gone), trial.inputs.length, dtype=torch.bool)
            kept[:, positions] = ~gone
            return answer_loss(trial, kept, "mask")

        key = self._key(trial, float(loss(torch.ones(1, len(positions), dtype=torch.bool))))
        if key not in self._known:
            width = None if len(positions) <= EXACT else WIDTH
            self._known[key] = order_bounds(loss, len(positions), width)
            if len(self._known) > _CACHED_TEXTS:
                self._known.popitem(last=False)
        return self._known[key]

    @staticmethod
    def _key(trial: Trial, total_loss: float) -> tuple[Any, ...]:
        """Return the cache key; the loss without any token identifies the model, whose weights may change."""
        inputs, state = trial.inputs, trial.state
        watched = None if state is None else (state.label, str(state.neurons))
        text = inputs.encoding.ids, str(inputs.encoding.extra), inputs.with_special
        return (*text, trial.target, watched, total_loss)


def normalised(trial: Trial, bounds: Bounds, keep: bool = False) -> float | None:
    """Normalised AOPC of the whole curve: 0 is the lowest and 1 the highest value that any order reaches.

    With bounds from the beam search a value can be slightly below 0 or above 1.
    Sufficiency removes the least important token first, so both metrics have the same bounds.

    Args:
        bounds: the bounds of the texts, shared between metrics.
        keep: True: sufficiency; lower is better.
    """
    ends = bounds.of(trial)
    if ends is None or ends[0] == ends[1]:
        return None
    order = trial.order()
    kept = kept_without(order[::-1] if keep else order, range(1, len(order) + 1), trial.inputs.length)
    return (float(answer_loss(trial, kept, "mask").mean()) - ends[0]) / (ends[1] - ends[0])


def _one_more(
    sums: Mapping[int, float], count: int, choose: Callable[[float, float], float]
) -> dict[int, float]:
    """Return every set with one more token, with the best sum of losses on the way to it."""
    larger: dict[int, float] = {}
    for gone, total in sums.items():
        for token in range(count):
            if not gone >> token & 1:
                more = gone | 1 << token
                larger[more] = choose(larger.get(more, total), total)
    return larger


def _best(
    sums: Mapping[int, float], values: Mapping[int, float], width: int | None, sign: int
) -> dict[int, float]:
    """Add the loss of each set to its sum, and keep the ``width`` highest (sign 1) or lowest (-1) sums."""
    now = {gone: total + values[gone] for gone, total in sums.items()}
    if width is None or len(now) <= width:
        return now
    return dict(heapq.nlargest(width, now.items(), key=lambda item: sign * item[1]))


def retention(scores: Tensor, players: Tensor) -> Tensor:
    """Compute the probability that an element of a token's embedding is kept, (T,), float64.

    Among the n tokens that may be removed, the token of rank r (1 = least important; ties share their mean rank) has
    (r - 1/2) / n.  The mean is 1/2 for every method, so the scale of its scores has no effect.  All other tokens have
    probability 1.

    Args:
        scores: (T,), high = important.
        players: the tokens that may be removed, (T,), bool.

    Examples::
        >>> retention(torch.tensor([9.0, 0.2, 0.7, 0.7]), torch.tensor([False, True, True, True]))
        tensor([1.0000, 0.1667, 0.6667, 0.6667], dtype=torch.float64)
    """
    from scipy.stats import rankdata

    kept = torch.ones(len(scores), dtype=torch.float64)
    ranks = torch.as_tensor(rankdata(scores[players].numpy()), dtype=torch.float64)
    kept[players] = (ranks - 0.5) / max(1, len(ranks))
    return kept


def thinned(embeddings: Tensor, probability: Tensor, draws: int, seed: int) -> Tensor:
    """Set random elements of the embeddings to zero, (1, T, K) -> (draws, T, K).

    The draws are the same for every method: an element is kept if its uniform random number is below the
    probability of its token.

    Args:
        embeddings: (1, T, K).
        probability: the probability that an element of a token is kept, (T,).
        draws: number of copies.
        seed: seed of the random numbers.

    Examples::
        >>> thinned(torch.ones(1, 2, 4), torch.tensor([1.0, 0.0]), draws=1, seed=0)
        tensor([[[1., 1., 1., 1.],
                 [0., 0., 0., 0.]]])
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(draws, *embeddings.shape[1:], generator=generator, dtype=torch.float32)
    stays = uniform < probability.reshape(1, -1, 1)
    return embeddings * stays.to(embeddings.device)


def soft_erasure(trial: Trial, keep: bool = False, draws: int = SOFT_DRAWS) -> float | None:
    """Soft comprehensiveness or sufficiency, with the same mean retention for every method.

    An element of a token's embedding is kept (sufficiency) or set to zero (comprehensiveness) with the
    probability :func:`retention`.  The metric is the mean over draws of p(x) - p(x'), or of the distance D of a
    state.  Zhao and Aletras retain elements in proportion to the scores themselves.  They also divide by the loss of
    a text with all embeddings set to zero; this constant of each text is left out here.

    Args:
        keep: True: sufficiency; lower is better.
        draws: number of variants of the text, drawn with the text's seed.
    """
    inputs, answer = trial.inputs, trial.answer
    if int(inputs.players.sum()) < 2:
        return None
    stays = retention(trial.scores, inputs.players)
    probability = stays if keep else torch.where(inputs.players, 1 - stays, 1.0)
    variants = thinned(inputs.embeddings, probability, draws, inputs.seed)
    values = answer.scaled(answer.of_embeddings(torch.cat([inputs.embeddings, variants])))
    return float(values[0] - values[1:].mean())


def rationale_tokens(rationale: Any, encoding: Encoding) -> Tensor:
    """Return the tokens of a rationale, (T,), bool.

    Args:
        rationale: character spans, (start, stop), or (0 or 1, start, stop) for a pair of texts; or a mask (0 or 1) of
            the text's words (separated by white space), of its tokens, or of its tokens without special tokens.  Each
            of these may be given as JSON.
        encoding: the tokenised text.

    Raises:
        ValueError: the rationale has another form, or does not fit the text.

    Examples::
        >>> encoding = Encoding("a film", None, ("[CLS]", "a", "film", "[SEP]"), (None, (0, 0, 1), (0, 2, 6), None), ())
        >>> rationale_tokens([(2, 6)], encoding).int().tolist(), rationale_tokens([0, 1], encoding).int().tolist()
        ([0, 0, 1, 0], [0, 0, 1, 0])
    """
    parts = _as_list(rationale)
    if all(isinstance(part, (bool, int, float)) and part in (0, 1) for part in parts) and parts:
        return _of_mask([bool(part) for part in parts], encoding)
    chosen = torch.zeros(len(encoding.offsets), dtype=torch.bool)
    for part in parts:
        segment, start, stop = _span(part, encoding)
        for token, offset in enumerate(encoding.offsets):
            if offset is not None and offset[0] == segment and offset[1] < stop and start < offset[2]:
                chosen[token] = True
    return chosen


def _as_list(rationale: Any) -> list[Any]:
    try:
        plain = json.loads(rationale) if isinstance(rationale, str) else rationale
        return list(plain.tolist() if hasattr(plain, "tolist") else plain)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"its rationale is {rationale!r}; give a list of character spans, or a mask of words or tokens"
        ) from error


def _of_mask(mask: list[bool], encoding: Encoding) -> Tensor:
    words = [] if encoding.pair else [found.span() for found in re.finditer(r"\S+", encoding.text)]
    real = torch.tensor([offset is not None for offset in encoding.offsets])
    if len(mask) == len(words):
        return rationale_tokens([span for span, chosen in zip(words, mask) if chosen], encoding)
    values = torch.tensor(mask)
    if len(mask) == len(real):
        return values
    if len(mask) == int(real.sum()):
        return torch.zeros_like(real).masked_scatter(real, values)
    raise ValueError(
        f"its rationale is a mask of length {len(mask)}, but the text has {len(words)} words, {len(real)} tokens, and "
        f"{int(real.sum())} tokens without special tokens; give one number for each of these, or character spans"
    )


def _span(part: Any, encoding: Encoding) -> tuple[int, int, int]:
    """Return the text's number in the pair (0 or 1), and the start and stop of the span in its characters."""
    numbers = list(part) if isinstance(part, Sequence) and not isinstance(part, str) else []
    segment, start, stop = [0, *numbers] if len(numbers) == 2 else numbers if len(numbers) == 3 else (0, 0, 0)
    texts = (encoding.text, encoding.pair)
    if segment not in (0, 1) or not 0 <= start < stop <= len(texts[segment] or ""):
        raise ValueError(
            f"its rationale has the span {part!r}, which is not in the text; give (start, stop) in characters, or a "
            "mask of words or tokens"
        )
    return segment, start, stop


def auprc(scores: Tensor, rationale: Tensor) -> float:
    """Compute the area under the precision-recall curve (average precision) of scores, (n,), for a rationale, (n,).

    Examples::
        >>> round(auprc(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, True, False])), 4)
        0.8333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(rationale.numpy(), scores.numpy()))


def top(order: Sequence[int], rationale: Tensor) -> Tensor:
    """Return the first tokens of an order, as many as the rationale has, (T,), bool."""
    chosen = torch.zeros_like(rationale)
    chosen[list(order[: int(rationale.sum())])] = True
    return chosen


def token_f1(chosen: Tensor, rationale: Tensor) -> float:
    """Compute the F1 of chosen tokens, (T,), bool, for a rationale, (T,), bool.

    Examples::
        >>> token_f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        0.6666666666666666
    """
    return 2 * int((chosen & rationale).sum()) / int(chosen.sum() + rationale.sum())


def spans(chosen: Tensor) -> list[tuple[int, int]]:
    """Return the runs of consecutive chosen tokens, (start, stop) each.

    Examples::
        >>> spans(torch.tensor([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    inside = [False, *chosen.tolist(), False]
    ends = [place for place in range(len(inside) - 1) if inside[place] != inside[place + 1]]
    return list(zip(ends[::2], ends[1::2]))


def iou_f1(chosen: Tensor, rationale: Tensor, overlap: float = OVERLAP) -> float:
    """Compute the F1 of the spans of chosen tokens; a span is correct if it overlaps a span of the rationale enough.

    Args:
        chosen, rationale: (T,), bool.
        overlap: smallest intersection over union that counts as a match.

    Examples::
        >>> iou_f1(torch.tensor([True, True, False, True]), torch.tensor([True, True, True, False]))
        0.6666666666666666
    """
    ours, theirs = spans(chosen), spans(rationale)
    found = sum(max((_overlap(span, other) for other in theirs), default=0.0) >= overlap for span in ours)
    return 2 * found / (len(ours) + len(theirs))


def plausibility(name: str, measure: Callable[[Trial, Tensor], float], source: str) -> Metric:
    """Make a metric of scores and a rationale; it is None without a rationale, or if that has all ranked tokens."""

    def measured(trial: Trial) -> float | None:
        if trial.rationale is None:
            return None
        if trial.rationale.shape != (trial.inputs.length,):
            raise ValueError(
                f"the rationale has shape {tuple(trial.rationale.shape)} for {trial.inputs.length} tokens; give one "
                "value, 0 or 1, for each token"
            )
        players = trial.inputs.players
        rationale = trial.rationale.bool() & players
        if not rationale.any() or bool((rationale == players).all()):
            return None
        return measure(trial, rationale)

    return Metric(name, measured, higher_is_better=True, source=source, passes=0)


def _auprc(trial: Trial, rationale: Tensor) -> float:
    players = trial.inputs.players
    return auprc(trial.scores[players], rationale[players])


def _token_f1(trial: Trial, rationale: Tensor) -> float:
    return token_f1(top(trial.order(), rationale), rationale)


def _iou_f1(trial: Trial, rationale: Tensor) -> float:
    return iou_f1(top(trial.order(), rationale), rationale)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, common) / (one[1] - one[0] + other[1] - other[0] - max(0, common))


_BOUNDS = Bounds()
# names, and whether the important tokens are kept
_PAIR = (("comprehensiveness", False), ("sufficiency", True))
_INFIDELITY = "Yeh et al. 2019; Captum infidelity, normalised"
_ADEBAYO = "Adebayo et al. 2018, cascading randomisation"
_LENGTH = "; as many tokens as the rationale has"
_ALL = (
    *(erasure(f"comprehensiveness ({removal})", removal) for removal in REMOVALS),
    *(erasure(f"sufficiency ({removal})", removal, keep=True) for removal in REMOVALS),
    erasure("comprehensiveness (full curve)", bins=None),
    erasure("sufficiency (full curve)", bins=None, keep=True),
    *(
        Metric(
            f"normalised {name}", partial(normalised, bounds=_BOUNDS, keep=keep), higher_is_better=not keep,
            source="Edin et al. 2025 (Normalized AOPC)", judges="class", removal="mask", passes=0, passes_per_token=5,
        )
        for name, keep in _PAIR
    ),
    *(
        erasure(f"contrastive {name} ({removal})", removal, keep=keep, contrast=True)
        for name, keep in _PAIR
        for removal in REMOVALS
    ),
    Metric(
        "log-odds", log_odds, higher_is_better=False, source="Shrikumar et al. 2017; Chen et al. 2019 (L-Shapley)",
        judges="class", removal="mask",
    ),
    *(erasure(f"state erasure ({removal})", removal, judges="state") for removal in REMOVALS),
    erasure("state erasure (full curve)", judges="state", bins=None),
    *(erasure(f"state sufficiency ({removal})", removal, judges="state", keep=True) for removal in REMOVALS),
    erasure("state sufficiency (full curve)", judges="state", bins=None, keep=True),
    *(
        Metric(
            f"soft {name}", partial(soft_erasure, keep=keep), higher_is_better=not keep,
            source="Zhao and Aletras 2023, with ranks as probabilities", passes=33,
        )
        for name, keep in _PAIR
    ),
    Metric(
        "infidelity (noise)", partial(infidelity, kind="noise"), higher_is_better=False, source=_INFIDELITY,
        passes=65,
    ),
    Metric(
        "infidelity (mask)", partial(infidelity, kind="mask"), higher_is_better=False, source=_INFIDELITY,
        removal="mask", passes=65,
    ),
    Metric(
        "max-sensitivity", max_sensitivity, higher_is_better=False,
        source="Yeh et al. 2019, def. 2.2; Captum sensitivity_max", passes=0, calls=5,
    ),
    Metric(
        "weight randomisation", weight_randomisation, higher_is_better=False, source=_ADEBAYO, passes=0, calls=1
    ),
    Metric(
        "weight randomisation (all)", partial(weight_randomisation, embeddings=True), higher_is_better=False,
        source=_ADEBAYO, passes=0, calls=1,
    ),
    Metric(
        "seed stability", seed_stability, higher_is_better=True, source="Spearman over tokens, between seeds",
        passes=0, calls=1,
    ),
    plausibility("AUPRC", _auprc, "DeYoung et al. 2020 (ERASER), sec. 4"),
    plausibility("token-F1", _token_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH),
    plausibility("IOU-F1", _iou_f1, "DeYoung et al. 2020 (ERASER), sec. 4" + _LENGTH),
)  # fmt: skip
QUICK = (
    "comprehensiveness (delete)",
    "sufficiency (delete)",
    "state erasure (delete)",
    "state sufficiency (delete)",
)
"""Metrics for a first look: every model supports deletion, which ``methods.quick`` uses for decoders only."""
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Name -> metric, in the order of tables, without ``robustness.two_models``, which needs a second model."""
