"""Where the parts of a transformer are: its word embeddings, its blocks, its attention heads, its limits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from interp_plugin.state import LayerCall
from interp_plugin.tokens import Label

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Where a block's self-attention has its heads side by side: these modules give them out, ...
_HEADS_OUT = ("attention.self",)
# ... or these, the projections after attention, take them in.
_HEADS_IN = (
    "o_proj", "self_attn.out_proj", "attention.out_lin", "SelfAttention.o", "attn.Wo", "attn.c_proj", "attention.dense",
)  # fmt: skip


def forward_names(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's forward takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has a decoder that reads an encoder (T5's encoder alone has not)."""
    base = getattr(model, "base_model", model)
    return "decoder_input_ids" in forward_names(model) and hasattr(base, "get_encoder")


def padding_offset(model: nn.Module) -> int | None:
    """RoBERTa and its kin count positions from ``padding_idx + 1`` on; None: from 0, as most.

    The mark of this family is a position embedding that has a padding index.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return None if module.padding_idx is None else module.padding_idx + 1
    return None


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens, special ones included, that model and tokenizer take (very large if neither says)."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    limit = int(tokenizer.model_max_length)
    if not positions or positions < 0:  # DeBERTa and T5 may count relative positions only
        return limit
    return min(limit, int(positions) - (padding_offset(model) or 0))


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config") and not getattr(config, "is_encoder_decoder", False):
        return config.get_text_config()
    return config


def word_embedding(model: nn.Module) -> nn.Module:
    """The module that embeds the tokens of the input: an encoder-decoder's encoder calls it first.

    Encoder and decoder may share weights yet call modules of their own (BART; T5 in transformers 5), so
    the encoder is asked, not the model.

    Raises:
        ValueError: there is none.
    """
    found = None
    try:
        reader: Any = _stacks(model)[0] if is_encoder_decoder(model) else model
        found = reader.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        pass  # no such method, or one that transformers left unwritten: the error below says so
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no word embeddings (get_input_embeddings() gives {found!r}): noise must enter "
            "at a module; use LayerInformationLoss with a layer of your choice"
        )
    return _twin_in_encoder(model, found)


def _twin_in_encoder(model: nn.Module, embedding: nn.Module) -> nn.Module:
    """The encoder's module with the same weights, if there is one: T5's encoder alone calls that."""
    weight = getattr(embedding, "weight", None)
    for name, module in model.named_modules():
        if "encoder" in name.split(".") and isinstance(module, nn.Embedding) and module.weight is weight:
            return module
    return embedding


def _stacks(model: nn.Module) -> tuple[Any, Any]:
    base: Any = getattr(model, "base_model", model)
    return base.get_encoder(), base.get_decoder()


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, first to last (the encoder's, where there is a decoder too).

    They are the ``ModuleList`` as long as ``config.num_hidden_layers`` says that is nearest to the word
    embeddings (a model of texts and pictures has two).

    Raises:
        ValueError: there is no such list (ALBERT, for one, runs a single block many times).

    Examples::
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=1)
        >>> [type(layer).__name__ for layer in transformer_layers(BertModel(config))]
        ['BertLayer', 'BertLayer', 'BertLayer']
    """
    stack = _stacks(model)[0] if is_encoder_decoder(model) else model
    return _blocks(stack, getattr(text_config(model), "num_hidden_layers", None))


def layer_calls(model: nn.Module) -> dict[Label, LayerCall]:
    """The blocks by label, in forward order: 1, 2, ..., or "encoder.1", ..., "decoder.1", ... .

    Raises:
        ValueError: the blocks cannot be found.
    """
    config = text_config(model)
    if not is_encoder_decoder(model):
        return dict(enumerate(_single_stack(model, config), 1))
    encoder, decoder = _stacks(model)
    return {
        f"{name}.{number}": LayerCall(block)
        for name, stack in (("encoder", encoder), ("decoder", decoder))
        for number, block in enumerate(_blocks(stack, _depth(config, stack, name)), 1)
    }


def _single_stack(model: nn.Module, config: Any) -> list[LayerCall]:
    groups = getattr(config, "num_hidden_groups", None)
    if groups is None:
        return [LayerCall(block) for block in _blocks(model, getattr(config, "num_hidden_layers", None))]
    blocks, depth = _blocks(model, groups), config.num_hidden_layers
    chosen = [int(number / (depth / groups)) for number in range(depth)]  # as AlbertTransformer.forward does
    return [LayerCall(blocks[group], chosen[:number].count(group)) for number, group in enumerate(chosen)]


def _depth(config: Any, stack: Any, name: str) -> int | None:
    """How many blocks encoder or decoder has: BART says it in its one configuration, T5 in each stack's own."""
    own = getattr(stack, "config", config)
    value = getattr(own, f"{name}_layers", None) or getattr(own, "num_hidden_layers", None)
    return None if value is None else int(value)


def _blocks(stack: nn.Module, length: int | None) -> list[nn.Module]:
    for part in _around_the_embedding(stack):
        for module in part.modules():  # parents come before their children
            if isinstance(module, nn.ModuleList) and len(module) == length:
                return list(module)
    raise ValueError(
        f"{type(stack).__name__} has no ModuleList of {length} blocks (config.num_hidden_layers): each layer must be a "
        "module of its own; use LayerInformationLoss with the modules of your choice"
    )


def _around_the_embedding(stack: nn.Module) -> Iterator[nn.Module]:
    """The modules that contain the word embeddings, innermost first, up to the whole."""
    try:
        embedding = word_embedding(stack)
    except ValueError:  # a decoder may be handed embedded tokens: then all of it is looked through
        embedding = stack
    path = next((name for name, module in stack.named_modules() if module is embedding), "")
    names = path.split(".")[:-1]
    for end in range(len(names), -1, -1):
        yield stack.get_submodule(".".join(names[:end]))


def keeps_padding_out(model: nn.Module) -> bool:
    """Whether texts of different lengths may share a batch: FNet mixes all places, ConvBERT convolves over them."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return "attention_mask" in forward_names(model) and kind != "convbert"


def attention_heads(model: nn.Module, label: Label) -> int | None:
    """How many attention heads the block with this label has, as the configuration says."""
    config = text_config(model)
    side = str(label).split(".")[0]
    if is_encoder_decoder(model):
        encoder, decoder = _stacks(model)
        config = getattr(encoder if side == "encoder" else decoder, "config", config)
    value = getattr(config, f"{side}_attention_heads", None) or getattr(config, "num_attention_heads", None)
    return value if isinstance(value, int) else None


def head_site(block: LayerCall) -> LayerCall | None:
    """Where the heads of a block's self-attention stand side by side, (B, T, heads * width).

    Returns:
        A module's output or its input; None: no such module is known.
    """
    modules = dict(block.layer.named_modules())
    sides: tuple[tuple[tuple[str, ...], Literal["output", "input"]], ...] = (
        (_HEADS_OUT, "output"),
        (_HEADS_IN, "input"),
    )
    for suffixes, side in sides:
        for name, module in modules.items():
            if f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes)):
                return LayerCall(module, block.call, side)
    return None


def heads_width(site: LayerCall) -> int | None:
    """Width of all heads of a site together: what the projection after attention takes in."""
    if site.side == "output":
        return _values_out(site.layer)
    weight = getattr(site.layer, "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    transposed = type(site.layer).__name__ == "Conv1D"  # GPT-2 keeps (in, out), nn.Linear (out, in)
    return int(weight.shape[0 if transposed else 1])


def _values_out(attention: nn.Module) -> int | None:
    """Width of the values, which is that of what attention gives out."""
    for name in ("value", "value_proj", "v_proj"):
        features = getattr(getattr(attention, name, None), "out_features", None)
        if isinstance(features, int):
            return features
    return None
