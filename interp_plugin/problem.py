"""What is asked of the solver: the caller's terms checked, and the way back to the shapes of the inputs."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin.arguments import repeated, user_level
from interp_plugin.direction import push, reference_of
from interp_plugin.forwards import gradients, weight_of
from interp_plugin.noise import TokenGroups, token_groups
from interp_plugin.objective import Objective, state_weight
from interp_plugin.solver import NoiseFit, Solver, solve, solve_together
from interp_plugin.state import NoisyModel, module_of, select

CAP = 10.0  # the cap on sigma, in standard deviations


@dataclass(frozen=True)
class Problem:
    """Everything the solver needs, and the way back to Captum's shapes."""

    objective: Objective
    rate: float
    max_sigma: Tensor

    def fit(self, solver: Solver, show_progress: bool) -> NoiseFit:
        """Solve it, with gradients on whatever the caller has switched off."""
        with gradients():
            return solve(self.objective, self.rate, self.max_sigma, solver, show_progress)

    def sign(self) -> Tensor:
        """+1 or -1 where a token pushes the state up or down, (B, T); the state must be one number."""
        with gradients():
            layer = module_of(self.objective.model.noise_layer)
            return push(self.objective, reference_of(layer, self.objective)).sign().float()

    def shaped(self, values: Tensor) -> tuple[Tensor, ...]:
        """A value of each token, (B, T), at each of its elements, in the shapes of what bears the noise."""
        shapes = [x.shape for x in self.objective.model.origin]
        parts = self.objective.groups.spread(values).split([shape[1:].numel() for shape in shapes], 1)
        return tuple(part.reshape(shape).contiguous() for part, shape in zip(parts, shapes))


def fit_together(problems: Sequence[Problem], solver: Solver) -> list[NoiseFit]:
    """Solve for several states of one model, inputs and noise layer: they share forwards where they can."""
    with gradients():
        objectives, caps = [p.objective for p in problems], [p.max_sigma for p in problems]
        return solve_together(objectives, problems[0].rate, caps, solver)


@dataclass(frozen=True)
class Terms:
    """What the caller sets: lambda, the cap on sigma, and the unit of the state (v)."""

    rate: float
    max_sigma: float | Tensor | None
    state_std: float | Tensor | None


def pose(
    model: NoisyModel,
    terms: Terms,
    feature_mask: tuple[Tensor, ...] | None,
    token_mask: Tensor | None,
    state_mask: Tensor | None = None,
    whole: Tensor | None = None,
) -> Problem:
    """Check the terms and run the model once without noise.

    Args:
        model: not yet run.
        terms: rate, max_sigma and state_std as the caller gave them.
        feature_mask, token_mask: as in ``InformationLoss.attribute``.
        state_mask: which elements of the selected state count, broadcasts to it; None: those of the
            unmasked tokens, where the state has the positions of the tokens.
        whole: what ``model.read`` gave for the state's site, where it has run already.
    """
    rate = terms.rate
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}; the weight of the entropy must be a positive finite number")
    whole = model.clean()[0] if whole is None else whole
    whole = whole.to(model.origin[0].device)  # a model may be spread over several
    state = model.selected(whole)
    groups = token_groups(model.origin, feature_mask, token_mask)
    if state_mask is None:
        counted = _counted_elements(model, groups, whole, state, token_mask is not None)
    else:
        counted = state_mask.to(state.device).broadcast_to(state.shape)
    _check_finite("inputs", model.origin)
    _check_finite("state", (state,))
    state = state.to(torch.promote_types(state.dtype, torch.float32))  # half precision ends here
    weight = state_weight(state, _broadcast_std(terms.state_std, state), counted)
    objective = Objective(model, state, weight, groups, model.max_rows)
    return Problem(objective, rate, _cap_of(terms.max_sigma, module_of(model.noise_layer), objective))


def _check_finite(name: str, tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        bad = ~tensor.reshape(len(tensor), -1).isfinite().all(1)
        if bad.any():
            example = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"NaN or infinite values are in the {name} of example {example} before any noise was added; clean "
                "them first"
            )


def _counted_elements(
    model: NoisyModel, groups: TokenGroups, whole: Tensor, state: Tensor, masked: bool
) -> Tensor:
    """Which state elements count, the shape of ``state``: none at masked positions, where it has positions."""
    everything = torch.ones_like(state, dtype=torch.bool)
    origin = model.origin[0]
    if not masked or len(model.origin) > 1 or origin.ndim < 3:
        return everything
    elements = groups.spread(groups.active.float())
    positions = elements.reshape(origin.shape).flatten(2).amax(2) > 0  # (B, positions)
    shaped = state if callable(model.selector) else whole
    if shaped.ndim < 3 or shaped.shape[1] != positions.shape[1]:
        return everything
    keep = positions.reshape(*positions.shape, *[1] * (shaped.ndim - 2)).expand_as(shaped)
    return keep if callable(model.selector) else select(keep, model.selector)


def _broadcast_std(state_std: float | Tensor | None, state: Tensor) -> Tensor | None:
    if state_std is None:
        return None
    std = torch.as_tensor(state_std, dtype=state.dtype, device=state.device)
    if not (std.isfinite().all() and (std >= 0).all()):
        raise ValueError(
            "state_std has negative, NaN or infinite values; give the standard deviation of each state element"
        )
    std = repeated(std, len(state), state.ndim)
    try:
        return std.broadcast_to(state.shape)
    except RuntimeError as error:
        raise ValueError(
            f"state_std of shape {tuple(std.shape)} does not broadcast to the state, {tuple(state.shape)}; estimate it "
            "with estimate_state_std on the same layer and neuron_selector"
        ) from error


def _cap_of(max_sigma: float | Tensor | None, layer: nn.Module | None, objective: Objective) -> Tensor:
    """max_sigma of each example, (B,), float32."""
    batch = len(objective.origin)
    if max_sigma is None:
        cap = _default_cap(layer, objective)
        rule = (
            "10 standard deviations of this example's inputs; give max_sigma yourself where they are constant"
        )
    else:
        cap = torch.as_tensor(max_sigma, dtype=torch.float32, device=objective.device)
        rule = "it must be a positive finite number, or one per example"
    try:
        cap = repeated(cap, batch, 1).broadcast_to((batch,)).contiguous()
    except RuntimeError as error:
        raise ValueError(
            f"max_sigma of shape {tuple(cap.shape)} does not broadcast to {batch} examples: {rule}"
        ) from error
    bad = ~(cap.isfinite() & (cap > 0))
    if bad.any():
        example = int(bad.nonzero()[0, 0])
        raise ValueError(f"max_sigma of example {example} is {cap[example]}: {rule}")
    return cap


def _default_cap(layer: nn.Module | None, objective: Objective) -> Tensor:
    of_weights = cap_of_embedding(layer)
    if of_weights is not None:
        return torch.tensor(of_weights, device=objective.device)
    keep = objective.groups.spread(objective.groups.active.to(objective.dtype))
    size = keep.sum(1)
    mean = (objective.origin * keep).sum(1) / size
    variance = ((objective.origin - mean.unsqueeze(1)).square() * keep).sum(1) / size
    return (CAP * variance.sqrt()).float()


def cap_of_embedding(layer: nn.Module | None) -> float | None:
    """10 standard deviations of the weights of a layer's largest embedding table; None where it has none.

    Five digits, which are the same on any machine, with any number of threads: studies are compared by it.
    """
    tables = [m for m in layer.modules() if isinstance(m, nn.Embedding)] if layer is not None else []
    if not tables:
        return None
    table = max(tables, key=lambda table: table.weight.numel())
    rows = weight_of(table).float()  # (entries, K)
    count = rows.numel()
    # row by row in single precision, then in double: several times faster than std(), and exact
    mean = rows.sum(1).cpu().double().sum() / count
    square = torch.linalg.vector_norm(rows, dim=1).cpu().double().square().sum() / count
    variance = (square - mean.square()).clamp(min=0) * count / max(count - 1, 1)
    scale = float(getattr(table, "embed_scale", 1.0))  # BART's and Gemma's tables multiply what they look up
    return float(f"{CAP * scale * float(variance.sqrt()):.5g}")


def warn_of_training(*modules: Any, stacklevel: int | None = None) -> None:
    """Warn of modules whose output is not a function of their input alone, at the user's line.

    Of a plain function, the modules it calls by name are looked at.
    """
    for module in [found for given in modules for found in _modules_behind(given)]:
        if any(m.training and _is_noisy(m) for m in module.modules()):
            warnings.warn(
                "the model is in training mode and has dropout or batch normalisation, whose own draws or batch "
                "statistics enter the result; call model.eval() before attributing",
                stacklevel=stacklevel or user_level(),
            )
            return


def _modules_behind(given: Any) -> list[nn.Module]:
    if not inspect.isfunction(given):
        return [given] if isinstance(given, nn.Module) else []
    try:
        named = inspect.getclosurevars(given)
    except ValueError:  # a name of the function around it has no value yet
        return []
    return [
        value
        for value in (*named.nonlocals.values(), *named.globals.values())
        if isinstance(value, nn.Module)
    ]


def _is_noisy(module: nn.Module) -> bool:
    """Whether the module has dropout (as one, or under the name that recurrent and attention layers use)."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    probability = module.p if is_dropout else getattr(module, "dropout", 0)
    return isinstance(probability, (int, float)) and probability > 0
