"""Models with weights from a formula, not random draws, to compare with stored results of other packages."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_models import tiny

from interp_plugin.comparison.interface import Inputs
from interp_plugin.huggingface import HuggingFaceModel

IDS = {"bert": (2, 7, 11, 5, 9, 3), "llama": (1, 7, 11, 5, 9)}


@torch.no_grad()
def by_formula(family: str = "bert", zero: tuple[str, ...] = ()) -> Inputs:
    """A two-layer classifier of two classes and a text for it.

    The n-th parameter in the order of names is ``0.4 sin(1.7 i + n)``, and 1 more where it scales a norm.

    Args:
        zero: parameters whose names end so are zero.
    """
    head = {"bert": "BertForSequenceClassification", "llama": "LlamaForSequenceClassification"}[family]
    model: HuggingFaceModel = tiny(family, head, num_labels=2)
    for number, (name, parameter) in enumerate(sorted(model.module.named_parameters())):
        values = 0.4 * torch.sin(1.7 * torch.arange(parameter.numel()) + number)
        parameter.copy_(values.reshape(parameter.shape))
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.add_(1)
        if zero and name.endswith(zero):
            parameter.zero_()
    encoding = model.encode("The film was good")
    assert len(encoding.ids) == len(IDS[family])
    return Inputs(model, replace(encoding, ids=IDS[family]))
