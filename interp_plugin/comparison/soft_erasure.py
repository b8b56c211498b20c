"""Parts of every token's embedding taken away, more of it or less as the token's rank says."""

from __future__ import annotations

import torch
from torch import Tensor

from interp_plugin.comparison.erasure import worth
from interp_plugin.comparison.judged import Metric, Trial

DRAWS = 32


def retention(scores: Tensor, players: Tensor) -> Tensor:
    """The probability that an element of a token's embedding stays, (T,), float64.

    Of n players the token of rank r (1 = least important; ties share the mean of their ranks) keeps
    (r - 1/2) / n: the mean is 1/2 for every method, whose scale cannot win or lose.  Other tokens keep all.

    Args:
        scores: (T,), high = important.
        players: (T,), bool.

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
    """Embeddings with elements set to zero at random, (1, T, K) -> (draws, T, K).

    The draws are the same for every method: each element has one uniform number, and stays where that is
    below its token's probability.

    Args:
        probability: that an element of a token stays, (T,).

    Examples::
        >>> thinned(torch.ones(1, 2, 4), torch.tensor([1.0, 0.0]), draws=1, seed=0)
        tensor([[[1., 1., 1., 1.],
                 [0., 0., 0., 0.]]])
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(draws, *embeddings.shape[1:], generator=generator, dtype=torch.float32)
    stays = uniform < probability.reshape(1, -1, 1)
    return embeddings * stays.to(embeddings.device)


def soft_erasure(name: str, *, keep: bool = False, draws: int = DRAWS) -> Metric:
    """Soft comprehensiveness or sufficiency, with the same mean retention for every method.

    An element of a token's embedding stays with the probability :func:`retention` (sufficiency), or goes
    with it (comprehensiveness).  The number is the mean over draws of p(x) - p(x'), or of the distance D of
    a state.  Zhao and Aletras retain in proportion to the scores themselves, and divide by what a text
    without any embedding loses: that is a constant of the text, and left out here.

    Args:
        name: in tables.
        keep: sufficiency; lower is better.
        draws: so many variants of the text; their seed is the text's.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; a mean needs at least 1")

    def measure(trial: Trial) -> float | None:
        inputs, answer = trial.inputs, trial.answer
        if int(inputs.players.sum()) < 2:
            return None
        stays = retention(trial.scores, inputs.players)
        probability = stays if keep else torch.where(inputs.players, 1 - stays, 1.0)
        variants = thinned(inputs.embeddings, probability, draws, inputs.seed)
        values = worth(answer.of_embeddings(torch.cat([inputs.embeddings, variants])), trial.state)
        return float(values[0] - values[1:].mean())

    source = "Zhao and Aletras 2023, with ranks as probabilities"
    return Metric(name, measure, higher_is_better=not keep, source=source)
