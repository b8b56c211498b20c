"""Models of ``transformers`` from a folder or the hub, and the one that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def default_model_path() -> Path:
    """Folder of the small sentiment classifier that ships with the package.

    Examples::
        >>> default_model_path().name
        'default_model'
    """
    return Path(str(files("interp_plugin") / "default_model"))


def load(
    path_or_id: str | PathLike[str],
    tokenizer: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: Dtype = "float32",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the class that its configuration names, and its tokenizer: in eval mode.

    Args:
        path_or_id: a folder written by ``save_pretrained``, or a Hugging Face id.  Without a class in its
            configuration, and for a pretraining head, the model comes without a head.
        tokenizer: where the tokenizer is; None: with the model.
        device: where to put the model; None: where transformers puts it, the CPU for all but quantised weights.
        dtype: "float32", "bfloat16" or "float16".
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        ValueError: nothing can be loaded from there, the head's own weights are missing (transformers
            would fill them with random numbers), or the dtype is another one.
    """
    from transformers import AutoConfig, AutoTokenizer

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}")
    name, words_from = fspath(path_or_id), path_or_id if tokenizer is None else tokenizer
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        words = AutoTokenizer.from_pretrained(words_from, revision=revision if tokenizer is None else None)
        model, report = _class_of(config).from_pretrained(
            name, output_loading_info=True, revision=revision, **_options(config, dtype)
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load model {name!r}: it must hold a model and its tokenizer; give a folder written by "
            "save_pretrained, or a Hugging Face id that is cached or within reach"
        ) from error
    missing = [
        key for key in report["missing_keys"] if "pooler." not in key
    ]  # bare encoders come without, and their layers need none
    if missing:
        raise ValueError(
            f"model {name!r} has no weights for {', '.join(sorted(missing)[:3])}: it must be trained whole; "
            "fine-tune it first or give another model"
        )
    return (model if device is None else model.to(device)).eval(), words


def _class_of(config: Any) -> Any:
    """The class that the configuration names; the bare model where it names none, or a pretraining head."""
    import transformers

    names = config.architectures or ["AutoModel"]
    if names[0].endswith("ForPreTraining"):  # its outputs are losses of pretraining, no answers
        return transformers.AutoModel
    try:
        return getattr(transformers, names[0])
    except AttributeError as error:
        raise ValueError(f"transformers has no class {names[0]!r}") from error


def _options(config: Any, dtype: Dtype) -> dict[str, Any]:
    from transformers import __version__

    version = tuple(int(part) for part in __version__.split(".")[:2])
    options: dict[str, Any] = {"dtype" if version >= (4, 56) else "torch_dtype": DTYPES[dtype]}
    if config.model_type == "modernbert":  # before transformers 5 flash attention joined a batch into one row
        options["attn_implementation"] = "sdpa"
    return options


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
