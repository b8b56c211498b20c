"""What attention does inside a transformer: its weights, and where its value vectors are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp_plugin.huggingface.architectures import is_encoder_decoder
from interp_plugin.huggingface.outputs import run
from interp_plugin.state import LayerCall

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where a block's self-attention computes its values: the whole output of these modules, ...
_VALUES = (
    "attention.self.value", "attention.self.value_proj", "attention.value", "attention.v_lin", "self_attn.v_proj",
    "SelfAttention.v",
)  # fmt: skip
# ... or the last third of these.
_VALUES_LAST = ("attn.c_attn", "attn.Wqkv")
_ONE_AT_A_TIME = threading.Lock()  # two that switch the model at once could leave it so
_HOOKED = "_output_capturing_hooks_installed"  # transformers' mark of a model that has its recording hooks


@torch.no_grad()
def attention_weights(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What every token attends to in each block, (R, heads, T, T) each; rows sum to 1.

    Raises:
        ValueError: an encoder-decoder, or a model that gives no weights out.
    """
    if is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, whose attention is no single stack; use another method"
        )
    with _ONE_AT_A_TIME, _eager(model), _recording(model):
        found = getattr(run(model.base_model, inputs, output_attentions=True), "attentions", None)
    if not found or any(weights is None or weights.ndim != 4 for weights in found):
        raise ValueError(
            f"{type(model).__name__} gives no attention weights out (output_attentions); use another method"
        )
    return tuple(weights.float() for weights in found)


def value_site(block: LayerCall) -> tuple[LayerCall, int] | None:
    """Where a block's self-attention computes its value vectors, and into how many parts that output falls.

    The values are the last part.  None: no such module is known.

    Examples::
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> site, parts = value_site(LayerCall(BertModel(config).encoder.layer[0]))
        >>> site.layer, parts
        (Linear(in_features=4, out_features=4, bias=True), 1)
    """
    for suffixes, parts in ((_VALUES, 1), (_VALUES_LAST, 3)):
        for name, module in block.layer.named_modules():
            if f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes)):
                return LayerCall(module, block.call), parts
    return None


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Inside the block attention is computed step by step: fused kernels keep its weights to themselves."""
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, kind in before:  # parents first, who hand theirs down
            config._attn_implementation = kind


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    """Hooks that transformers puts on the model to record attention, and would leave there, are taken off."""
    modules = list(model.modules())
    before = [set(module._forward_hooks) for module in modules]
    marked = [module for module in modules if getattr(module, _HOOKED, False)]
    try:
        yield
    finally:
        new = [module for module in modules if getattr(module, _HOOKED, False) and module not in marked]
        for module in new:
            delattr(module, _HOOKED)
        for module, hooks in zip(modules if new else [], before):
            for number in set(module._forward_hooks) - hooks:
                del module._forward_hooks[number]
