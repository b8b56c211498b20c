"""Our own method as a study runs it, and its honest twin: the gradient norm of the same state."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interp_plugin.comparison.inputs import MAX_ROWS, Inputs
from interp_plugin.method.problem import Terms
from interp_plugin.method.solver import EXACT, PROBES, Solver
from interp_plugin.text.batch import Batch, State
from interp_plugin.text.models import OUTPUT

RATE = 0.1
LARGE_RATE = 1.0  # noise moves a state about as far as a token's removal does


def information_kept(
    inputs: Inputs, target: int | None, state: State | None, solver: Solver = Solver(), rate: float = RATE
) -> Tensor:
    """Nats of each token that the state keeps, (T,); for a class the state is all of the class scores."""
    watched = State(OUTPUT, None) if state is None else state
    batch = Batch(inputs.model, [inputs.encoding], inputs.model.embedding, [watched.site])
    terms = Terms(rate, None, None)
    # the rate that the method is named for: near the gradient's norm, which a smaller one leads to, is a row of its own
    solver = replace(solver, seed=inputs.seed, lower_rate=False)
    [fit] = batch.fit([watched], [batch.places(watched)], terms, solver)
    return fit.kept()[0]


def at_large_rate(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats kept at ten times the usual rate, (T,): noise about as large as what removal does.

    At the usual rate a state moves by a twentieth of its variance, and by about all of it when tokens are removed;
    the two are different questions (``compare`` with the state erasure metrics shows by how much).
    """
    return information_kept(inputs, target, state, rate=LARGE_RATE)


def of_target(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats that the score of the class alone keeps, (T,)."""
    return information_kept(inputs, target, State(OUTPUT, None, target))


def of_last_layer(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats that the last layer's state keeps, (T,): what the model says of the class is computed from it."""
    label, site = list(inputs.model.layers.items())[-1]
    return information_kept(inputs, None, State(label, site))


def closed_form(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Nats by the small-noise closed form alone, (T,).

    Tokens at the cap tie at 0: where a classifier is saturated, these can be all.  The gradient norm tells them apart.
    """
    return information_kept(inputs, target, state, Solver(iterations=0))


def gradient_norm(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """The root of ``||d(s / v) / dx_i||_F^2 / M``, (T,), by automatic differentiation.

    The closed form ranks tokens in the same order: this is what is left of information kept where noise is small.
    A state of at most 32 elements is differentiated element by element; a larger one along 8 random sign vectors,
    whose squares have the right mean, as many as the closed form takes.
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
