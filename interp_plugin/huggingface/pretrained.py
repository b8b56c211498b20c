"""Models of ``transformers`` from a folder or the hub, and the one that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from interp_plugin.huggingface.adapters import UntrainedError, adapter_of, base_path, load_adapter

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
            configuration, and for a pretraining head, the model comes without a head.  An adapter of PEFT
            comes on its base model.
        tokenizer: where the tokenizer is; None: with the model, or with an adapter's base model.
        device: where to put the model; None: where transformers puts it, the CPU for all but quantised weights.
        dtype: "float32", "bfloat16" or "float16".
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        ValueError: nothing can be loaded from there, the head's own weights are missing (transformers
            would fill them with random numbers), or the dtype is another one.
        ImportError: an adapter, and PEFT is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}")
    name = fspath(path_or_id)
    try:
        model, words = _model_and_words(name, tokenizer, dtype, revision)
    except UntrainedError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load model {name!r}: it must hold a model and its tokenizer; give a folder written by "
            "save_pretrained, or a Hugging Face id that is cached or within reach"
        ) from error
    return (model if device is None else model.to(device)).eval(), words


def _model_and_words(name: str, tokenizer: Any, dtype: Dtype, revision: str | None) -> tuple[Any, Any]:
    """What is under that name: a model, or an adapter on its base model."""
    is_folder = Path(name).is_dir()
    adapter = adapter_of(name) if is_folder else None
    if adapter is None:
        try:
            return _whole(name, tokenizer, dtype, revision)
        except OSError:  # an id of an adapter has no configuration of a model
            adapter = None if is_folder else adapter_of(name, revision)
            if adapter is None:
                raise
    return _adapted(name, adapter, tokenizer, dtype, revision)


def _whole(name: str, tokenizer: Any, dtype: Dtype, revision: str | None) -> tuple[Any, Any]:
    """A model with all its weights, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(name, revision=revision)
    words_from = name if tokenizer is None else tokenizer
    words = AutoTokenizer.from_pretrained(words_from, revision=revision if tokenizer is None else None)
    model, report = _class_of(config).from_pretrained(
        name, output_loading_info=True, revision=revision, **_options(config, dtype)
    )
    # bare encoders come without a pooler, and their layers need none
    missing = [key for key in report["missing_keys"] if "pooler." not in key]
    if missing:
        raise UntrainedError(
            f"model {name!r} has no weights for {', '.join(sorted(missing)[:3])}: it must be trained whole; "
            "fine-tune it first or give another model"
        )
    return model, words


def _adapted(
    name: str, adapter: dict[str, Any], tokenizer: Any, dtype: Dtype, revision: str | None
) -> tuple[Any, Any]:
    """An adapter on its base model, and the tokenizer of the one or the other."""
    from transformers import AutoConfig, AutoTokenizer

    base = base_path(name, adapter)
    config = AutoConfig.from_pretrained(base, revision=adapter.get("revision"))
    model = load_adapter(name, adapter, _options(config, dtype), revision)
    if tokenizer is not None:
        return model, AutoTokenizer.from_pretrained(tokenizer)
    if Path(name).is_dir() and not Path(name, "tokenizer_config.json").is_file():
        return model, AutoTokenizer.from_pretrained(base, revision=adapter.get("revision"))
    return model, AutoTokenizer.from_pretrained(name, revision=revision)


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
