r"""The noise path: what each token adds to a state of one number, seen from noise that says nothing.

The input fades into white noise of the mean and spread of the inputs, x(theta) = m + cos(theta) (x - m) + sin(theta)
eps, theta from 0 to pi/2, and the gradient is integrated on the way: score_i = -E int <d answer/dx_i, dx_i/dtheta>
dtheta.  Path integrals are complete (Sundararajan et al., ICML 2017, proposition 1): the scores sum to the answer less
its mean on noise.  No token has to stand for "nothing", and every point of the path has the spread of real inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp_plugin.method.erasing import answer_and_gradient
from interp_plugin.method.objective import Objective
from interp_plugin.method.sampling import Draws

PATHS, NODES = 4, 8  # forward and backward passes: one of each at each node of each path
PATH_ROUND = 2**32 + 4  # a stream of samples of its own


@dataclass(frozen=True)
class NoisePath:
    """Of B examples with T tokens.

    Attributes:
        score: what each token adds to the state, (B, T), below 0 where it takes away; 0 at masked tokens.
        change: the state less its mean on the paths' noise, (B,), which the scores sum to.
    """

    score: Tensor
    change: Tensor

    @property
    def error(self) -> Tensor:
        """By how much the scores miss ``change``, (B,): the error of the integration."""
        return self.score.sum(1) - self.change


def noise_path(objective: Objective, mean: Tensor, std: Tensor, seed: int) -> NoisePath:
    """Integrate along four paths of eight points each, in Gauss and Legendre's rule.

    Args:
        objective: its state has one element an example.
        mean: m, broadcasts to (B, N).
        std: of the noise, (B,).
        seed: of the noise; an example's result depends on it and on the example alone.

    Raises:
        ValueError: a state of several elements; NaN or infinite values.
    """
    size = objective.reference[0].numel()
    if size != 1:
        raise ValueError(
            f"the state has {size} elements an example, and score 'signed' needs one number to push up or down; pick "
            "it with target or neuron_selector, or use score='kept'"
        )
    origin, groups, batch = objective.origin, objective.groups, len(objective.origin)
    active = groups.spread(groups.active.to(origin.dtype))
    noise = Draws([x.shape[1:] for x in objective.model.origin], seed).round(PATH_ROUND, PATHS)
    noise = noise.to(origin.device, origin.dtype)  # (P, N)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    angles = torch.from_numpy((nodes + 1) * math.pi / 4)
    signal = origin - mean.to(origin)
    total, ends = torch.zeros_like(origin), origin.new_zeros(batch)
    rows = torch.cartesian_prod(torch.arange(PATHS), torch.arange(NODES + 1), torch.arange(batch))
    for path, node, example in (part.unbind(1) for part in rows.split(objective.max_rows)):
        angle = torch.cat([angles, angles.new_tensor([math.pi / 2])])[node].to(origin.device, origin.dtype)[
            :, None
        ]
        weight = torch.from_numpy(np.append(weights, 0.0) * math.pi / 4)[node].to(origin.device, origin.dtype)
        path, example = path.to(origin.device), example.to(origin.device)
        eps = noise[path] * std.to(origin)[example, None]
        moved = ((angle.cos() - 1) * signal[example] + angle.sin() * eps) * active[example]
        points = objective.points(example, moved)
        answer, slope = answer_and_gradient(objective, points, example)
        way = (angle.cos() * eps - angle.sin() * signal[example]) * active[example]
        total.index_add_(0, example, -slope * way * weight[:, None] / PATHS)
        at_end = (node == NODES).to(origin.device, origin.dtype)
        ends.index_add_(0, example, answer * at_end / PATHS)
    clean = objective.reference.reshape(batch)
    return NoisePath(groups.collect(total).float(), (clean - ends).float())
