"""What a module gives out: the first tensor in it, and along which dimension the examples lie there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Put = Callable[[Tensor], Any]


def first_tensor(output: Any) -> Any:
    """The first tensor in a module's output: transformers' layers give tensors, tuples or ``ModelOutput``.

    Of a ``PackedSequence`` it is (B, T, ...), padded with zeros.  An output without a tensor comes back as it is.

    Examples::
        >>> first_tensor({"hidden": (torch.zeros(2, 3), None)}).shape
        torch.Size([2, 3])
    """
    return _find(output)[0]


def replace_first(output: Any, value: Tensor) -> Any:
    """The same output with another first tensor; the output itself stays as it is.

    Examples::
        >>> replace_first((torch.zeros(1), "rest"), torch.ones(1))
        (tensor([1.]), 'rest')
    """
    return _find(output)[1](value)


def is_packed(output: Any) -> bool:
    """Whether the first tensor of an output is a PackedSequence's."""
    while isinstance(output, (tuple, list)) and output and not isinstance(output, PackedSequence):
        output = output[0]
    return isinstance(output, PackedSequence)


def _find(output: Any) -> tuple[Any, Put]:
    """The first tensor, depth first, and how to make the output with another in its place."""
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output, batch_first=True)[0], lambda value: _packed_like(output, value)
    entries: list[tuple[Any, Any]] = []
    if isinstance(output, Mapping):
        entries = list(output.items())
    elif isinstance(output, (tuple, list)):
        entries = list(enumerate(output))
    for key, entry in entries:
        found, put = _find(entry)
        if isinstance(found, Tensor):
            return found, lambda value, key=key, put=put: _with(output, key, put(value))
    return output, lambda value: value


def _with(container: Any, key: Any, entry: Any) -> Any:
    """A copy of a tuple, list or mapping with another entry."""
    if isinstance(container, tuple):
        entries = (*container[:key], entry, *container[key + 1 :])
        return container._make(entries) if hasattr(container, "_make") else type(container)(entries)
    changed = copy.copy(container)
    changed[key] = entry
    return changed


def _packed_like(packed: PackedSequence, value: Tensor) -> PackedSequence:
    """``value``, (B, T, ...), packed as ``packed`` is."""
    count = len(packed.data)
    order = packed._replace(data=torch.arange(count, device=packed.data.device))
    places, _ = pad_packed_sequence(order, batch_first=True, padding_value=-1)  # (B, T)
    value, real = value[:, : places.shape[1]], places >= 0
    data = value.new_zeros(count, *value.shape[2:]).index_copy(0, places[real], value[real])
    return packed._replace(data=data)


@dataclass(frozen=True)
class Layout:
    """How the examples lie in what passes at a site.

    Attributes:
        dim: the dimension that runs over the examples: 0; in XLNet, whose layers give (T, B, K), 1.
        each: entries of each example along it: S of a text read as S sentences, whose layers give (B * S, T, K).
        length: of the longest packed sequence; None: nothing is packed.
    """

    dim: int = 0
    each: int = 1
    length: int | None = None

    def apart(self, value: Tensor) -> Tensor:
        """What passes, with the examples first: (R, ...), or (R, S, ...) where an example has several entries."""
        if self == Layout():
            return value  # whatever it is
        value = value.movedim(self.dim, 0)
        if self.each > 1:
            value = value.unflatten(0, (-1, self.each))
        if self.length is not None:  # these rows may all be shorter
            value = functional.pad(value, [0, 0] * (value.ndim - 2) + [0, self.length - value.shape[1]])
        return value

    def joined(self, value: Tensor) -> Tensor:
        """The way back to how the model has it; packed sequences are packed again elsewhere."""
        return (value.flatten(0, 1) if self.each > 1 else value).movedim(0, self.dim)


def is_plain(value: Any, rows: int) -> bool:
    """Whether the first dimension alone can be the batch (or no dimension can, which others refuse)."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    return len(value) == rows and not (rows > 1 and value.ndim > 2 and value.shape[1] == rows)


def layout_of(value: Tensor, rows: int, other: Any, other_rows: int) -> Layout | None:
    """How examples lie in ``value``, found by what changes with their number; None: in no way that is known.

    Args:
        value: what passed for ``rows`` examples.
        other: what passed for ``other_rows`` examples, all of them equal to the first of those.

    Examples::
        >>> layout_of(torch.zeros(5, 3, 7), 3, torch.zeros(5, 1, 7), 1)
        Layout(dim=1, each=1, length=None)
    """
    if not isinstance(other, Tensor) or value.ndim != other.ndim:
        return None
    changed = [dim for dim, size in enumerate(value.shape) if size != other.shape[dim]]
    if len(changed) != 1:
        return None
    each, rest = divmod(value.shape[changed[0]], rows)
    if rest or other.shape[changed[0]] != each * other_rows:
        return None
    layout = Layout(changed[0], each)
    if each > 1:  # an example's entries must be neighbours
        first, same = layout.apart(value)[0].float(), layout.apart(other)[0].float()
        if not torch.allclose(first, same, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
            return None
    return layout
