"""Features: what one forward without noise says of every token: its states, normalisations and attention.

Vectors are for a linear map; the few numbers beside them are what such a map cannot compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from interp_plugin.method.perturbation import in_this_thread
from interp_plugin.text.batch import Batch
from interp_plugin.text.models import Encoding, TextModel
from interp_plugin.text.states import State

ROUNDING = 1e-3  # of a vector, below which a difference is noise: its logarithm would depend on the batch
TINY = 1e-6
SMALLEST_SPREAD = 1e-6  # before a normalisation
LEAST_ATTENTION = 1e-3  # share
_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


class Recorder(TorchFunctionMode):
    """Records, while a model runs, the spread before each normalisation and the attention that each token gets.

    A normalisation divides the noise by that spread, and attention moves it from token to token.  Normalisations are
    known by their class (LayerNorm, or a name that ends in RMSNorm), attention by torch's fused kernel or by a softmax
    over tokens; of ``torch.nn.MultiheadAttention``, which hides both, nothing is recorded.

    Args:
        module: the model.
        mask: which tokens are real, (B, T); its rows may run in several forwards, one after another.

    Examples::
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> class Attend(torch.nn.Module):
        ...     def forward(self, x):
        ...         return scaled_dot_product_attention(x, x, x)
        >>> model = Attend()
        >>> with Recorder(model, torch.ones(2, 5, dtype=torch.bool)) as inside:
        ...     _ = model(torch.randn(2, 3, 5, 4))  # 3 heads
        >>> inside.numbers().shape
        torch.Size([2, 5, 6])
    """

    def __init__(self, module: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self._module, self._mask = module, mask
        self._forwards: list[list[Tensor]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        begin = in_this_thread(lambda module, args: self._forwards.append([]))
        normalise = in_this_thread(self._normalise)
        self._hooks = [
            self._module.register_forward_pre_hook(begin),
            *(m.register_forward_pre_hook(normalise) for m in self._module.modules() if _normalises(m)),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def numbers(self) -> Tensor:
        """Logarithms, (B, T, F): for each normalisation one, for each head the attention got and that to oneself."""
        if not self._forwards or not all(self._forwards):
            return self._mask.new_zeros(*self._mask.shape, 0, dtype=torch.float32)
        return torch.cat([torch.cat(found, -1) for found in self._forwards])

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self._forwards and func is functional.scaled_dot_product_attention:
            self._attend(_weights(*args, **kwargs))
        elif self._forwards and func in _SOFTMAX and found.ndim == 4:
            self._attend(found)
        return found

    def _normalise(self, module: nn.Module, args: Sequence[Any]) -> None:
        given = args[0] if args else None
        if isinstance(given, Tensor) and given.ndim == 3 and given.shape[1] == self._mask.shape[1]:
            spread = given.detach().float().std(-1, unbiased=False, keepdim=True)
            self._forwards[-1].append(spread.clamp(min=SMALLEST_SPREAD).log())

    def _attend(self, weights: Tensor) -> None:
        """``weights``: what each token attends to, (R, heads, T, T)."""
        if weights.shape[2:] != (self._mask.shape[1],) * 2:
            return
        first = sum(len(found[0]) for found in self._forwards[:-1] if found)  # row of this forward
        real = self._mask[first : first + len(weights)].to(weights.device)
        weights = weights.detach().float() * real[:, None, :, None]
        got, own = weights.square().sum(2).sqrt(), weights.diagonal(dim1=2, dim2=3)
        self._forwards[-1].append((torch.cat([got, own], 1) + LEAST_ATTENTION).log().transpose(1, 2))


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


@torch.no_grad()
def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights that ``scaled_dot_product_attention`` uses for the same arguments, (R, heads, T, T)."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query.float() @ key.float().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if allowed else scores + attn_mask
    return scores.softmax(-1).nan_to_num()  # a row that may attend to nothing


def vectors(model: TextModel, batch: Batch, states: Sequence[State]) -> list[Tensor]:
    """The noise layer's output and every state, token by token, (B, T, width) each, float32.

    A state that has other tokens (a decoder's) is their mean, and one that has none is the same for every token.  A
    state whose second dimension is neither tokens nor its last is left out: its width would depend on the text.
    """
    count = batch.token_mask.shape[1]
    found = [batch.origin.float()]
    for state in states:
        whole = batch.whole(state.site).to(batch.origin.device).float()
        places = batch.places(state)
        if places is None:
            if whole.ndim == 2:
                found.append(whole.unsqueeze(1).expand(-1, count, -1))
            continue
        whole = whole.flatten(2)
        if model.axis[state.label] != "input":
            share = places.to(whole) / places.sum(1, keepdim=True)  # (B, places)
            whole = torch.einsum("bp,bpw->bw", share, whole).unsqueeze(1).expand(-1, count, -1)
        found.append(whole)
    return found


def watch(model: TextModel, encodings: Sequence[Encoding]) -> Recorder:
    """A context in which to run a batch of the texts.

    Nothing is recorded of an encoder-decoder, whose tokens are of two kinds.
    """
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    return Recorder(nn.Module() if "decoder" in model.axis.values() else model.module, mask)


def numbers(given: Sequence[Tensor], mask: Tensor, inside: Recorder) -> Tensor:
    """A few numbers of each token that a linear map of its vectors cannot give, (B, T, F).

    They are the number of tokens, the place, for each of the vectors its norm and how far it lies from the mean of
    the text's, and what was recorded inside; all as logarithms, because sigma of a linear state is a product of powers
    of them: sigma^2 = rate / (2 n c).

    Args:
        given: of :func:`vectors`.
        mask: which tokens are real, (B, T).
        inside: of :func:`watch`, after the forward.
    """
    share = mask.to(given[0]) / mask.sum(1, keepdim=True)  # (B, T)
    n = mask.sum(1, keepdim=True).expand_as(mask).to(given[0])
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device).expand_as(mask).to(given[0])
    found = [n.log(), place.log(), (n - place + 1).clamp(min=1).log()]
    for each in given:
        middle = torch.einsum("bt,btw->bw", share, each).unsqueeze(1)
        least = ROUNDING * each.norm(dim=-1) + TINY
        found += [
            (part.norm(dim=-1) + least).log()
            for part in (each, each - each.mean(-1, keepdim=True), each - middle)
        ]
    return torch.cat([torch.stack(found, -1), inside.numbers().to(given[0])], -1)
