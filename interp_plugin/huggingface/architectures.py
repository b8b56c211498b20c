"""Differences between architectures: wrappers, and where embeddings, blocks, norms and attention heads are."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from interp_plugin.method.perturbation import LayerCall, at_site, first_tensor
from interp_plugin.text.models import Axis, Label

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["tokens at the end", "tokens at the beginning", "tokens in the last dimension"]


class View(nn.Module):
    """A module that runs right after a site and returns the state there as (R, T, ...).

    Args:
        site: where the model computes the state.
        kind: where the tokens are in the model's state: after virtual tokens, (R, v + T, ...); before other
            positions, (R, T + more, ...); or in the last dimension, (R, ..., T).
        axis: whether the tokens are the input's or the decoder's.
    """

    def __init__(self, site: LayerCall, kind: Kind, axis: Axis = "input") -> None:
        super().__init__()
        self.site, self.kind, self.axis = site, kind, axis

    def forward(self, passing: Any, length: int) -> Any:
        """Return the state with ``length`` tokens in dimension 1."""
        value = first_tensor(passing)
        if not isinstance(value, Tensor):
            return value
        if self.kind == "tokens in the last dimension":
            return value.transpose(1, -1)
        return value[:, -length:] if self.kind == "tokens at the end" else value[:, :length]


class EmbeddingView(nn.Embedding):
    """View of the word embeddings of a model that pads the text internally: the output has the text's tokens only.

    Args:
        table: the module that the model calls; the view shares its weights.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(1, 1, device="meta")
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.weight = table.padding_idx, table.weight
        self.embed_scale = getattr(table, "embed_scale", 1.0)
        self.site = LayerCall(table)
        self.axis: Axis = "input"

    def forward(self, passing: Tensor, length: int) -> Tensor:  # type: ignore[override]
        """Return the table's output for the ``length`` tokens of the text."""
        return passing[:, :length]


@contextmanager
def showing(views: Iterable[View | EmbeddingView], lengths: dict[Axis, int]) -> Iterator[None]:
    """Inside the block, run every view after its site; the output of an EmbeddingView replaces the table's."""

    def run(view: View | EmbeddingView, passing: Any) -> Tensor | None:
        length = lengths[view.axis]
        viewed = view(passing, length)
        return torch.cat([viewed, passing[:, length:]], 1) if isinstance(view, EmbeddingView) else None

    with ExitStack() as stack:
        for view in views:
            stack.enter_context(at_site(view.site, partial(run, view)))
        yield


# Modules of a block whose output is the concatenated heads of self-attention.
_HEADS_OUT = ("attention.self",)
# Modules whose input is the concatenated heads: the projections after attention.
_HEADS_IN = (
    "o_proj", "self_attn.out_proj", "attention.out_lin", "SelfAttention.o", "attn.Wo", "attn.c_proj", "attention.dense",
)  # fmt: skip
# Modules whose whole output is the value vectors.
_VALUES = (
    "attention.self.value", "attention.self.value_proj", "attention.value", "attention.v_lin", "self_attn.v_proj",
    "SelfAttention.v",
)  # fmt: skip
# Modules whose last third of the output is the value vectors.
_VALUES_LAST = ("attn.c_attn", "attn.Wqkv")


def forward_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the arguments of the model's forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def model_type(model: nn.Module) -> str:
    """Return the name of the architecture in the configuration."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has an encoder and a decoder (T5's encoder alone has no decoder)."""
    base = getattr(model, "base_model", model)
    return "decoder_input_ids" in forward_names(model) and hasattr(base, "get_encoder")


def padding_offset(model: nn.Module) -> int | None:
    """Return the first position, ``padding_idx + 1``, of the RoBERTa family; None for models that count from 0.

    The family is recognised by a position embedding with a padding index.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return None if module.padding_idx is None else module.padding_idx + 1
    return None


# Argument -> embedding tables in which it is looked up; GPT-2 looks token types up among its words.
_TABLES = {
    "token_type_ids": ("token_type_embeddings", "wte"), "position_ids": ("position_embeddings", "wpe"),
    "langs": ("lang_embeddings",), "bbox": ("x_position_embeddings",),
}  # fmt: skip


def check_rows(model: nn.Module, argument: str, values: Sequence[Sequence[Any]]) -> None:
    """Check that the values of an argument are rows of its embedding table: on a GPU others crash the process.

    Raises:
        ValueError: a value is not a row of the table.
    """
    names = _TABLES.get(argument, ())
    for name, table in model.named_modules() if names else ():
        if name.split(".")[-1] in names and isinstance(table, nn.Embedding):
            numbers = {number for row in values for number in torch.tensor(row).flatten().tolist()}
            wrong = [number for number in numbers if not 0 <= number < table.num_embeddings]
            if wrong:
                raise ValueError(
                    f"{argument} has {wrong[0]}, and {type(model).__name__} has rows 0 to {table.num_embeddings - 1} "
                    "for it; give whole numbers in this range"
                )
            return


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest number of tokens, special tokens included (very large if no limit is configured)."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    limit = int(tokenizer.model_max_length)
    if not positions or positions < 0:  # DeBERTa and T5 may have relative positions only
        return limit
    return min(limit, int(positions) - (padding_offset(model) or 0))


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the text part of a model."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config") and not getattr(config, "is_encoder_decoder", False):
        return config.get_text_config()
    return config


def word_embedding(model: nn.Module) -> nn.Module:
    """Return the module that embeds the input tokens; in an encoder-decoder, that of the encoder.

    Encoder and decoder may share weights but call different modules (BART; T5 in transformers 5), so the encoder's
    ``get_input_embeddings`` is used before the model's.

    Raises:
        ValueError: there is no such module.
    """
    found = None
    owners: list[Any] = [_stacks(model)[0], model] if is_encoder_decoder(model) else [model]
    for owner in owners:  # FSMT's encoder, for one, has no such method
        try:
            found = owner.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            continue  # the method is missing or not implemented: the error is raised below
        if found is not None:
            break
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no word embeddings (get_input_embeddings() gives {found!r}), and noise is "
            "added to the output of a module; use LayerInformationLoss with a layer of your choice"
        )
    return _twin_in_encoder(model, found)


def _twin_in_encoder(model: nn.Module, embedding: nn.Module) -> nn.Module:
    """Return the encoder's module with the same weights, if there is one: T5's encoder calls its own."""
    weight = getattr(embedding, "weight", None)
    for name, module in model.named_modules():
        if "encoder" in name.split(".") and isinstance(module, nn.Embedding) and module.weight is weight:
            return module
    return embedding


def _stacks(model: nn.Module) -> tuple[Any, Any]:
    base: Any = getattr(model, "base_model", model)
    return base.get_encoder(), base.get_decoder()


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a model, first to last (of the encoder, in an encoder-decoder).

    They are the ``ModuleList`` of length ``config.num_hidden_layers`` that is nearest to the word embeddings (a model
    of texts and images has two such lists).

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
    """Return the blocks by label, in forward order: 1, 2, ..., or "encoder.1", ..., "decoder.1", ... .

    Raises:
        ValueError: the blocks are not found.
    """
    config = text_config(model)
    if is_encoder_decoder(model):
        return {
            f"{name}.{number}": LayerCall(block)
            for name, stack in zip(("encoder", "decoder"), _stacks(model))
            for number, block in enumerate(_blocks(stack, _depth(config, stack, name)), 1)
        }
    groups = getattr(config, "num_hidden_groups", None)
    if groups is None:
        return {number: LayerCall(block) for number, block in enumerate(transformer_layers(model), 1)}
    blocks, depth = _blocks(model, groups), config.num_hidden_layers
    chosen = [int(number / (depth / groups)) for number in range(depth)]  # as AlbertTransformer.forward does
    return {
        number + 1: LayerCall(blocks[group], chosen[:number].count(group))
        for number, group in enumerate(chosen)
    }


def _depth(config: Any, stack: Any, name: str) -> int | None:
    """Return the number of blocks of encoder or decoder: T5 has one configuration for each, BART one for both."""
    own = getattr(stack, "config", config)
    names = (f"{name}_layers", f"num_{name}_layers", "num_hidden_layers")
    values = (getattr(own, each, None) for each in names)
    return next((int(value) for value in values if value), None)


def _blocks(stack: nn.Module, length: int | None) -> list[nn.Module]:
    for part in _around_the_embedding(stack):
        for module in part.modules():  # parents come before their children
            if isinstance(module, nn.ModuleList) and len(module) == length:
                return _whole(part, module)
    raise ValueError(
        f"{type(stack).__name__} has no ModuleList of {length} blocks (config.num_hidden_layers): each layer must be a "
        "module of its own; use LayerInformationLoss with the modules of your choice"
    )


def _whole(part: nn.Module, found: nn.ModuleList) -> list[nn.Module]:
    """Return the modules whose outputs are the hidden states; the list that was found may hold parts of blocks.

    XLM and FlauBERT keep the parts of all blocks in parallel lists; the last part of a block is its second norm.
    SqueezeBERT calls a block's forward directly, which skips its hooks; the last part of a block is its ``output``.
    """
    if any(isinstance(block, nn.ModuleList) for block in found):
        raise ValueError(
            f"{type(part).__name__} keeps its blocks in lists of lists: each layer must be a module of one list; use "
            "LayerInformationLoss with the modules of your choice"
        )
    if all(type(block).__name__ == "SqueezeBertModule" for block in found):
        return [block.get_submodule("output") for block in found]
    owner: Any = next(module for module in part.modules() if any(each is found for each in module.children()))
    lists = [child for child in owner.children() if isinstance(child, nn.ModuleList)]
    parallel = [each for each in lists if len(each) == len(found)]
    if len(parallel) == 1:
        return list(found)
    if not hasattr(owner, "layer_norm2") or getattr(owner, "pre_norm", False):
        raise ValueError(
            f"{type(owner).__name__} keeps the parts of its blocks in {len(parallel)} lists, and no module returns "
            "the output of a whole block; use LayerInformationLoss with the modules of your choice"
        )
    return list(owner.layer_norm2)


def input_norms(
    model: nn.Module, blocks: Mapping[Label, LayerCall], run: Callable[[], Any]
) -> dict[Label, LayerCall]:
    """Find, for each block, the first normalisation layer whose input is the block's output.

    In pre-norm models (GPT-2, Llama, T5) it is the first norm of the next block, or the final norm after the last
    block; in post-norm models (BERT) there is none.  It is found by running a forward, because names differ between
    architectures.

    Args:
        blocks: the blocks of the model, by label.
        run: runs a forward of the model.
    """
    ended: dict[Label, Tensor] = {}
    found: dict[Label, LayerCall] = {}
    runs: Counter[nn.Module] = Counter()

    def block_ends(label: Label, passing: Any) -> None:
        ended[label] = first_tensor(passing)

    def norm_starts(norm: nn.Module, passing: Any) -> None:
        value = first_tensor(passing)
        for label, output in ended.items():
            if value is output or (value.shape == output.shape and torch.equal(value, output)):
                found.setdefault(label, LayerCall(norm, runs[norm]))
        runs[norm] += 1

    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    with torch.no_grad(), torch.random.fork_rng(), ExitStack() as stack:
        for label, block in blocks.items():
            stack.enter_context(at_site(block, partial(block_ends, label)))
        for norm in norms:
            stack.enter_context(at_site(LayerCall(norm, None, "input"), partial(norm_starts, norm)))
        run()
    return found


def view_of_states(model: nn.Module, label: Label) -> Kind | None:
    """Return the layout of a block's output if it is not (B, T, ...), because the model adds or moves positions."""
    kind, side = model_type(model), str(label).split(".")[0]
    if kind == "squeezebert":
        return "tokens in the last dimension"
    padded = kind == "longformer" or (
        kind == "led" and side == "encoder"
    )  # to a multiple of the attention window
    predicts = kind == "prophetnet" and side == "decoder"  # prediction streams follow the text's positions
    return "tokens at the beginning" if padded or predicts else None


def pads_to_windows(model: nn.Module) -> bool:
    """Whether the model pads the ids to a multiple of its attention window before it embeds them."""
    return model_type(model) in ("longformer", "led")


def _around_the_embedding(stack: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that contain the word embeddings, innermost first, up to the whole stack."""
    try:
        embedding = word_embedding(stack)
    except ValueError:  # a decoder may receive embedded tokens: then the whole stack is searched
        embedding = stack
    path = next((name for name, module in stack.named_modules() if module is embedding), "")
    names = path.split(".")[:-1]
    for end in range(len(names), -1, -1):
        yield stack.get_submodule(".".join(names[:end]))


def keeps_padding_out(model: nn.Module) -> bool:
    """Whether padding is masked, so that a batch may mix lengths: FNet mixes all positions, ConvBERT convolves them."""
    summary = getattr(getattr(model, "sequence_summary", None), "summary_type", "")
    reads_the_end = summary == "last"  # XLNet's classifier uses the last position, even if it is padding
    return "attention_mask" in forward_names(model) and model_type(model) != "convbert" and not reads_the_end


def attention_heads(model: nn.Module, label: Label) -> int | None:
    """Return the number of attention heads of the block with this label, from the configuration."""
    config = text_config(model)
    side = str(label).split(".")[0]
    if is_encoder_decoder(model):
        encoder, decoder = _stacks(model)
        config = getattr(encoder if side == "encoder" else decoder, "config", config)
    value = getattr(config, f"{side}_attention_heads", None) or getattr(config, "num_attention_heads", None)
    return value if isinstance(value, int) else None


def head_site(block: LayerCall) -> LayerCall | None:
    """Return where the heads of a block's self-attention are concatenated, (B, T, heads * width).

    Returns:
        The output or the input of a module; None if no such module is known.
    """
    found = _part(block, _HEADS_OUT)
    if found is not None:
        return found
    found = _part(block, _HEADS_IN)
    return None if found is None else replace(found, side="input")


def value_site(block: LayerCall) -> tuple[LayerCall, int] | None:
    """Return where a block's self-attention computes its value vectors, and the number of parts of that output.

    The values are the last part.  None if no such module is known.

    Examples::
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> site, parts = value_site(LayerCall(BertModel(config).encoder.layer[0]))
        >>> site.layer, parts
        (Linear(in_features=4, out_features=4, bias=True), 1)
    """
    for names, parts in ((_VALUES, 1), (_VALUES_LAST, 3)):
        found = _part(block, names)
        if found is not None:
            return found, parts
    return None


def _part(block: LayerCall, names: Sequence[str]) -> LayerCall | None:
    """Return the first module of a block whose dotted name ends with one of these names, or None."""
    ends = tuple(f".{name}" for name in names)
    modules = (module for name, module in block.layer.named_modules() if f".{name}".endswith(ends))
    found = next(modules, None)
    return None if found is None else LayerCall(found, block.call)


def heads_width(site: LayerCall) -> int | None:
    """Return the total width of the heads at a site: the input width of the projection after attention."""
    if site.side == "output":  # as wide as the values
        values = (getattr(site.layer, name, None) for name in ("value", "value_proj", "v_proj"))
        widths = (getattr(each, "out_features", None) for each in values)
        return next((width for width in widths if isinstance(width, int)), None)
    weight = getattr(site.layer, "weight", None)
    if weight is None or weight.ndim != 2:
        return None
    transposed = type(site.layer).__name__ == "Conv1D"  # GPT-2 keeps (in, out), nn.Linear (out, in)
    return int(weight.shape[0 if transposed else 1])


# Wrappers (a pipeline, DataParallel, PEFT) and the transformers model inside

# PEFT types whose virtual tokens lengthen the text, and those that leave its length unchanged.
_IN_THE_TEXT = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT")
_BESIDE_THE_TEXT = ("PREFIX_TUNING", "CARTRIDGE")


def unwrapped(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """Return the model inside wrappers, and the tokenizer: the given one, or else the wrapper's.

    Pipelines, CrossEncoders, DataParallel, compiled models and PEFT models whose adapters are inside the base model
    (LoRA, merged or not) are unwrapped.  PEFT prompts are kept, because they are outside the base model.

    Raises:
        TypeError: a wrapper whose output differs from its model's.
    """
    inner = _inside(model)
    while inner is not None:
        tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        model, inner = inner, _inside(inner)
    return model, tokenizer


def _inside(model: Any) -> Any:
    """Return the model inside the outermost wrapper; None if there is no wrapper."""
    names = {kind.__name__ for kind in type(model).__mro__}
    if "SentenceTransformer" in names:
        raise TypeError(
            f"model is a {type(model).__name__}, which pools and scales the output of its model: a transformers model "
            "is needed; give model[0].auto_model with model.tokenizer to explain its layers"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if "OptimizedModule" in names:
        return model._orig_mod
    if names & {"Pipeline", "CrossEncoder"}:
        return model.model
    if not _is_peft(model) or prompt_of(model) is not None:
        return None
    if type(model.base_model).__name__ == "XLoraModel":
        raise TypeError(
            f"model is a {type(model).__name__} of X-LoRA, which runs its base model twice: a model that runs once is "
            "needed; give one of its adapters"
        )
    return model.get_base_model()


def _is_peft(model: Any) -> bool:
    return isinstance(model, nn.Module) and hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def prompt_of(model: Any) -> Any:
    """Return the configuration of a PEFT model's virtual tokens; None if it has none."""
    if not _is_peft(model) or not hasattr(model, "active_peft_config"):
        return None
    config = model.active_peft_config
    return config if getattr(config, "is_prompt_learning", False) else None


def base_of(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model if prompt_of(model) is None else model.get_base_model()


def virtual_tokens(model: Any) -> dict[Axis, int]:
    """Return the number of positions before the first token in the states of a prompt-tuned model, for each axis.

    Raises:
        ValueError: virtual tokens of an unknown kind.
    """
    config = prompt_of(model)
    kind = None if config is None else str(getattr(config.peft_type, "value", config.peft_type))
    if kind is None or kind in _BESIDE_THE_TEXT:
        return {"input": 0, "decoder": 0}
    if kind not in _IN_THE_TEXT:
        raise ValueError(
            f"{type(model).__name__} learns virtual tokens by {kind}, and their positions are known only for "
            f"{', '.join(_IN_THE_TEXT + _BESIDE_THE_TEXT)}; give the base model"
        )
    count = int(config.num_virtual_tokens)
    in_decoder = config.num_transformer_submodules == 2 and kind not in ("PROMPT_TUNING", "P_TUNING")
    return {"input": count, "decoder": count if in_decoder else 0}


def names_kept(model: Any) -> set[str]:
    """Return the further arguments that a model with virtual tokens passes to its base model (no positions)."""
    classes = ("ForSequenceClassification", "ForTokenClassification")
    return {"decoder_input_ids"} | ({"token_type_ids"} if type(model).__name__.endswith(classes) else set())


def adapter_name(model: Any) -> str:
    """Return the kind of a PEFT adapter, as a suffix of the model's name; "" for other models."""
    if not _is_peft(model):
        return ""
    kinds = {
        str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()
    }
    return f" ({', '.join(sorted(kinds))})"


def name_of(model: Any) -> str:
    """Return the id of a model, the name of its folder (without the path), or its class."""
    name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
    return Path(name).name if Path(name).is_dir() else name


def check_parts(model: Any, tokenizer: Any) -> None:
    """Raise an error if this is not a model and a tokenizer of transformers that can be explained."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model is a {type(model).__name__}: it must be a model of transformers, as returned by "
            "huggingface.load; for a plain PyTorch module use PlainModel(module, tokenizer, embedding)"
        )
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}: it must be a tokenizer of transformers; wrap a tokenizers one "
            "as PreTrainedTokenizerFast(tokenizer_object=tokenizer)"
        )
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu":
            raise ValueError(
                f"{type(model).__name__} has 4-bit weights, which bitsandbytes packs on a CPU for a kernel without "
                "gradients; load it with huggingface.load(..., load_in='4bit')"
            )
    if any(type(module).__name__ == "ModernBertUnpaddedRotaryEmbedding" for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} with flash attention joins the texts of a batch into one row: the batch dimension "
            "must stay; load it with attn_implementation='sdpa', or use transformers 5"
        )
