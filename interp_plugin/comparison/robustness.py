"""Robustness metrics: infidelity, sensitivity, agreement between seeds and between models, randomised weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from interp_plugin.comparison.captum_methods import baseline_of
from interp_plugin.comparison.interface import MAX_ROWS, Inputs, Metric, Trial, seeded
from interp_plugin.method.perturbation import (
    first_tensor,
    in_this_thread,
    module_of,
    no_fastpath,
    replace_first,
)
from interp_plugin.text.models import Label, TextModel

INFIDELITY_DRAWS = 64
INFIDELITY_NOISE = 0.5
"""Standard deviation of the noise of infidelity, in units of the standard deviation of the text's embeddings."""
RADIUS = 0.1
"""Radius of the ball of max-sensitivity, in the same unit."""
SAMPLES = 5
"""Number of points in that ball; the method runs once for each."""
HEAD = "head"
EMBEDDINGS = "embeddings"
_NEW_IDS = 2**30  # ids from here on stand for tokens with changed embeddings; no vocabulary is that large

Kind = Literal["noise", "mask"]
Perturb = Callable[[Tensor], tuple[Tensor, Tensor]]


def spread(scores: Tensor, size: int) -> Tensor:
    """Spread the tokens' scores, (T,), evenly over the elements of their embeddings, (1, T, size).

    Examples::
        >>> spread(torch.tensor([4.0, 2.0]), 2)
        tensor([[[2., 2.],
                 [1., 1.]]])
    """
    return (scores / size).reshape(1, -1, 1).repeat(1, 1, size)


def perturbation(inputs: Inputs, kind: Kind) -> Perturb:
    """Make a function for Captum that perturbs a random half (rounded up) of the tokens that may be removed.

    Their embeddings are replaced by the embedding of [MASK], or get Gaussian noise.  The scores are multiplied by 1
    where a token is perturbed and by 0 elsewhere: a token's score is a contribution and not a slope, so this is
    Captum's ``infidelity_perturb_func_decorator(multiply_by_inputs=True)``.  Noise on all elements, multiplied
    by the spread scores, would not distinguish methods: it leaves 98 % unexplained, also for random scores.

    Args:
        inputs: the text.
        kind: how a token is perturbed.

    Returns:
        A function from embeddings, (R, T, K), to the factors of the attributions and the perturbed embeddings,
        (R, T, K) each.  It draws from torch's global generator, as Captum expects.
    """
    positions = inputs.players.nonzero()[:, 0]
    scale = INFIDELITY_NOISE * float(inputs.embeddings.std())
    masked = baseline_of(inputs, "[MASK]") if kind == "mask" else None

    def perturb(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.rand(len(embeddings), len(positions), dtype=torch.float32).argsort(1)
        chosen = order[:, : (len(positions) + 1) // 2]
        perturbed = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        perturbed.scatter_(1, positions[chosen], True)
        where = perturbed.unsqueeze(-1).to(embeddings.device)  # (R, T, 1)
        other = masked
        if other is None:
            other = embeddings + scale * torch.randn(embeddings.shape, dtype=torch.float32).to(embeddings)
        return where.expand_as(embeddings).to(embeddings), torch.where(where, other, embeddings)

    return perturb


def infidelity(trial: Trial, kind: Kind, draws: int = INFIDELITY_DRAWS) -> float | None:
    """Captum's ``infidelity`` with ``normalize=True``, as a share of the answer's mean squared change.

    This is the error of predicting the change of the answer (a class probability, or minus the distance of a state)
    from the sum of the perturbed tokens' scores, at its best scale: 0 for a perfect prediction, 1 for none.

    Args:
        kind: how tokens are perturbed, see :func:`perturbation`.
        draws: number of perturbations of each text, the same for all methods.
    """
    import captum.metrics

    inputs = trial.inputs
    if int(inputs.players.sum()) < 2:
        return None
    scores = torch.where(inputs.players, trial.scores, 0.0).to(inputs.embeddings)
    answers = _Answers(trial)
    with seeded(inputs.seed):
        found = captum.metrics.infidelity(
            answers,
            perturbation(inputs, kind),
            inputs.embeddings,
            spread(scores, inputs.embeddings.shape[2]),
            n_perturb_samples=draws,
            max_examples_per_batch=min(MAX_ROWS, draws),
            normalize=True,
        )
    return float(found) / (answers.squares / draws) if answers.squares else None


class _Answers:
    """The answer as a function of embeddings, for Captum; it also sums the squared changes of the answer."""

    def __init__(self, trial: Trial) -> None:
        self.embeddings, self.answer = trial.inputs.embeddings, trial.answer
        self.whole = self.answer.scaled(self.answer.of_embeddings(self.embeddings))
        self.squares = 0.0

    def __call__(self, embeddings: Tensor) -> Tensor:
        if bool((embeddings == self.embeddings).all()):  # Captum evaluates the text itself once for each draw
            return self.whole.expand(len(embeddings)).to(embeddings.device)
        values = self.answer.scaled(self.answer.of_embeddings(embeddings))
        self.squares += float((values - self.whole).square().sum())
        return values.to(embeddings.device)


@contextmanager
def moved(inputs: Inputs, offsets: Tensor) -> Iterator[Inputs]:
    """Add offsets to the embeddings of the text's tokens inside the block.

    Every token gets a new id, whose embedding is the old one plus the offset.  So the offset stays with the token
    wherever a method moves it, and disappears when the token is masked or deleted.
    Special tokens keep their ids, because some models look for them.

    Args:
        inputs: the text.
        offsets: (T, K); the offsets of special tokens are not used.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> with moved(inputs, torch.full((5, 192), 0.5)) as other:
        ...     (other.embeddings - inputs.embeddings)[0, :, 0]
        tensor([0.0000, 0.5000, 0.5000, 0.5000, 0.0000])
    """
    layer = _word_embedding(inputs.model)
    hooks = _MovedTokens(inputs.ids[0], offsets)
    handles = [
        layer.register_forward_pre_hook(in_this_thread(hooks.before), with_kwargs=True),
        layer.register_forward_hook(in_this_thread(hooks.after)),
    ]
    try:
        known = zip(inputs.encoding.ids, inputs.encoding.offsets)
        ids = tuple(
            old if offset is None else _NEW_IDS + position for position, (old, offset) in enumerate(known)
        )
        yield replace(inputs, encoding=replace(inputs.encoding, ids=ids))
    finally:
        for handle in handles:
            handle.remove()


class _MovedTokens:
    """Hooks of an embedding layer: replace the new ids by the old ones, and add the offsets to the output."""

    def __init__(self, ids: Tensor, offsets: Tensor) -> None:
        self.ids = ids
        # the last row is the offset of all other ids
        self.offsets = torch.cat([offsets, torch.zeros_like(offsets[:1])])
        self.rows: Tensor | None = None  # row of the offsets for each id of the call

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.rows = None
        known = tuple(map(self._known, args))
        return known, {name: self._known(value) for name, value in kwargs.items()}

    def _known(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.long or not bool((value >= _NEW_IDS).any()):
            return value
        new = value >= _NEW_IDS
        self.rows = torch.where(new, value - _NEW_IDS, len(self.ids))
        return torch.where(new, self.ids.to(value.device)[(value - _NEW_IDS).clamp(min=0)], value)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.rows is None:
            return None
        first = first_tensor(output)
        return replace_first(output, first + self.offsets.to(first)[self.rows.to(first.device)])


def max_sensitivity(trial: Trial, samples: int = SAMPLES) -> float:
    """Captum's ``sensitivity_max``: the largest change of the scores in a small ball, relative to their norm.

    As in Captum, each element of an embedding changes by at most the radius; special tokens do not change.  The norm is
    L2 over the tokens that may be removed.  A method that draws random numbers draws the same ones each time.  The
    method runs once for each sample.

    Args:
        samples: number of points of the ball, the same for all methods.
    """
    import captum.metrics

    inputs = trial.inputs
    with seeded(inputs.seed):
        found = captum.metrics.sensitivity_max(
            _scores_at(trial),
            inputs.embeddings,
            perturb_radius=RADIUS * float(inputs.embeddings.std()),
            n_perturb_samples=samples,
        )
    return float(found)


def _scores_at(trial: Trial) -> Callable[[Any], Any]:
    """Return the method's scores as a function of embeddings, (R, T, K) -> (R, T), 0 for tokens that always stay.

    Like Captum's methods, the function returns a tuple for a tuple.
    """
    inputs = trial.inputs

    @torch.enable_grad()  # Captum's metrics switch gradients off
    def scores_at(embeddings: Any) -> Any:
        rows = []
        for point in first_tensor(embeddings):
            if torch.equal(point, inputs.embeddings[0]):
                rows.append(trial.scores)
                continue
            with moved(inputs, point - inputs.embeddings[0]) as other:
                rows.append(trial.method(other, trial.target, trial.state))
        scores = torch.where(inputs.players, torch.stack(rows), 0.0)
        return (scores,) if isinstance(embeddings, tuple) else scores

    return scores_at


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Compute Spearman's rank correlation of a method's scores, (n,), with other scores for the same tokens.

    It is None if the method's scores are all equal, or n < 2.  It is 0 if only the other scores are all equal, because
    these share nothing with the ranking (in a model with random weights, possibly no token has an effect).

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


def seed_stability(trial: Trial, others: int = 1) -> float | None:
    """Mean rank correlation with the scores for other seeds; 1 for methods without random numbers.

    Args:
        others: number of other seeds (those that follow the text's seed); the method runs once for each.
    """
    seeds = range(trial.inputs.seed + 1, trial.inputs.seed + 1 + others)
    found = [_over_players(trial, trial.again(seed=seed)) for seed in seeds]
    known = [value for value in found if value is not None]
    return sum(known) / others if known else None


def two_models(other: TextModel, name: str = "two models") -> Metric:
    """Make a metric: rank correlation with the scores for another model, such as one trained with another seed.

    The other model's tokenizer must give the same tokens.  For a state, the layer with the same label is
    explained, and in both models v^2 is the mean square of the state itself.

    Args:
        other: the other model.
        name: its name in tables.
    """

    def measure(trial: Trial) -> float | None:
        encoding = trial.inputs.encoding
        theirs = other.encode(encoding.text, None if encoding.target else encoding.pair)
        if encoding.target and theirs.ids == encoding.ids[: len(theirs.ids)]:
            theirs = encoding  # with its target
        if theirs.tokens != encoding.tokens:
            raise ValueError(
                f"{other.name} splits the text into {list(theirs.tokens)} but {trial.inputs.model.name} into "
                f"{list(encoding.tokens)}; give two models with the same tokenizer"
            )
        mine = trial.uncalibrated
        return _over_players(
            mine, replace(mine, inputs=replace(mine.inputs, encoding=theirs)).again(model=other)
        )

    return Metric(name, measure, higher_is_better=True, source="Spearman over tokens, between training seeds")


_randomised: WeakKeyDictionary[nn.Module, dict[bool, TextModel]] = WeakKeyDictionary()


def weight_randomisation(trial: Trial, embeddings: bool = False) -> float | None:
    """Absolute rank correlation with the scores for a model with random weights; lower is better.

    The expected value for two unrelated rankings of n tokens is about 0.8 / sqrt(n - 1).
    One random model is made for each model.

    Args:
        embeddings: True: randomise the word embeddings too, which most methods take as the input.
    """
    model = trial.inputs.model
    copies = _randomised.setdefault(model.module, {})
    if embeddings not in copies:
        found = stages(trial.inputs)
        drawn = (found[stage] for stage in found if embeddings or stage != EMBEDDINGS)
        copies[embeddings] = randomised(model, [name for names in drawn for name in names])
    mine = trial.uncalibrated
    found_rank = _over_players(mine, mine.again(model=copies[embeddings]))
    return None if found_rank is None else abs(found_rank)


def _over_players(trial: Trial, other: Tensor) -> float | None:
    players = trial.inputs.players
    return rank_correlation(trial.scores[players], other[players])


def stages(inputs: Inputs) -> dict[Label, tuple[str, ...]]:
    """Return names of a model's parameters by stage: "head", last layer, ..., first layer, "embeddings".

    A layer's stage has the parameters of all modules that run after the output of the layer below and before its own
    output.  A module that runs several times belongs to the stage of its last run.

    Args:
        inputs: a text to run the model on, to find the order of the modules.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> found = stages(Inputs(model, model.encode("a good film")))
        >>> list(found), found["embeddings"]
        (['head', 4, 3, 2, 1, 'embeddings'], ('bert.embeddings.word_embeddings.weight',))
    """
    model = inputs.model
    labels = list(model.layers)
    below = _layers_below(inputs)
    words = {id(p) for p in _word_embedding(model).parameters()}
    found: dict[Label, list[str]] = {label: [] for label in (HEAD, *reversed(labels), EMBEDDINGS)}
    for name, parameter in model.module.named_parameters():
        owner = name.rpartition(".")[0]
        # attention may use the weight of a submodule without calling the submodule
        while owner and owner not in below:
            owner = owner.rpartition(".")[0]
        level = below.get(owner, len(labels))
        stage = EMBEDDINGS if id(parameter) in words else HEAD if level == len(labels) else labels[level]
        found[stage].append(name)
    return {stage: tuple(names) for stage, names in found.items() if names}


def randomised(model: TextModel, names: Sequence[str], seed: int = 0) -> TextModel:
    """Copy the model, and draw these parameters of the copy from normal distributions.

    Each distribution has the mean and the standard deviation of the parameter's elements, so that activations keep
    their size.  All other parameters are shared with the model, not copied.

    Args:
        model: the model.
        names: names of the parameters, in the order in which they are drawn; lists with a common beginning get the
            same values for it.
        seed: seed of the draws.

    Raises:
        ValueError: there is no such parameter.
    """
    parameters = dict(model.module.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(
            f"{model.name} has no parameter {unknown[0]!r}; take the names from its named_parameters"
        )
    drawn = set(names)
    shared = {id(value): value for name, value in parameters.items() if name not in drawn}
    other = copy.deepcopy(model, dict(shared))
    _draw(other.module, names, seed)
    return other


@torch.no_grad()
def _draw(module: nn.Module, names: Sequence[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(module.named_parameters())
    for name in names:
        value = parameters[name]
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
        value.copy_(value.mean() + value.std(correction=0) * noise)


@torch.no_grad()
def _layers_below(inputs: Inputs) -> dict[str, int]:
    """Return, for each module that runs, the number of layers that were complete when it last started, by name."""
    model, ended = inputs.model, 0
    below: dict[str, int] = {}
    runs: dict[int, int] = {}
    ends = {(id(site.layer), site.call) for site in model.layers.values()}
    name_of = {id(module): name for name, module in model.module.named_modules()}

    def begin(module: nn.Module, args: object) -> None:
        below[name_of[id(module)]] = ended

    def end(module: nn.Module, args: object, output: object) -> None:
        nonlocal ended
        run = runs.get(id(module), 0)
        runs[id(module)] = run + 1
        ended += (id(module), run) in ends

    handles = [
        handle
        for module in model.module.modules()
        for handle in (
            module.register_forward_pre_hook(in_this_thread(begin)),
            module.register_forward_hook(in_this_thread(end)),
        )
    ]
    try:
        with no_fastpath():  # the fast path calls no submodules
            model(*inputs.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return below


def _word_embedding(model: TextModel) -> nn.Module:
    module = module_of(model.embedding)
    assert module is not None
    return module
