"""The methods of this package, as a study runs them, and the gradient norm to which they reduce for small noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from interp_plugin.attribution import LayerInformationErased, LayerInformationLoss
from interp_plugin.comparison.gradients import baseline_of
from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs
from interp_plugin.method.erasure import Erasure, Side, Way
from interp_plugin.method.solver import EXACT, PROBES, Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.models import OUTPUT, state_sites
from interp_plugin.text.rows import ErasedRow
from interp_plugin.text.scoring import ErasureFinder
from interp_plugin.text.states import State

RATE = 0.1
LARGE_RATE = 1.0  # at which noise moves a state about as far as the removal of tokens does


def information_kept(
    inputs: Inputs,
    target: int | None,
    state: State | None,
    solver: Solver | None = None,
    rate: float = RATE,
) -> Tensor:
    """Information in nats that the state keeps of each token, (T,).

    For a class the state is all class scores; for the next token it is its log-probability (less that of its foil).
    """
    watched = State(OUTPUT, None) if state is None else state
    method = LayerInformationLoss(_forward(inputs.output), inputs.model.embedding, watched.site)
    return _kept(
        method, inputs, solver, rate, neuron_selector=watched.selector, state_std=watched.selected_std
    )


def at_large_rate(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information kept at ten times the default rate, (T,), where noise is about as large as the effect of removal.

    At the default rate D is a twentieth of the state's variance, but about all of it when tokens are removed: these
    are two different questions (the state erasure metrics show how much they differ).
    """
    return information_kept(inputs, target, state, rate=LARGE_RATE)


def of_target(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the score of the class alone keeps, (T,)."""
    return information_kept(inputs, target, State(OUTPUT, None, target))


def of_last_layer(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the last layer's state keeps, (T,), from which the class scores are computed."""
    label = list(inputs.model.layers)[-1]
    return information_kept(inputs, None, inputs.at_target(State(label, state_sites(inputs.model)[label])))


def closed_form(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats by the small-noise closed form alone, (T,).

    All tokens at the cap have 0: these can be all tokens of a saturated classifier.  The gradient norm ranks them.
    """
    return information_kept(inputs, target, state, Solver(iterations=0))


def of_log_probability(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the log-probability of the class keeps, (T,), measured in nats (v = 1).

    The log-probability is at most 0: where the model is sure of the class, noise on tokens that speak for it changes
    it, and noise on tokens that speak against it hardly does.  The class scores depend on both alike.
    """
    answer = Answer(inputs, target, state)

    def log_probability(*arguments: Tensor) -> Tensor:
        return answer.log_probability(answer.reading(*arguments)).float()

    method = LayerInformationLoss(_forward(log_probability), inputs.model.embedding)
    return _kept(method, inputs, None, RATE, state_std=1.0)


def _kept(
    method: LayerInformationLoss, inputs: Inputs, solver: Solver | None, rate: float, **settings: Any
) -> Tensor:
    ids, *others = inputs.arguments
    solver = TextExplainer(inputs.model).usual_solver if solver is None else solver
    # lower_rate could end near the gradient norm, which is a method of its own
    solver = replace(solver, seed=inputs.seed, lower_rate=False)
    fit = method.fit(ids, additional_forward_args=tuple(others), rate=rate, solver=solver, **settings)
    return fit.kept()[0]


def gradient_norm(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """The root of ``||d(s / v) / dx_i||_F^2 / M``, (T,), by automatic differentiation.

    The closed form ranks tokens in the same order: this is what remains of information kept where noise is small.
    A state of at most 32 elements is differentiated element by element; a larger one along 8 random sign vectors,
    whose squares have the right mean, as in the closed form.
    """
    watched = State(OUTPUT, None) if state is None else state
    noisy = inputs.noisy(inputs.model.embedding, watched.site, watched.selector)
    with torch.no_grad():
        origin = noisy.perturb((inputs.embeddings,), torch.arange(1)).float()
    std = watched.selected_std
    v = origin.square().mean().sqrt() if std is None else std.to(origin.device)
    v = v.expand_as(origin).flatten()
    counted = v > 0
    weight = torch.where(counted, v.clamp(min=torch.finfo(v.dtype).tiny).reciprocal(), 0.0)
    size = int(counted.sum())
    if size <= EXACT:
        directions = torch.eye(len(v), dtype=torch.float32)[counted.cpu()]
    else:
        directions = torch.randint(0, 2, (PROBES, len(v))).float() * 2 - 1
    squares = torch.zeros(inputs.length, dtype=torch.float32)
    for some in (directions.to(v.device) * weight).split(MAX_ROWS):
        rows = len(some)
        points = inputs.embeddings.expand(rows, -1, -1).clone().requires_grad_()
        with torch.enable_grad():
            states = noisy.perturb((points,), torch.zeros(rows, dtype=torch.long)).float()
            [slope] = torch.autograd.grad((states.flatten(1) * some).sum(), points)
        squares += slope.float().square().sum((0, 2)).cpu()
    return (squares / (1 if size <= EXACT else PROBES) / size).sqrt()


def erased(
    inputs: Inputs,
    target: int | None,
    state: State | None,
    *,
    side: Side = "damage",
    ways: tuple[Way, ...] = ("mask",),
) -> Tensor:
    """Scores of the learned erasure channel, dDelta/dp_i of the answer, in 100 passes; erased tokens become [MASK].

    Special tokens are never erased.  Where the model has no mask token, the mean row of its embeddings replaces it.
    Of a decoder's next token they are deleted, and the scores are those of ``explain(score="erased")`` with its last
    token fixed.

    They are the mean damage of a token's erasure while others are erased too, 30 % of the text.  That is another
    question than what one token's removal from the whole text does (leave-one-out): see ``score`` of
    :meth:`TextExplainer.explain` for how far the two agree.
    """
    if state is None and inputs.usual_removal == "delete":
        return _erased_by_deletion(inputs, Erasure(side, seed=inputs.seed), ("delete", *ways[1:]))
    method = LayerInformationErased(_reading(inputs, target, state), inputs.model.embedding)
    ids, *others = inputs.arguments
    scores = method.attribute(
        ids,
        baseline_of(inputs, "mean" if inputs.model.mask_id is None else "[MASK]"),
        additional_forward_args=tuple(others),
        state_std=1.0,  # the answer is one number in its own units, of a state 0 at the text itself
        side=side,
        ways=ways,
        seed=inputs.seed,
        return_input_shape=False,
    )
    return cast(Tensor, scores)[0]


def _erased_by_deletion(inputs: Inputs, erasure: Erasure, ways: tuple[Way, ...]) -> Tensor:
    """Scores of the channel that deletes tokens of a decoder, whose positions close up, as explanations have them."""
    model = inputs.model
    bears = inputs.players | torch.tensor([offset is None for offset in inputs.encoding.offsets])
    units = torch.where(bears, bears.cumsum(0) - 1, -1)  # -1: never erased, as are special tokens
    encoding = replace(inputs.encoding, units=tuple(units.tolist()))
    batch = Batch(model, [encoding], model.embedding, [None])
    plan = TextExplainer(model).plan(OUTPUT)
    [[row]] = ErasureFinder(model, erasure, ways).rows(batch, plan, None)
    return cast(ErasedRow, row).erased


def noise_path(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Each token's share of the answer on the path from white noise, (T,), in 36 passes; special tokens stay clean."""
    ids, *others = inputs.arguments
    scores = LayerInformationLoss(_reading(inputs, target, state), inputs.model.embedding).attribute(
        ids,
        additional_forward_args=tuple(others),
        token_mask=inputs.players.unsqueeze(0).to(ids.device),
        state_std=1.0,  # as above
        score="signed",
        return_input_shape=False,
        solver=Solver(seed=inputs.seed),
    )
    return torch.where(inputs.players.to(ids.device), cast(Tensor, scores)[0], 0.0)


def _reading(inputs: Inputs, target: int | None, state: State | None) -> Callable[..., Tensor]:
    """The answer as a function of the model's arguments."""
    return _forward(Answer(inputs, target, state).reading)


def _forward(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of the model's arguments with the second one named: the methods find attention masks by name."""

    def forward(ids: Tensor, attention_mask: Any = None, *others: Any) -> Tensor:
        masks = () if attention_mask is None else (attention_mask,)
        return function(ids, *masks, *others)

    return forward
