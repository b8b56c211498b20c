"""The attribution methods of a study by name, and this package's own."""

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
    """Uniform random numbers, (T,): the baseline that a method must beat."""
    return torch.rand(inputs.length, dtype=torch.float32)


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

    Args:
        solver: None: that of explanations; without iterations it is the small-noise closed form, in which all tokens at
            the cap have 0 (these can be all tokens of a saturated classifier; the gradient norm ranks them).
        rate: at the default D is a twentieth of the state's variance, but about all of it when tokens are removed:
            these are two different questions (the state erasure metrics show how much they differ), of which a rate of
            1 asks the second.
    """
    watched = State(OUTPUT, None) if state is None else state
    method = LayerInformationLoss(_forward(inputs.output), inputs.model.embedding, watched.site)
    return _kept(
        method, inputs, solver, rate, neuron_selector=watched.selector, state_std=watched.selected_std
    )


def of_target(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the score of the class alone keeps, (T,)."""
    return information_kept(inputs, target, State(OUTPUT, None, target))


def of_last_layer(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Information in nats that the last layer's state keeps, (T,), from which the class scores are computed."""
    label = list(inputs.model.layers)[-1]
    return information_kept(inputs, None, inputs.at_target(State(label, state_sites(inputs.model)[label])))


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

Some methods explain only a class: gradients at the text itself, because the distance of a state from itself has none
there (``gradient norm of the state`` is their counterpart; GIM, AttnLRP and DecompX explain the state's projection on
itself instead of its distance), and the methods that watch a certain output.  The next token of a language model is
explained as a class is.  Methods that mask tokens delete them from what a decoder reads: it knows no mask token.
``signed`` scores tell how much a token speaks for or against the class; for a state they tell how far it moves, and are
hardly ever negative except for those three.
"""


def quick(model: TextModel) -> list[str]:
    """Four methods for a first look: two of this package, integrated gradients, and random scores.

    The baseline of integrated gradients is [MASK], zeros where the model has no mask token, and of a language model the
    mean embedding.
    """
    baseline = "zero" if model.mask_id is None else "[MASK]"
    baseline = "mean" if model.task == "next token" else baseline
    return ["information kept", "erased", f"integrated gradients ({baseline}, signed)", "random"]
