"""Tensors with what is known of them in a safetensors file that carries a digest of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interp_plugin.seal import blank_seal, is_sealed, sealed
from interp_plugin.writing import replace_file

Kinds = Mapping[str, type | tuple[type | None, ...]]
"""What the members of an object of JSON may be, by name; None is null."""


def write(
    path: str | os.PathLike[str], format_name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors and JSON values, whole or not at all.

    Args:
        path: of the file.
        format_name: what the file holds, with the number of its format at the end.
        about: JSON values.
        tensors: by name.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    blank = blank_seal()
    content = save(
        {name: value.contiguous().cpu() for name, value in tensors.items()},
        {"format": format_name, "about": json.dumps(about), "seal": blank},
    )
    replace_file(path, sealed(content, blank))


def read(
    path: str | os.PathLike[str], format_name: str, again: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON values and the tensors that `write` wrote; every tensor is finite.

    Args:
        path: of the file.
        format_name: the format that is read.
        again: what to do where the file is another one.

    Raises:
        OSError: there is no such file.
        ValueError: it is another file, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = os.fspath(path)
    content = Path(path).read_bytes()
    try:
        metadata = _metadata(content)
        tensors = load(content) if is_sealed(content) else None
        about = json.loads(metadata["about"])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name!r} is not a safetensors file of ours, or is damaged; {again}") from error
    found = metadata.get("format")
    if found != format_name:
        raise ValueError(f"{name!r} is of format {found!r}, and {format_name!r} is needed; {again}")
    if tensors is None:
        raise ValueError(f"{name!r} is damaged: its digest is not that of its content; {again}")
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"{name!r} holds numbers in {key!r} that are not finite; {again}")
    if not isinstance(about, dict):
        raise ValueError(f"{name!r} says nothing of its numbers; {again}")
    return about, tensors


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: its length, eight bytes, then an object of JSON."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])


def check_fields(about: Any, kinds: Kinds) -> None:
    """See that JSON values are an object with these members and no others, each of its kind; None is null.

    Raises:
        ValueError: they are not.

    Examples::
        >>> check_fields({"texts": 2, "layer": None}, {"texts": int, "layer": (str, None)})
        >>> check_fields({"texts": "two"}, {"texts": int})
        Traceback (most recent call last):
            ...
        ValueError: texts is 'two', a str
    """
    if not isinstance(about, dict) or set(about) != set(kinds):
        there = ", ".join(map(str, about)) if isinstance(about, dict) else type(about).__name__
        raise ValueError(f"it has {there or 'nothing'} and should have {', '.join(kinds)}")
    for name, kind in kinds.items():
        value, allowed = about[name], kind if isinstance(kind, tuple) else (kind,)
        fits = any(value is None if one is None else isinstance(value, one) for one in allowed)
        if not fits or (isinstance(value, bool) and bool not in allowed):
            raise ValueError(f"{name} is {value!r}, a {type(value).__name__}")
