"""The problem for the solver: checks of the caller's arguments, results in the shapes of the inputs, and warnings."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from interp_plugin.method.erasure import NoisePath, entry_path, noise_path
from interp_plugin.method.objective import Objective, TokenGroups, state_weight, token_groups
from interp_plugin.method.perturbation import (
    ExampleError,
    NoisyModel,
    gradients,
    module_of,
    modules_behind,
    select,
    turned,
    weight_of,
)
from interp_plugin.method.solver import NoiseFit, Solver, solve_together

_PACKAGES = (__name__.split(".")[0], "captum")
Value = TypeVar("Value")

CAP = 10.0  # the cap on sigma, in standard deviations of the inputs
INCOMPLETE = 0.05  # largest accepted error of the sum of signed scores, as a share of the change
CONSTANT = 1e-5  # times the root mean square: a smaller standard deviation is rounding


@dataclass(frozen=True)
class Problem:
    """A problem for the solver, and its results in Captum's shapes."""

    objective: Objective
    rate: float
    max_sigma: Tensor
    input_std: Tensor

    def fit(self, solver: Solver, show_progress: bool) -> NoiseFit:
        """Solve the problem, with gradients enabled."""
        [fit] = fit_together([self], solver, show_progress)
        of_tokens: dict[str, Any] = {
            name: self._in_place(values)
            for name, values in vars(fit).items()
            if getattr(values, "ndim", 0) == 2
        }
        fit = replace(fit, **of_tokens)
        if (fit.distortion == 0).any():
            example = int((fit.distortion == 0).nonzero()[0, 0])
            warnings.warn(
                f"the state of example {example} does not depend on its input: every token is at the cap",
                stacklevel=user_level(),
            )
        return fit

    def signed(self, seed: int) -> Tensor:
        """Return what each token adds to a state of one number, (B, T), by the noise path.

        If its integral misses the change by more than 5 %, the tokens enter one by one instead, with a warning.
        """
        layer = module_of(self.objective.model.noise_layer)
        mean = nothing(layer, self.objective)
        with gradients():
            path = noise_path(self.objective, mean, self.input_std, seed)
            size = self.objective.reference.reshape(len(path.change)).abs().float()
            missed = _incomplete(path, size).nonzero()[:, 0].to(self.objective.device)
            if not len(missed):
                return self._in_place(path.score)
            entered = entry_path(self.objective, mean, self.input_std, seed, missed)
        still = _incomplete(entered, size[missed])
        if still.any():
            example = int(missed[still][0])
            raise ExampleError(
                f"the signed scores of example {example} do not sum to the change of the state, which must be another "
                "from run to run; call model.eval(), or use score='kept'",
                example,
            )
        share = (path.error / path.change)[missed].abs().amax().item()
        warnings.warn(
            f"along the noise path the integral of {len(missed)} of {len(path.score)} examples misses the change of "
            f"the state by up to {100 * share:.0f} % (5 % are let pass): their tokens were let in one by one in random "
            "orders instead, whose scores sum to it",
            stacklevel=user_level(),
        )
        path.score[missed] = entered.score.to(path.score)
        return self._in_place(path.score)

    def _in_place(self, values: Tensor) -> Tensor:
        """Return values of tokens, (B, T), in the order of the model's own positions."""
        starts = self.objective.model.starts
        return values if starts is None else turned(values, -starts)

    def shaped(self, values: Tensor) -> tuple[Tensor, ...]:
        """Expand token values, (B, T), to elements, in the shapes of the inputs that get noise."""
        shapes = [x.shape for x in self.objective.model.origin]
        parts = self.objective.groups.spread(values).split([shape[1:].numel() for shape in shapes], 1)
        return tuple(part.reshape(shape).contiguous() for part, shape in zip(parts, shapes))


def _incomplete(path: NoisePath, size: Tensor) -> Tensor:
    """Return which examples have scores that do not sum to the change of their state of this size, (B,)."""
    rounding = 1e-5 * path.score.abs().sum(1) + 1e-6 * size
    return path.error.abs() > INCOMPLETE * path.change.abs() + rounding


def fit_together(
    problems: Sequence[Problem],
    solver: Solver,
    show_progress: bool = False,
    on_fit: Callable[[], None] | None = None,
) -> list[NoiseFit]:
    """Solve for several states of one model, inputs and noise layer, which share forward passes if possible.

    Everything that fits calls this function.
    """
    with gradients():
        objectives, caps = [p.objective for p in problems], [p.max_sigma for p in problems]
        return solve_together(
            objectives, problems[0].rate, caps, problems[0].input_std, solver, show_progress, on_fit
        )


@dataclass(frozen=True)
class Terms:
    """The caller's lambda, cap on sigma, unit of the state (v) and spread of the inputs (tau)."""

    rate: float
    max_sigma: float | Tensor | None
    state_std: float | Tensor | None
    input_std: float | Tensor | None = None


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
        terms: as the caller gave them.
        feature_mask, token_mask: as in ``InformationLoss.attribute``.
        state_mask: which elements of the selected state count, broadcasts to it; None: those of unmasked tokens if the
            state has the positions of the tokens, else all.
        whole: result of ``model.read`` for the state's site, if it has already run.
    """
    rate = terms.rate
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}; the weight of the entropy must be a positive finite number")
    whole = model.clean()[0] if whole is None else whole
    whole = whole.to(model.origin[0].device)  # a model may be spread over several devices
    state = model.selected(whole)
    groups = token_groups(model.origin, feature_mask, token_mask)
    if state_mask is None:
        counted = _counted_elements(model, groups, whole, state, token_mask is not None)
    else:
        counted = state_mask.to(state.device).broadcast_to(state.shape)
    _check_finite("inputs", model.origin)
    _check_finite("state", (state,))
    state = state.to(torch.promote_types(state.dtype, torch.float32))  # no half precision from here on
    weight = state_weight(state, _broadcast_std(terms.state_std, state), counted)
    objective = Objective(model, state, weight, groups, model.max_rows)
    input_std = _input_std_of(terms.input_std, module_of(model.noise_layer), objective)
    cap = _cap_of(terms.max_sigma, input_std, objective.device)
    return Problem(objective, rate, cap, input_std.float().to(objective.device))


def _check_finite(name: str, tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors:
        bad = ~tensor.reshape(len(tensor), -1).isfinite().all(1)
        if bad.any():
            example = int(bad.nonzero()[0, 0])
            raise ExampleError(
                f"NaN or infinite values are in the {name} of example {example} before any noise was added; clean "
                "them first",
                example,
            )


def _counted_elements(
    model: NoisyModel, groups: TokenGroups, whole: Tensor, state: Tensor, masked: bool
) -> Tensor:
    """Return which state elements count, in the shape of ``state``: all except those at masked positions."""
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


def nothing(layer: nn.Module | None, objective: Objective) -> Tensor:
    """Return an uninformative input, (1, N): the mean row of an embedding table, zeros for other layers."""
    origin = objective.origin
    if not isinstance(layer, nn.Embedding):
        return torch.zeros_like(origin[:1])
    scale = float(getattr(layer, "embed_scale", 1.0))  # BART's and Gemma's tables multiply their rows
    mean = weight_of(layer).to(origin.device, origin.dtype).mean(0) * scale
    return mean.repeat(origin.shape[1] // len(mean)).unsqueeze(0)


def _cap_of(max_sigma: float | Tensor | None, input_std: Tensor, device: torch.device) -> Tensor:
    """Return max_sigma of each example, (B,), float32; ``input_std`` as of :func:`_input_std_of`."""
    given = CAP * input_std if max_sigma is None else max_sigma
    return _one_per_example("max_sigma", given, len(input_std)).float().to(device)


def _one_per_example(name: str, given: float | Tensor, batch: int) -> Tensor:
    """Return a positive number for each example, (B,), float64 on the CPU: not every device has double precision."""
    rule = "it must be a positive finite number, or one per example"
    values = torch.as_tensor(
        given.detach().cpu() if isinstance(given, Tensor) else given, dtype=torch.float64
    )
    try:
        values = repeated(values, batch, 1).broadcast_to((batch,)).contiguous()
    except RuntimeError as error:
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} does not broadcast to {batch} examples: {rule}"
        ) from error
    single = values.float()  # checked in the precision in which it is used
    bad = ~(single.isfinite() & (single > 0))
    if bad.any():
        example = int(bad.nonzero()[0, 0])
        raise ExampleError(f"{name} of example {example} is {single[example]}: {rule}", example)
    return values


def _input_std_of(given: float | Tensor | None, layer: nn.Module | None, objective: Objective) -> Tensor:
    """Return tau of each example, (B,), float64 on the CPU: given, or of the layer's table or its own elements."""
    batch = len(objective.origin)
    if given is None:
        given = std_of_table(layer)
    return _own_std(objective) if given is None else _one_per_example("input_std", given, batch)


def _own_std(objective: Objective) -> Tensor:
    """Return the standard deviation of each example's unmasked elements, (B,), float64 on the CPU.

    If they are constant, return their root mean square; if they are all zero, return 1, with a warning.
    """
    keep = objective.groups.spread(objective.groups.active.to(objective.dtype)).cpu().double()  # (B, N)
    origin, size = objective.origin.cpu().double(), keep.sum(1)
    mean = (origin * keep).sum(1) / size
    variance = ((origin - mean.unsqueeze(1)).square() * keep).sum(1) / size
    square = (origin.square() * keep).sum(1) / size
    std = torch.where(variance > CONSTANT**2 * square, variance, square).sqrt()
    if not std.all():
        example = int((std == 0).nonzero()[0, 0])
        warnings.warn(
            f"what noise is added to is 0 throughout example {example}, which gives no scale for the noise: its "
            "standard deviation is taken as 1; give input_std yourself",
            stacklevel=user_level(),
        )
    return torch.where(std > 0, std, 1.0)


def std_of_table(layer: nn.Module | None) -> float | None:
    """Return the standard deviation of a layer's output if the layer is an embedding table; None for other layers.

    It is that of the table's elements, times its ``embed_scale``, rounded to five digits, which are the same on any
    machine and number of threads, because studies are compared by it.  Layers that only contain a table are not
    accepted, because they may change the embeddings.
    """
    if not isinstance(layer, nn.Embedding):
        return None
    rows = weight_of(layer).float()  # (entries, K)
    count = rows.numel()
    # row by row in single precision, then in double: several times faster than std(), and exact
    mean = rows.sum(1).cpu().double().sum() / count
    square = torch.linalg.vector_norm(rows, dim=1).cpu().double().square().sum() / count
    variance = (square - mean.square()) * count / max(count - 1, 1)
    scale = abs(float(getattr(layer, "embed_scale", 1.0)))  # BART's and Gemma's tables multiply their rows
    std = float(variance.clamp(min=0).sqrt())
    return float(f"{scale * std:.5g}") if std > CONSTANT * float(square.sqrt()) else None


def default_cap(input_std: float) -> float:
    """Return the default max_sigma, 10 tau."""
    return float(f"{CAP * input_std:.12g}")


def warn_of_quality(fit: NoiseFit, solver: Solver) -> None:
    """Warn once, at the user's line, of examples that did not converge or were solved at a smaller rate."""
    count, said = len(fit.converged), []
    bad = ~fit.converged & bool(solver.max_batches)
    saturated = bad & fit.saturated
    if (bad & ~saturated).any():
        free = (fit.standard_error > 0).sum(1).clamp(min=1)
        error = (fit.standard_error.square().sum(1) / free).sqrt()[bad & ~saturated].amax().item()
        said.append(
            f"{int((bad & ~saturated).sum())} of {count} examples did not converge (standard error of log sigma up to "
            f"{error:.2g}, tolerance {solver.tolerance:g}); raise max_passes or tolerance in solver=Solver(...), or "
            "lower rate"
        )
    if saturated.any():
        said.append(
            f"{int(saturated.sum())} of {count} examples have no minimum that is certain (regime index down to "
            f"{fit.regime_index[saturated].min().item():.2g}): their states saturate; give a lower rate"
        )
    lower = fit.rate < 0.999 * fit.asked_rate
    if lower.any():
        said.append(
            f"{int(lower.sum())} of {count} examples were solved at a smaller rate (down to "
            f"{fit.rate.min().item():.1g}, not {fit.asked_rate:g}), where samples tell their tokens apart; "
            "compare scores within an example; "
            "fit(...).rate says which, and Solver(lower_rate=False) keeps the rate that was asked for"
        )
    if said:
        warnings.warn("; ".join(said), stacklevel=user_level())


def warn_of_training(*modules: Any, stacklevel: int | None = None) -> None:
    """Warn, at the user's line, of modules in training mode whose output is not a function of their input alone.

    For a plain function, the modules that it refers to by name are checked.
    """
    for module in [found for given in modules for found in modules_behind(given)]:
        if any(m.training and _is_noisy(m) for m in module.modules()):
            warnings.warn(
                "the model is in training mode and has dropout or batch normalisation, whose own draws or batch "
                "statistics enter the result; call model.eval() before attributing",
                stacklevel=stacklevel or user_level(),
            )
            return


def _is_noisy(module: nn.Module) -> bool:
    """Return whether the module is batch normalisation, dropout, or a recurrent or attention layer with dropout."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    probability = module.p if is_dropout else getattr(module, "dropout", 0)
    return isinstance(probability, (int, float)) and probability > 0


def user_level() -> int:
    """Return the ``stacklevel`` with which a warning of the calling function is shown at the user's line.

    That is the nearest line outside this package and Captum.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        frame, level = frame.f_back, level + 1
    return level


def repeated(value: Value, batch: int, ndim: int) -> Value:
    """Repeat per-example values as often as NoiseTunnel and sensitivity_max repeat their examples.

    Args:
        value: any argument; a tensor of ``ndim`` dimensions whose length divides ``batch`` is repeated.
        batch: number of examples, with repetitions of one example next to each other.
        ndim: number of dimensions of a value with one entry per example.

    Examples::
        >>> import torch
        >>> repeated(torch.tensor([1.0, 2.0]), 4, 1).tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    if (
        not isinstance(value, Tensor)
        or value.ndim != ndim
        or not 1 < len(value) < batch
        or batch % len(value)
    ):
        return value
    return cast(Value, value.repeat_interleave(batch // len(value), 0))
