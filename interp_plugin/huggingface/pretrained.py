"""Loading of ``transformers`` models from a folder or the hub, and the model that ships with the package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from interp_plugin import optional

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
# Task type of an adapter -> class of its base model; other task types get a model without a head.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
# Suffixes of the names of classifier weights that an adapter stores with its own weights.
_HEADS = (
    "score.weight", "classifier.weight", "classifier.out_proj.weight", "classification_head.out_proj.weight",
)  # fmt: skip

Dtype = Literal["float32", "bfloat16", "float16"]
LoadIn = Literal["8bit", "4bit"]
PLACEMENTS = (
    "auto",
    "balanced",
    "balanced_low_0",
    "sequential",
)  # strategies of accelerate that use all available devices
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}


class UntrainedError(ValueError):
    """Weights are missing, which transformers would initialise at random."""


def default_model_path() -> Path:
    """Return the folder of the small sentiment classifier that ships with the package.

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
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    load_in: LoadIn | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, of the class that its configuration names and in eval mode, and its tokenizer.

    Args:
        path_or_id: a folder written by ``save_pretrained``, or a Hugging Face id.  If the configuration names no class,
            or one with a pretraining head, the model is loaded without a head.  A PEFT adapter is loaded on its base
            model.
        tokenizer: folder or id of the tokenizer; None: that of the model, or of an adapter's base model.
        device: device of the model; None: the default of transformers, the CPU unless weights are quantised.
        dtype: "float32", "bfloat16" or "float16" (on a CPU, float32 is used instead, with a warning).
        revision: branch, tag or commit of a Hugging Face id.
        trust_remote_code: run Python files that come with the model, if its configuration names them; this code has
            all your permissions.
        device_map: devices over which transformers spreads the model, instead of ``device``: "auto", or the device of
            each module by its name, as in ``from_pretrained``; requires accelerate (extra "large").
        load_in: "8bit" or "4bit" weights of linear layers, by bitsandbytes (extra "large"); computed in ``dtype``.

    Raises:
        ValueError: nothing can be loaded from there, weights of the head are missing (transformers would initialise
            them at random), the dtype is unknown, or the model needs its own code and that is not trusted.
        ImportError: PEFT (for an adapter), accelerate or bitsandbytes is needed and not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(map(repr, DTYPES))}")
    _check_placement(device, device_map, load_in)
    if dtype == "float16" and _is_on_cpu(device, device_map):
        warnings.warn(
            "float16 is slow on a CPU, and small gradients underflow in it: the model is run in float32; give "
            "dtype='bfloat16' to halve its memory",
            stacklevel=2,
        )
        dtype = "float32"
    spread = _spread(device, dtype, device_map, load_in)
    name = fspath(path_or_id)
    try:
        model, loaded = _Loader(name, tokenizer, revision, trust_remote_code, dtype, spread).load()
    except UntrainedError:
        raise
    except (OSError, ValueError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ValueError(
                f"model {name!r} or its tokenizer comes with Python files of its own, which were not run; read them, "
                "and if you trust them give --trust-remote-code (in Python trust_remote_code=True)"
            ) from error
        raise ValueError(f"cannot load model {name!r}: {_why_not(name, tokenizer, error)}") from error
    _check_modules(device_map, model)
    _check_tokenizer(loaded, model, name if tokenizer is None else fspath(tokenizer))
    if load_in is not None:
        _keep_gradients(model)
    return (model if device is None or spread else model.to(device)).eval(), loaded


def _keep_gradients(model: torch.nn.Module) -> None:
    """Prevent 4-bit layers from packing their weights for a CPU kernel that has no gradients."""
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _check_device(device: str | torch.device) -> None:
    try:
        torch.zeros(1, dtype=torch.float32, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device {str(device)!r} cannot be used ({reason}); give cpu, or one that torch finds here"
        ) from error


def _devices(device_map: Any) -> list[Any]:
    """Return the devices that a device map names; none if accelerate chooses them."""
    devices = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    return [device for device in devices if device not in (None, *PLACEMENTS, "disk")]


def _is_on_cpu(device: Any, device_map: Any) -> bool:
    if isinstance(device_map, Mapping) or device_map not in (None, *PLACEMENTS):
        return all(str(named) == "cpu" for named in _devices(device_map))
    return not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"


def _check_placement(device: Any, device_map: Any, load_in: str | None) -> None:
    """Check device, device map and quantisation."""
    if load_in not in (None, *get_args(LoadIn)):
        raise ValueError(f"load_in is {load_in!r}; choose '8bit' or '4bit', or None for full precision")
    if device_map is not None and device is not None:
        raise ValueError(
            f"device is {str(device)!r} and device_map {device_map!r}: both say where the model goes; give one"
        )
    if device_map == {}:
        raise ValueError(
            "device_map is {}; give 'auto', or the device of each module by its name ('' is the whole model)"
        )
    for each in _devices(device_map) if device is None else [device]:
        _check_device(each)


def _check_modules(device_map: Any, model: Any) -> None:
    """Check that the modules in a device map exist: accelerate ignores unknown names."""
    if isinstance(device_map, Mapping):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        parts = dict([*base.named_modules(), *base.named_parameters(), *base.named_buffers()])
        unknown = [name for name in device_map if name not in parts]
        if unknown:
            raise ValueError(
                f"device_map has {', '.join(map(repr, unknown))}, which {type(base).__name__} does not have: its parts "
                f"are {', '.join(repr(name) for name, _ in base.named_children())} and their submodules by dotted name"
            )


def _spread(device: Any, dtype: Dtype, device_map: Any, load_in: str | None) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` for a device map or quantisation; empty without these."""
    if device_map is None and load_in is None:
        return {}
    purpose = "device_map" if load_in is None else f"--load-in {load_in} (in Python load_in={load_in!r})"
    optional.load("accelerate", purpose, "large")
    if device_map is None:
        device_map = "auto" if device is None else {"": device}
    found: dict[str, Any] = {"device_map": device_map}
    if load_in is not None:
        optional.load("bitsandbytes", purpose, "large")
        from transformers import BitsAndBytesConfig

        compute = {"bnb_4bit_compute_dtype": DTYPES[dtype]} if load_in == "4bit" else {}
        found["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{load_in}": True}, **compute)
    return found


def _why_not(name: str, tokenizer: str | PathLike[str] | None, error: Exception) -> str:
    """Explain why a model or its tokenizer could not be loaded, and what to do."""
    for each in (name, *(() if tokenizer is None else (fspath(tokenizer),))):
        if not Path(each).exists() and (each.startswith(("/", ".", "~")) or each.count("/") > 1):
            return f"there is no folder {each!r}; give an existing one, or a Hugging Face id"
        if Path(each).is_file():
            return f"{each!r} is a file; give the folder that holds it"
    found: BaseException | None = error
    kinds = set()
    while found is not None:
        kinds.add(type(found).__name__)
        found = found.__cause__ or found.__context__
    if "GatedRepoError" in kinds:
        return "access to it is restricted; accept its terms on its page of the hub, then log in with hf auth login"
    if "RepositoryNotFoundError" in kinds:
        return (
            "the hub has no such id, or it is private; check its name, or give your token with hf auth login"
        )
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        reason = (
            "HF_HUB_OFFLINE does not allow asking the hub" if HF_HUB_OFFLINE else "the hub cannot be reached"
        )
        return (
            f"it is not in the cache, and {reason}; give a folder, or load it once where there is a network"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"it must hold a model and its tokenizer ({reason}); give a folder written by save_pretrained, or a Hugging "
        "Face id that is cached or within reach"
    )


def _check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Check that a tokenizer has a vocabulary; warn if it has more tokens than the model embeds.

    Raises:
        ValueError: it has special tokens only, as transformers returns if there are no tokenizer files.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(
            f"{name!r} holds no tokenizer; save it there with save_pretrained, or name another with --tokenizer (in "
            "Python tokenizer=)"
        )
    table = model.get_input_embeddings()
    rows = getattr(table, "num_embeddings", None)
    if rows is not None and len(tokenizer) > rows:
        warnings.warn(
            f"the tokenizer in {name!r} has {len(tokenizer)} tokens and the model embeds {rows}: it belongs to another "
            "model",
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Loader:
    """What to load and how; see :func:`load`."""

    name: str
    tokenizer: str | PathLike[str] | None
    revision: str | None
    trust: bool
    dtype: Dtype
    spread: Mapping[str, Any]

    def load(self) -> tuple[Any, Any]:
        """Load the model, or the adapter on its base model, and the tokenizer."""
        if Path(self.name).is_dir():
            adapter = _adapter_of(self.name, None)
            return self._full_model() if adapter is None else self._adapted_model(adapter)
        try:
            return self._full_model()
        except OSError:  # the id may be an adapter's, which has no model configuration
            adapter = _adapter_of(self.name, self.revision)
            if adapter is None:
                raise
        return self._adapted_model(adapter)

    def _full_model(self) -> tuple[Any, Any]:
        """Load a model with all its weights, and its tokenizer."""
        config = self._config(self.name, self.revision)
        tokenizer = self._tokenizer(self.name, self.revision)
        model, missing = self._model(_class_of(config, self.trust), self.name, self.revision, config)
        if missing:
            raise UntrainedError(
                f"model {self.name!r} has no weights for {', '.join(missing[:3])}: it must be trained whole; "
                "fine-tune it first or give another model"
            )
        return model, tokenizer

    def _adapted_model(self, adapter: dict[str, Any]) -> tuple[Any, Any]:
        """Load the base model with the adapter on it, and the tokenizer of the adapter or of the base model."""
        base, base_revision = _base_of(self.name, adapter), adapter.get("revision")
        config = self._config(base, base_revision)
        try:
            from peft import PeftModel
            from peft.utils import load_peft_weights
        except ImportError as error:
            raise ImportError(
                f"{self.name!r} holds an adapter, and PEFT, which reads it, is not installed: pip install peft"
            ) from error
        import transformers

        weights = load_peft_weights(self.name, device="cpu", revision=self.revision)
        kind = _CLASSES.get(str(adapter.get("task_type")), "AutoModel")
        heads = [len(value) for key, value in weights.items() if key.endswith(_HEADS)]
        has_classes = bool(heads) and kind.endswith("Classification")
        if has_classes and heads[0] != config.num_labels:  # the head that was saved with the adapter
            config.num_labels = heads[0]
        model, missing = self._model(
            getattr(transformers, kind), base, base_revision, config, ignore_mismatched_sizes=has_classes
        )
        lost = [key for key in missing if not any(saved.endswith(key) for saved in weights)]
        if lost:
            raise UntrainedError(
                f"adapter {self.name!r} and its base model have no weights for {', '.join(lost[:3])}: they must be "
                "trained whole; save the adapter with modules_to_save, or give another"
            )
        model = PeftModel.from_pretrained(model, self.name, revision=self.revision)
        if Path(self.name).is_dir() and not Path(self.name, "tokenizer_config.json").is_file():
            return model, self._tokenizer(base, base_revision)
        return model, self._tokenizer(self.name, self.revision)

    # trust_remote_code is always given, because transformers would otherwise ask on standard input

    def _config(self, name: str, revision: str | None) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=self.trust)

    def _tokenizer(self, name: str, revision: str | None) -> Any:
        """Load the given tokenizer, or else the one under this name."""
        from transformers import AutoTokenizer

        if self.tokenizer is not None:
            return AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=self.trust)
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=self.trust)

    def _model(
        self, kind: Any, name: str, revision: str | None, config: Any, **options: Any
    ) -> tuple[Any, list[str]]:
        """Load a model; also return the names of weights that are missing or have another shape."""
        from transformers import __version__

        version = tuple(int(part) for part in __version__.split(".")[:2])
        options["dtype" if version >= (4, 56) else "torch_dtype"] = DTYPES[self.dtype]
        # before transformers 5, flash attention joined a batch into one row
        if config.model_type == "modernbert":
            options["attn_implementation"] = "sdpa"
        model, report = kind.from_pretrained(
            name, config=config, revision=revision, trust_remote_code=self.trust, output_loading_info=True,
            **options, **self.spread,
        )  # fmt: skip
        others = [key if isinstance(key, str) else key[0] for key in report.get("mismatched_keys", ())]
        # encoders saved without a pooler are complete: their layers do not use it
        return model, sorted(key for key in (*report["missing_keys"], *others) if "pooler." not in key)


def _adapter_of(name: str, revision: str | None) -> dict[str, Any] | None:
    """Return the configuration of an adapter in a folder or under a Hugging Face id; None if there is none."""
    path: Any = Path(name, ADAPTER)
    if not Path(name).is_dir():
        from transformers.utils import find_adapter_config_file

        try:
            path = find_adapter_config_file(name, revision=revision)
        except (OSError, ValueError):  # no such id: the caller raises the error
            return None
    if path is None or not Path(path).is_file():
        return None
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _base_of(name: str, adapter: dict[str, Any]) -> str:
    """Return the path or id of the adapter's base model; a relative path may start at the adapter's folder."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{ADAPTER} of {name!r} names no base_model_name_or_path; write it there")
    beside = Path(name, base)
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else str(base)


def _class_of(config: Any, trust: bool) -> Any:
    """Return the class that the configuration names; AutoModel if it names none or one with a pretraining head.

    For a class whose code comes with the model, return the auto class of transformers that loads it.
    """
    import transformers

    names = config.architectures or ["AutoModel"]
    if names[0].endswith("ForPreTraining"):  # its outputs serve pretraining objectives only
        return transformers.AutoModel
    own = (getattr(config, "auto_map", None) or {}) if trust else {}
    for auto, path in own.items():  # such as "AutoModelForMaskedLM": "modeling.MyMaskedLM"
        if str(path).split(".")[-1] == names[0]:
            return getattr(transformers, auto)
    try:
        return getattr(transformers, names[0])
    except AttributeError as error:
        raise ValueError(f"transformers has no class {names[0]!r}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, suppress warnings and progress bars of transformers."""
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
