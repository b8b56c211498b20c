"""States that do not have a text's tokens, and only them, in dimension 1: shown so while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp_plugin.state import LayerCall, at_site, first_tensor
from interp_plugin.tokens import Axis

Kind = Literal["tokens at the end", "tokens at the beginning", "tokens in the last dimension"]


class View(nn.Module):
    """What passes at a site, as (R, T, ...): a module that runs right after the site and gives that out.

    Args:
        site: where the model computes the state.
        kind: where the tokens are there: after virtual tokens, (R, v + T, ...); before other places,
            (R, T + more, ...); or last, (R, ..., T).
        axis: whether they are the input's or the decoder's.
    """

    def __init__(self, site: LayerCall, kind: Kind, axis: Axis = "input") -> None:
        super().__init__()
        self.site, self.kind, self.axis = site, kind, axis

    def forward(self, passing: Any, length: int) -> Any:
        """The state with ``length`` tokens in dimension 1."""
        value = first_tensor(passing)
        return shown(value, self.kind, length) if isinstance(value, Tensor) else value


def shown(value: Tensor, kind: Kind, length: int) -> Tensor:
    """A state with its ``length`` tokens in dimension 1.

    Examples::
        >>> shown(torch.zeros(2, 9, 4), "tokens at the end", 5).shape
        torch.Size([2, 5, 4])
    """
    if kind == "tokens in the last dimension":
        return value.transpose(1, -1)
    return value[:, -length:] if kind == "tokens at the end" else value[:, :length]


class EmbeddingView(nn.Embedding):
    """The word embeddings of a model that pads the text before it embeds it: the output has the text's tokens alone.

    Args:
        table: the module that the model calls; weights are shared with it.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(1, 1, device="meta")
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.weight = table.padding_idx, table.weight
        self.embed_scale = getattr(table, "embed_scale", 1.0)
        self.site = LayerCall(table)
        self.axis: Axis = "input"

    def forward(self, passing: Tensor, length: int) -> Tensor:  # type: ignore[override]
        """What the table gave, of the text's ``length`` tokens."""
        return passing[:, :length]


@contextmanager
def showing(views: Iterable[View | EmbeddingView], lengths: dict[Axis, int]) -> Iterator[None]:
    """Inside the block every view runs when its site does; what an embedding's view gives out goes on."""

    def runner(view: View | EmbeddingView) -> Callable[[Any], Tensor | None]:
        def run(passing: Any) -> Tensor | None:
            length = lengths[view.axis]
            seen = view(passing, length)
            return torch.cat([seen, passing[:, length:]], 1) if isinstance(view, EmbeddingView) else None

        return run

    with ExitStack() as stack:
        for view in views:
            stack.enter_context(at_site(view.site, runner(view)))
        yield
