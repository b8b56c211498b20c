"""Support for models of ``transformers``: the only part of the package that depends on their structure."""

from interp_plugin.huggingface.architectures import token_limit, transformer_layers, unwrapped
from interp_plugin.huggingface.model import HuggingFaceModel, predicted_class
from interp_plugin.huggingface.pretrained import default_model_path, load, quiet

__all__ = [
    "HuggingFaceModel",
    "default_model_path",
    "load",
    "predicted_class",
    "quiet",
    "token_limit",
    "transformer_layers",
    "unwrapped",
]
