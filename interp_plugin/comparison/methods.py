"""The attribution methods of a study by name, and methods from given scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from interp_plugin.comparison import gradients, information, perturbations, propagation
from interp_plugin.comparison.interface import Explains, Inputs, Method
from interp_plugin.text.models import TextModel, shown
from interp_plugin.text.states import State

Text = str | tuple[str, str]
TokenScores = Sequence[float] | Tensor


def random_scores(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
    """Uniform random numbers, (T,): the baseline that a method must beat."""
    return torch.rand(inputs.length, dtype=torch.float32)


_GUAN = "Guan et al. 2019"
_ERASED = "learned erasure channel; ours"
_IG = "Sundararajan et al. 2017; captum IntegratedGradients"

_ALL = (
    Method("information kept", information.information_kept, source=f"{_GUAN}, eq. 7", draws=True),
    Method(
        "information kept (rate 1)", information.at_large_rate, source=f"{_GUAN}, eq. 7, large noise", draws=True
    ),
    Method(
        "information kept (target)", information.of_target, explains="class", source=f"{_GUAN}, eq. 7", draws=True,
        task="sequence classes",
    ),
    Method(
        "information kept (last layer)", information.of_last_layer, explains="class", source=f"{_GUAN}, eq. 7",
        draws=True,
    ),
    Method(
        "information kept (closed form)", information.closed_form, source=f"{_GUAN}, eq. 7, small noise", draws=True
    ),
    Method(
        "information kept (log-probability)", information.of_log_probability, explains="class",
        source=f"{_GUAN}, eq. 7", draws=True,
    ),
    Method(
        "gradient norm of the state", information.gradient_norm, source="the closed form, without ours", draws=True
    ),
    Method("erased", information.erased, signed=True, source=_ERASED, draws=True),
    Method(
        "erased (and hidden)", partial(information.erased, ways=("mask", "attention")), signed=True,
        source=_ERASED, draws=True,
    ),
    Method("erased (keep)", partial(information.erased, side="keep"), signed=True, source=_ERASED, draws=True),
    Method(
        "noise path", information.noise_path, signed=True, draws=True,
        source="integrated gradients from white noise; ours",
    ),
    *(
        Method(
            f"integrated gradients ({baseline}, {reduction})",
            partial(gradients.integrated_gradients, baseline=baseline, reduction=reduction),
            signed=reduction == "signed",
            source=_IG,
        )
        for baseline in gradients.BASELINES
        for reduction in gradients.REDUCTIONS
    ),
    Method(
        "saliency (L2)", gradients.saliency, explains="class", source="Simonyan et al. 2014; captum Saliency"
    ),
    *(
        Method(
            f"input x gradient ({reduction})",
            partial(gradients.input_x_gradient, reduction=reduction),
            signed=reduction == "signed",
            explains="class",
            source="Shrikumar et al. 2016; captum InputXGradient",
        )
        for reduction in ("signed", "absolute")
    ),
    Method(
        "gradient SHAP", gradients.gradient_shap, signed=True,
        source="Lundberg and Lee 2017; captum GradientShap", draws=True,
    ),
    Method(
        "DeepLift", gradients.deep_lift, signed=True, explains="class",
        source="Shrikumar et al. 2017; captum DeepLift",
    ),
    Method(
        "SmoothGrad (L2)", partial(gradients.smooth_grad, kind="smoothgrad"), explains="class",
        source="Smilkov et al. 2017; captum NoiseTunnel over Saliency", draws=True,
    ),
    Method(
        "SmoothGrad squared (L2)", partial(gradients.smooth_grad, kind="smoothgrad_sq"),
        source="Hooker et al. 2019; captum NoiseTunnel over Saliency", draws=True,
    ),
    Method(
        "feature ablation", perturbations.feature_ablation, signed=True,
        source="Zeiler and Fergus 2014; captum FeatureAblation",
    ),
    Method(
        "occlusion (3 tokens)", partial(perturbations.occlusion, window=3), signed=True,
        source="Zeiler and Fergus 2014; captum Occlusion",
    ),
    Method(
        "LIME", perturbations.lime, signed=True, source="Ribeiro et al. 2016; captum Lime", draws=True
    ),
    Method(
        "KernelSHAP", perturbations.kernel_shap, signed=True,
        source="Lundberg and Lee 2017; captum KernelShap", draws=True,
    ),
    Method(
        "Shapley value sampling", perturbations.shapley_value_sampling, signed=True,
        source="Strumbelj and Kononenko 2010; captum ShapleyValueSampling", draws=True,
    ),
    Method(
        "leave-one-out", partial(perturbations.leave_one_out, removal="delete"), signed=True, source="Li et al. 2016"
    ),
    Method(
        "leave-one-out (attention)", partial(perturbations.leave_one_out, removal="attention"), signed=True,
        source="Li et al. 2016",
    ),
    Method("attention rollout", gradients.attention_rollout, source="Abnar and Zuidema 2020"),
    Method("value zeroing", gradients.value_zeroing, source="Mohebbi et al. 2023"),
    Method("GIM", propagation.gim, signed=True, source="Edin et al. 2025"),
    Method("AttnLRP", propagation.attn_lrp, signed=True, source="Achtibat et al. 2024"),
    Method("DecompX", propagation.decompx, signed=True, source="Modarressi et al. 2023"),
    Method(
        "Noiser", perturbations.noiser, signed=True, explains="class", source="Ghasemi Madani et al. 2025", draws=True
    ),
    Method("random", random_scores, source="-", draws=True),
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


def from_scores(
    name: str,
    scores: Mapping[Text, TokenScores] | Sequence[TokenScores],
    signed: bool = False,
    texts: Sequence[Text] | None = None,
    explains: Explains = "both",
) -> Method:
    """Scores that were computed elsewhere, as a method.

    Args:
        name: its name in tables.
        scores: for each text (a pair of texts is a tuple of two) the scores of its tokens, special ones included,
            (T,); or a list of them, one for each of ``texts``.
        signed: as in :class:`Method`.
        texts: the texts of a list of scores, in the same order.
        explains: as in :class:`Method`.

    Raises:
        ValueError: lists of different length, or two different scores for one text; when it is called: a text
            without scores, or with another number of tokens.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> method = from_scores("by hand", {"a good film": [0, 0, 1, 0.5, 0]})
        >>> method(Inputs(model, model.encode("a good film")), 1, None)
        tensor([0.0000, 0.0000, 1.0000, 0.5000, 0.0000])
    """
    known = _by_text(name, scores, texts)

    def look_up(inputs: Inputs, target: int | None, state: State | None) -> Tensor:
        encoding = inputs.encoding
        key = encoding.text if encoding.pair is None else (encoding.text, encoding.pair)
        if key not in known:
            raise ValueError(
                f"{name!r} has no scores for {shown(encoding.text)}; give scores for every text of the study"
            )
        if len(known[key]) != inputs.length:
            raise ValueError(
                f"{name!r} has {len(known[key])} scores for {shown(encoding.text)}, which has {inputs.length} tokens "
                f"({' '.join(encoding.tokens)}); give one for each, special tokens included"
            )
        return known[key]

    return Method(name, look_up, signed, explains, "given")


def _by_text(
    name: str, scores: Mapping[Text, TokenScores] | Sequence[TokenScores], texts: Sequence[Text] | None
) -> dict[Text, Tensor]:
    if isinstance(scores, Mapping):
        return {text: torch.as_tensor(values, dtype=torch.float32) for text, values in scores.items()}
    if texts is None or len(texts) != len(scores):
        count = "no texts" if texts is None else f"{len(texts)} texts"
        raise ValueError(
            f"{name!r} has {len(scores)} lists of scores and {count}; give texts, one for each list"
        )
    known: dict[Text, Tensor] = {}
    for text, values in zip(texts, scores):
        new = torch.as_tensor(values, dtype=torch.float32)
        if not torch.equal(known.setdefault(text, new), new):
            raise ValueError(f"{name!r} has two different lists of scores for {text!r}; leave one out")
    return known
