"""Fingerprints: what stored numbers depend on, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import nn


@cache
def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    packages = ("interp-plugin", "captum", "torch", "transformers")
    return {name.replace("-", "_"): version(name) for name in packages}


def weights_digest(module: nn.Module) -> str:
    """A name for the very weights of a model: equal for equal parameters and buffers of equal types.

    Examples::
        >>> layer = nn.Linear(2, 1)
        >>> before = weights_digest(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> before == weights_digest(layer)
        False
    """
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def ids_digest(ids: Sequence[int]) -> str:
    """A name for the ids of a text: another tokenizer gives others, though the tokens may have the same names."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], before: str = ""
) -> list[tuple[str, Any, Any]]:
    """Names and values of the settings that differ.

    Examples::
        >>> differences({"rate": 0.1, "versions": {"torch": "2"}}, {"rate": 0.1, "versions": {"torch": "3"}})
        [('versions.torch', '2', '3')]
    """
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(name), theirs.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, before=f"{before}{name}.")
        elif here != there:
            found.append((before + name, here, there))
    return found
