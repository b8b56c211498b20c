"""Features: what one forward without noise says of every token of a batch.

Vectors, which the head reads by a linear map, and numbers that such a map cannot give.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from interp_plugin.amortised.inside import Inside
from interp_plugin.text.batch import Batch, State
from interp_plugin.text.models import Encoding, TextModel

ROUNDING = 1e-3  # of a vector, below which a difference says nothing: its logarithm would hang on the batch
TINY = 1e-6


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


def watch(model: TextModel, encodings: Sequence[Encoding]) -> Inside:
    """To be entered while a batch of the texts runs.

    It sees nothing of an encoder-decoder, whose tokens are of two kinds.
    """
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    return Inside(nn.Module() if "decoder" in model.axis.values() else model.module, mask)


def numbers(given: Sequence[Tensor], mask: Tensor, inside: Inside) -> Tensor:
    """A few numbers of each token that a linear map of its vectors cannot give, (B, T, F).

    They are the number of tokens, the place, for each of the vectors its norm and how far it lies from the mean of
    the text's, and what was seen inside; all as logarithms, as sigma of a linear state depends on them so:
    sigma^2 = rate / (2 n c).

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
