"""The attribution methods of a study by name, with the implementations of this package's own methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from interp_plugin.attribution import LayerInformationErased, LayerInformationLoss
from interp_plugin.comparison import captum_methods, propagation
from interp_plugin.comparison.captum_methods import baseline_of
from interp_plugin.comparison.interface import MAX_ROWS, Answer, Inputs, Method
from interp_plugin.method.erasure import Erasure, Side, Way
from interp_plugin.method.solver import EXACT, PROBES, Solver
from interp_plugin.text.batch import Batch
from interp_plugin.text.explainer import TextExplainer
from interp_plugin.text.models import OUTPUT, TextModel, state_sites
from interp_plugin.text.rows import ErasedRow
from interp_plugin.text.scoring import ErasureFinder
from interp_plugin.text.states import State


def random_scores(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Uniform random numbers, (T,): the baseline that every method should beat."""
    return torch.rand(inputs.length, dtype=torch.float32)


RATE = 0.1
LARGE_RATE = 1.0  # at this rate, noise moves a state about as far as the removal of tokens does


def information_kept(
    inputs: Inputs,
    target: int | None,
    state: State | None,
    solver: Solver | None = None,
    rate: float = RATE,
) -> Tensor:
    """Information in nats that the state keeps of each token, (T,).

    For a class, the state is the vector of class scores; for the next token, its log-probability (less its foil's).

    Args:
        solver: None: the solver of explanations.  A solver without iterations gives the small-noise closed form, in
            which all tokens at the cap have 0 (for a saturated classifier possibly all tokens; ``gradient_norm`` can
            rank these).
        rate: at the default, D is a twentieth of the state's variance.  When tokens are removed, D is about the whole
            variance, which corresponds to a rate of 1.  The state erasure metrics show how much the two differ.
    """
    watched = State(OUTPUT, None) if state is None else state
    method = LayerInformationLoss(_forward(inputs.output), inputs.model.embedding, watched.site)
    return _kept(
        method, inputs, solver, rate, neuron_selector=watched.selector, state_std=watched.selected_std
    )


def of_target(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the score of the explained class alone keeps of each token, (T,)."""
    return information_kept(inputs, target, State(OUTPUT, None, target))


def of_last_layer(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the state of the last layer, which the class scores are computed from, keeps, (T,)."""
    label = list(inputs.model.layers)[-1]
    return information_kept(inputs, None, inputs.at_target(State(label, state_sites(inputs.model)[label])))


def of_log_probability(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the log-probability of the class keeps of each token, (T,); its unit is 1 nat (v = 1).

    The log-probability is at most 0.  If the model is certain of the class, noise on tokens that speak for the class
    changes it, but noise on tokens that speak against the class hardly does.  The class scores depend on both alike.
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
    # with lower_rate the result could approach the gradient norm, which is a separate method
    solver = replace(solver, seed=inputs.seed, lower_rate=False)
    fit = method.fit(ids, additional_forward_args=tuple(others), rate=rate, solver=solver, **settings)
    return fit.kept()[0]


def gradient_norm(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Root of ``||d(s / v) / dx_i||_F^2 / M``, (T,), by automatic differentiation.

    The small-noise closed form of information kept ranks tokens in the same order.  A state of at most 32 elements is
    differentiated element by element; a larger one along 8 random sign vectors, which give an unbiased estimate of the
    squared norm, as in the closed form.
    """
    watched = State(OUTPUT, None) if state is None else state
    answer = Answer(inputs, state=watched)
    noisy = inputs.noisy(inputs.model.embedding, watched.site, watched.selector)
    v = answer.scale.expand_as(answer.origin).flatten()
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
    """Scores of the learned erasure channel, dDelta/dp_i of the answer, in 100 passes, (T,).

    Erased tokens become [MASK], or the mean row of the embeddings if the model has no mask token.  For the next token
    of a decoder, erased tokens are deleted, and the scores equal those of ``explain(score="erased")`` with its last
    token fixed.  Special tokens are never erased.

    A score is the mean damage of erasing a token while others are erased too, 30 % of the text.  This differs from the
    damage of removing one token from the whole text (leave-one-out): see ``score`` of
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
        state_std=1.0,  # the answer is a single number in its own units (for a state: 0 at the text itself)
        side=side,
        ways=ways,
        seed=inputs.seed,
        return_input_shape=False,
    )
    return cast(Tensor, scores)[0]


def _erased_by_deletion(inputs: Inputs, erasure: Erasure, ways: tuple[Way, ...]) -> Tensor:
    """Scores of the erasure channel that deletes tokens of a decoder and shifts later positions, as in explanations."""
    model = inputs.model
    has_unit = inputs.players | torch.tensor([offset is None for offset in inputs.encoding.offsets])
    units = torch.where(has_unit, has_unit.cumsum(0) - 1, -1)  # -1: never erased; nor are special tokens
    encoding = replace(inputs.encoding, units=tuple(units.tolist()))
    batch = Batch(model, [encoding], model.embedding, [None])
    plan = TextExplainer(model).plan(OUTPUT)
    [[row]] = ErasureFinder(model, erasure, ways).rows(batch, plan, None)
    return cast(ErasedRow, row).erased


def noise_path(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Each token's share of the answer on the path from white noise, (T,), in 36 passes; no noise on special tokens."""
    ids, *others = inputs.arguments
    scores = LayerInformationLoss(_reading(inputs, target, state), inputs.model.embedding).attribute(
        ids,
        additional_forward_args=tuple(others),
        token_mask=inputs.players.unsqueeze(0).to(ids.device),
        state_std=1.0,  # as in `erased`
        score="signed",
        return_input_shape=False,
        solver=Solver(seed=inputs.seed),
    )
    return torch.where(inputs.players.to(ids.device), cast(Tensor, scores)[0], 0.0)


def _reading(inputs: Inputs, target: int | None, state: State | None) -> Callable[..., Tensor]:
    """Return the answer as a function of the model's arguments."""
    return _forward(Answer(inputs, target, state).reading)


def _forward(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Name the second argument of a function of the model's arguments: methods find attention masks by name."""

    def forward(ids: Tensor, attention_mask: Any = None, *others: Any) -> Tensor:
        masks = () if attention_mask is None else (attention_mask,)
        return function(ids, *masks, *others)

    return forward


_GUAN = "Guan et al. 2019"
_ERASED = "learned erasure channel; ours"
_IG = "Sundararajan et al. 2017; captum IntegratedGradients"

_ALL = (
    Method("information kept", information_kept, source=f"{_GUAN}, eq. 7", draws=True, passes=400),
    Method(
        "information kept (rate 1)", partial(information_kept, rate=LARGE_RATE),
        source=f"{_GUAN}, eq. 7, large noise", draws=True, passes=400,
    ),
    Method(
        "information kept (target)", of_target, explains="class", source=f"{_GUAN}, eq. 7", draws=True,
        task="sequence classes", passes=400,
    ),
    Method(
        "information kept (last layer)", of_last_layer, explains="class", source=f"{_GUAN}, eq. 7",
        draws=True, passes=400,
    ),
    Method(
        "information kept (closed form)", partial(information_kept, solver=Solver(iterations=0)),
        source=f"{_GUAN}, eq. 7, small noise", draws=True, passes=20,
    ),
    Method(
        "information kept (log-probability)", of_log_probability, explains="class",
        source=f"{_GUAN}, eq. 7", draws=True, passes=400,
    ),
    Method(
        "gradient norm of the state", gradient_norm, source="the closed form, without ours", draws=True
    ),
    Method("erased", erased, signed=True, source=_ERASED, draws=True, passes=100),
    Method(
        "erased (and hidden)", partial(erased, ways=("mask", "attention")), signed=True,
        source=_ERASED, draws=True, passes=200,
    ),
    Method("erased (keep)", partial(erased, side="keep"), signed=True, source=_ERASED, draws=True, passes=100),
    Method(
        "noise path", noise_path, signed=True, draws=True,
        source="integrated gradients from white noise; ours", passes=75,
    ),
    *(
        Method(
            f"integrated gradients ({baseline}, {reduction})",
            partial(captum_methods.integrated_gradients, baseline=baseline, reduction=reduction),
            signed=reduction == "signed",
            source=_IG,
            passes=100,
        )
        for baseline in captum_methods.BASELINES
        for reduction in captum_methods.REDUCTIONS
    ),
    Method(
        "saliency (L2)", captum_methods.saliency, explains="class", source="Simonyan et al. 2014; captum Saliency"
    ),
    *(
        Method(
            f"input x gradient ({reduction})",
            partial(captum_methods.input_x_gradient, reduction=reduction),
            signed=reduction == "signed",
            explains="class",
            source="Shrikumar et al. 2016; captum InputXGradient",
        )
        for reduction in ("signed", "absolute")
    ),
    Method(
        "gradient SHAP", captum_methods.gradient_shap, signed=True,
        source="Lundberg and Lee 2017; captum GradientShap", draws=True, passes=100,
    ),
    Method(
        "DeepLift", captum_methods.deep_lift, signed=True, explains="class",
        source="Shrikumar et al. 2017; captum DeepLift",
    ),
    Method(
        "SmoothGrad (L2)", partial(captum_methods.smooth_grad, kind="smoothgrad"), explains="class",
        source="Smilkov et al. 2017; captum NoiseTunnel over Saliency", draws=True, passes=100,
    ),
    Method(
        "SmoothGrad squared (L2)", partial(captum_methods.smooth_grad, kind="smoothgrad_sq"),
        source="Hooker et al. 2019; captum NoiseTunnel over Saliency", draws=True, passes=100,
    ),
    Method(
        "feature ablation", captum_methods.feature_ablation, signed=True,
        source="Zeiler and Fergus 2014; captum FeatureAblation", passes=0, passes_per_token=1,
    ),
    Method(
        "occlusion (3 tokens)", partial(captum_methods.occlusion, window=3), signed=True,
        source="Zeiler and Fergus 2014; captum Occlusion", passes=0, passes_per_token=1,
    ),
    Method(
        "LIME", captum_methods.lime, signed=True, source="Ribeiro et al. 2016; captum Lime", draws=True, passes=200,
    ),
    Method(
        "KernelSHAP", captum_methods.kernel_shap, signed=True,
        source="Lundberg and Lee 2017; captum KernelShap", draws=True, passes=200,
    ),
    Method(
        "Shapley value sampling", captum_methods.shapley_value_sampling, signed=True,
        source="Strumbelj and Kononenko 2010; captum ShapleyValueSampling", draws=True,
        passes=0, passes_per_token=25,
    ),
    Method(
        "leave-one-out", partial(captum_methods.leave_one_out, removal="delete"), signed=True, source="Li et al. 2016",
        passes=0, passes_per_token=1,
    ),
    Method(
        "leave-one-out (attention)", partial(captum_methods.leave_one_out, removal="attention"), signed=True,
        source="Li et al. 2016", passes=0, passes_per_token=1,
    ),
    Method("attention rollout", propagation.attention_rollout, source="Abnar and Zuidema 2020"),
    Method("value zeroing", propagation.value_zeroing, source="Mohebbi et al. 2023", passes=0, passes_per_token=5),
    Method("GIM", propagation.gim, signed=True, source="Edin et al. 2025"),
    Method("AttnLRP", propagation.attn_lrp, signed=True, source="Achtibat et al. 2024"),
    Method("DecompX", propagation.decompx, signed=True, source="Modarressi et al. 2023"),
    Method(
        "Noiser", captum_methods.noiser, signed=True, explains="class", source="Ghasemi Madani et al. 2025", draws=True,
        passes=0, passes_per_token=100,
    ),
    Method("random", random_scores, source="-", draws=True, passes=0),
)  # fmt: skip

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
"""Name -> method, in the order of tables.

Some methods explain only a class: those that watch a certain output, and those that use the gradient at the text
itself, where the distance of a state has gradient 0.  For states, ``gradient norm of the state`` is their counterpart;
GIM, AttnLRP and DecompX explain the projection of the state on itself instead of its distance.  The next token of a
language model is explained like a class.  Methods that mask tokens delete them if the model is a decoder, because a
decoder has no mask token.  ``signed`` scores say how much a token speaks for or against the class; for a state they say
how far it moves, and are rarely negative except with those three methods.
"""


def quick(model: TextModel) -> list[str]:
    """Return four methods for a first look: two of this package, integrated gradients, and random scores.

    The baseline of integrated gradients is the mean embedding for a language model; for other models it is [MASK], or
    zeros without a mask token.
    """
    baseline = "zero" if model.mask_id is None else "[MASK]"
    baseline = "mean" if model.task == "next token" else baseline
    return ["information kept", "erased", f"integrated gradients ({baseline}, signed)", "random"]
