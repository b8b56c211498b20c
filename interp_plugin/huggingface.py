"""What we need to know of ``transformers``: loading a classifier, its blocks, its labels, its limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def default_model_path() -> Path:
    """Folder of the small sentiment classifier that ships with the package.

    Example::

        >>> default_model_path().name
        'default_model'
    """
    return Path(str(files("interp_plugin") / "default_model"))


def load(
    path_or_id: str | PathLike[str],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer: in eval mode, float32, on the CPU.

    Args:
        path_or_id: a folder written by ``save_pretrained``, or a Hugging Face id.

    Raises:
        ValueError: nothing can be loaded from there, or the classifier's own weights are missing
            (transformers would fill them with random numbers).
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path_or_id, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load model {str(path_or_id)!r}: it must hold a sequence classifier and its tokenizer; "
            "give a folder written by save_pretrained, or a Hugging Face id that is cached or within reach"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(
            f"model {str(path_or_id)!r} has no weights for {missing}: it must be a trained sequence "
            "classifier; fine-tune it first or give another model"
        )
    return model.float().eval(), tokenizer


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, first to last (the encoder's, where there is a decoder too).

    They are the outermost ``ModuleList`` that is as long as ``config.num_hidden_layers`` says.

    Raises:
        ValueError: there is no such list (ALBERT, for one, runs a single block many times).

    Example::

        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=3, num_attention_heads=1)
        >>> [type(layer).__name__ for layer in transformer_layers(BertModel(config))]
        ['BertLayer', 'BertLayer', 'BertLayer']
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    base = getattr(model, "base_model", model)
    for module in base.modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ValueError(
        f"{type(model).__name__} has no ModuleList of config.num_hidden_layers = {depth} blocks: "
        "each layer must be a module of its own; use LayerInformationLoss with the modules of your choice"
    )


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens, special ones included, that model and tokenizer take (very large if neither says)."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = int(tokenizer.model_max_length)
    return min(limit, positions) if positions else limit


def predicted_class(model: PreTrainedModel, logits: Tensor) -> tuple[str, float]:
    """Name and softmax probability of the likeliest class.

    Args:
        logits: of one text, shape (C,).

    Raises:
        ValueError: fewer than two classes, as in a regression head.
    """
    if len(logits) < 2:
        raise ValueError(
            f"the model has {len(logits)} output: a classifier has at least 2; give a classifier"
        )
    probability, index = logits.float().softmax(-1).max(-1)
    return str(model.config.id2label[int(index)]), float(probability)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars from transformers inside the block; both as before after it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
