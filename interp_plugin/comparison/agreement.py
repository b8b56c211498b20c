"""Do scores agree with the same method's for another seed, another model, a model of random weights?"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from interp_plugin.comparison.judged import Metric, Trial
from interp_plugin.comparison.randomisation import EMBEDDINGS, randomised, stages, upper
from interp_plugin.text.models import Label, TextModel


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's, of two scores for the same n things, the first of which is judged.

    None where that is all ties, or n < 2.  0 where only the other is: it has nothing of the first's ranking
    (a model of random weights may hold on to no word at all).

    Examples::
        >>> import torch
        >>> round(rank_correlation(torch.tensor([1.0, 2, 9]), torch.tensor([0.1, 0.3, 0.2])), 3)
        0.5
    """
    from scipy.stats import spearmanr

    if len(one) < 2 or one.min() == one.max():
        return None
    if other.min() == other.max():
        return 0.0
    return float(spearmanr(one.numpy(), other.numpy()).statistic)


def seed_stability(name: str = "seed stability", others: int = 1) -> Metric:
    """The mean rank correlation with other seeds; 1 of methods that draw nothing.

    Args:
        name: in tables.
        others: so many seeds, the ones after the text's; the method runs once for each.
    """
    if others < 1:
        raise ValueError(f"others is {others}; give at least one other seed")

    def measure(trial: Trial) -> float | None:
        seeds = range(trial.inputs.seed + 1, trial.inputs.seed + 1 + others)
        found = [_over_players(trial, trial.again(seed=seed)) for seed in seeds]
        known = [value for value in found if value is not None]
        return sum(known) / others if known else None

    return Metric(name, measure, higher_is_better=True, source="Spearman over tokens, between seeds")


def two_models(other: TextModel, name: str = "two models") -> Metric:
    """The rank correlation with the scores for another model: the same one trained with another seed.

    The other model reads the text with its own tokenizer, which must cut it alike.  Of a state the layer
    with the same label is explained, and in both models the text is the state's own yardstick.

    Args:
        other: the other model.
        name: in tables.
    """

    def measure(trial: Trial) -> float | None:
        encoding = trial.inputs.encoding
        theirs = other.encode(encoding.text, encoding.pair)
        if theirs.tokens != encoding.tokens:
            raise ValueError(
                f"{other.name} cuts the text into {list(theirs.tokens)} and {trial.inputs.model.name} into "
                f"{list(encoding.tokens)}; give two models with the same tokenizer"
            )
        mine = trial.uncalibrated
        return _over_players(
            mine, replace(mine, inputs=replace(mine.inputs, encoding=theirs)).again(model=other)
        )

    return Metric(name, measure, higher_is_better=True, source="Spearman over tokens, between training seeds")


def weight_randomisation(
    name: str = "weight randomisation", *, embeddings: bool = False, seed: int = 0
) -> Metric:
    """How much of the ranking is left when all weights are random: the size of the rank correlation.

    Two rankings of n tokens that have nothing to do with each other have about 0.8 / sqrt(n - 1).
    The random model is made once for each model.

    Args:
        name: in tables.
        embeddings: the word embeddings too, which are what most methods take for the input.
        seed: of the weights.
    """
    copies: WeakKeyDictionary[nn.Module, TextModel] = WeakKeyDictionary()

    def measure(trial: Trial) -> float | None:
        model = trial.inputs.model
        if model.module not in copies:
            found = stages(trial.inputs)
            drawn = [stage for stage in found if embeddings or stage != EMBEDDINGS]
            copies[model.module] = randomised(model, upper(found, drawn), seed)
        mine = trial.uncalibrated
        found_rank = _over_players(mine, mine.again(model=copies[model.module]))
        return None if found_rank is None else abs(found_rank)

    return Metric(
        name, measure, higher_is_better=False, source="Adebayo et al. 2018, cascading randomisation"
    )


def randomisation_curve(trial: Trial, seed: int = 0) -> dict[Label, float | None]:
    """The rank correlation with the scores for models that are random from the top down to each stage.

    Args:
        trial: the method's answer for the model as it is.
        seed: of the weights.

    Returns:
        By stage as :func:`~interp_plugin.comparison.randomisation.stages` has them: this and all above are
        random.  The sizes of the values at the first layer and at "embeddings" are :func:`weight_randomisation`'s.
    """
    mine, found = trial.uncalibrated, stages(trial.inputs)
    names = list(found)
    return {
        stage: _over_players(
            mine, mine.again(model=randomised(mine.inputs.model, upper(found, names[: place + 1]), seed))
        )
        for place, stage in enumerate(names)
    }


def _over_players(trial: Trial, other: Tensor) -> float | None:
    players = trial.inputs.players
    return rank_correlation(trial.scores[players], other[players])
