"""Which way a token pushes a state of one number: up or down, seen from an input that says nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from interp_plugin.forwards import weight_of
from interp_plugin.objective import Objective

POINTS = 16  # on the way from the reference; more of them turn signs only of pushes near 0


def push(objective: Objective, reference: Tensor) -> Tensor:
    r"""What each token adds to the state on the straight way from the reference to the input, (B, T).

    Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, eq. 1)
    by Gauss and Legendre's rule, so over the tokens they sum to s minus the state at the reference.  It
    takes 16 forward and backward passes an example.  Masked tokens stay as they are and add nothing.

    Args:
        objective: its state has one element an example.
        reference: input that says nothing, broadcasts to (B, N).

    Raises:
        ValueError: a state of several elements, which no single sign describes; NaN or infinite values.
    """
    origin, groups, model = objective.origin, objective.groups, objective.model
    size = objective.reference[0].numel()
    if size != 1:
        raise ValueError(
            f"the state has {size} elements an example, and score 'signed' needs one number to push up or down; pick "
            "it with target or neuron_selector, or use score='kept'"
        )
    way = (origin - reference) * groups.spread(groups.active.to(origin.dtype))  # (B, N)
    nodes, weights = (
        torch.from_numpy(x).to(origin.dtype).to(origin.device)
        for x in np.polynomial.legendre.leggauss(POINTS)
    )
    total = torch.zeros_like(origin)
    rows = torch.cartesian_prod(torch.arange(POINTS), torch.arange(len(origin))).to(origin.device)
    for node, example in (part.unbind(1) for part in rows.split(objective.max_rows)):
        points = objective.points(example, way[example] * ((nodes[node] - 1) / 2).unsqueeze(1))
        state = model.perturb(points, example).to(objective.device, objective.dtype)
        slope = objective.gradient(state, points, torch.ones_like(state))  # (R, N)
        objective.check_finite(slope.sum(1) + state.flatten(), example, "way from the reference")
        total.index_add_(0, example, slope * (weights[node] / 2).unsqueeze(1))
    return groups.collect(total * way)


def reference_of(layer: nn.Module | None, objective: Objective) -> Tensor:
    """The input that says nothing, (1, N): an embedding table's mean row, zeros anywhere else."""
    origin = objective.origin
    if not isinstance(layer, nn.Embedding):
        return torch.zeros_like(origin[:1])
    scale = float(getattr(layer, "embed_scale", 1.0))  # BART's and Gemma's tables multiply what they look up
    mean = weight_of(layer).to(origin.device, origin.dtype).mean(0) * scale
    return mean.repeat(origin.shape[1] // len(mean)).unsqueeze(0)
