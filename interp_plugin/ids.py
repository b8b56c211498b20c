"""A sentence given as token ids: the embedding that sees them, and ``Phi`` as a function of its output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from interp_plugin.state import (
    LayerCall,
    RecordedOnce,
    Site,
    at_site,
    first_tensor,
    in_this_thread,
    module_of,
)

TokenIds = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]]
"""One sentence, (T,) or (1, T): whole numbers in a tensor, an array or a list."""


def as_ids(x: Any) -> Tensor | None:
    """``x`` as a tensor of token ids, int64, of any shape; None where it is something else.

    Examples::
        >>> as_ids([101, 7592, 102])
        tensor([ 101, 7592,  102])
        >>> as_ids(torch.ones(3, 4)) is None
        True
    """
    if isinstance(x, (list, tuple, np.ndarray)) and len(x):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):  # ragged, or no numbers
            return None
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return None
    return x.detach().long()


def run_on_ids(Phi: Callable[[Any], Any], x: TokenIds) -> Any:
    """The state of one sentence of token ids.

    ``Phi`` is given the ids as they are; if it raises an error, as a tensor of shape (1, T), which is what
    the models of transformers take; and a tensor on the device of its model, if that is another.

    Raises:
        ValueError: more than one sentence.
        TypeError: it takes neither form.
    """
    return _run(Phi, x)[1]


def embedded(
    Phi: Callable[[Any], Any], x: TokenIds, embedding: Site | None = None
) -> tuple[Tensor, OfEmbeddings]:
    """The embeddings of one sentence of token ids, (T, K), and ``Phi`` as a function of them.

    Args:
        Phi: maps token ids to a state.
        x: the ids.
        embedding: the module whose output bears the noise, or one of its runs; None: ``get_input_embeddings()``
            of the model that runs in ``Phi``, or else the one ``nn.Embedding`` that sees the ids.

    Raises:
        TypeError: ``embedding`` is no module, or ``Phi`` takes no ids.
        ValueError: no embedding sees the ids, or several do.
    """
    if (
        not isinstance(embedding, (nn.Module, LayerCall, type(None)))
        or getattr(embedding, "side", "") == "input"
    ):
        raise TypeError(f"`embedding` is {embedding!r}: give the module whose output bears the noise.")
    with torch.no_grad():
        ids, _, watched = _run(Phi, x, module_of(embedding))
    site = watched.site(embedding)
    value, count = first_tensor(watched.outputs[site.layer][site.call or 0]), watched.row.shape[1]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:-1].numel() != count:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the embedding {watched.name(site.layer)} gives {shape} for {count} token ids: its output must be one row "
            "for each of them."
        )
    return value.detach().clone().reshape(count, -1), OfEmbeddings(Phi, ids, site)


def _run(
    Phi: Callable[[Any], Any], x: TokenIds, embedding: nn.Module | None = None
) -> tuple[Any, Any, _Watched]:
    """What ``Phi`` was given, what it returned, and the modules that ran in it."""
    row = _row(x)
    forms: list[Any] = [x] if isinstance(x, Tensor) and x.shape == row.shape else [x, row]
    errors: list[Exception] = []
    for form in forms:
        for _ in range(2):  # the second time on the model's device
            watched = _Watched(row, embedding)
            try:
                with watched.running():
                    return form, Phi(form), watched
            except Exception as error:
                errors.append(error)
            device = watched.device()
            if not isinstance(form, Tensor) or device in (None, form.device):
                break
            form = form.to(device)
    if len(forms) == 1:
        raise errors[-1]
    raise TypeError(
        f"`Phi` takes the token ids neither as they are, a {type(x).__name__} ({errors[0]}), nor as a tensor of shape "
        f"{tuple(row.shape)} ({errors[-1]}): give them as it takes them."
    ) from errors[-1]


@dataclass(frozen=True)
class OfEmbeddings:
    """``Phi`` of a sentence of token ids as a function of what its embedding gives for them.

    Args:
        Phi: maps token ids to a state.
        ids: in the form that ``Phi`` takes.
        site: the run of the embedding whose output is replaced.
    """

    Phi: Callable[[Any], Any]
    ids: Any
    site: LayerCall

    def __call__(self, x: Tensor) -> Any:
        """The state where the embedding's output is ``x``, (T, K)."""
        fired, recorded = 0, RecordedOnce()

        def replaced(output: Any) -> Any:
            nonlocal fired
            fired += 1
            recorded.check("embedding", self.site.layer)
            value = x.to(first_tensor(output)).reshape(first_tensor(output).shape)
            return type(output)([value, *output[1:]]) if isinstance(output, (tuple, list)) else value

        with at_site(self.site, replaced):
            state = self.Phi(self.ids)
        if fired != 1:
            raise ValueError(
                f"the embedding {type(self.site.layer).__name__} ran when `Phi` was looked at, and does not now: `Phi` "
                "must do the same in each call (a compiled model may skip hooks: give the model that was compiled)."
            )
        return state

    def to(self, device: torch.device | str) -> OfEmbeddings:
        """The same with the ids on another device."""
        ids = self.ids.to(device) if isinstance(self.ids, Tensor) else self.ids
        return OfEmbeddings(self.Phi, ids, self.site)


@dataclass
class _Watched:
    """The modules that run, in the order in which they start, and which of them see the ids."""

    row: Tensor  # (1, T)
    embedding: nn.Module | None = None  # that the caller names
    started: list[nn.Module] = field(default_factory=list)
    runs: dict[nn.Module, int] = field(default_factory=dict)
    seen: dict[nn.Module, list[int]] = field(default_factory=dict)  # the runs that are given the ids
    outputs: dict[nn.Module, dict[int, Any]] = field(default_factory=dict)  # of those, and of the embedding

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch all modules that run in this thread."""

        def before(module: nn.Module, args: Any) -> None:
            self.started.append(module)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            run = self.runs.get(module, 0)
            self.runs[module] = run + 1
            sees = bool(args) and self._is_row(args[0])
            if sees:
                self.seen.setdefault(module, []).append(run)
            if sees or module is self.embedding:
                self.outputs.setdefault(module, {})[run] = output

        with contextlib.ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(in_this_thread(before)).remove)
            stack.callback(register_module_forward_hook(in_this_thread(after)).remove)
            yield

    def _is_row(self, given: Any) -> bool:
        ids = given if isinstance(given, Tensor) else None
        return (
            ids is not None
            and ids.numel() == self.row.numel()
            and as_ids(ids) is not None
            and bool(torch.equal(ids.reshape(1, -1).long().cpu(), self.row.cpu()))
        )

    def device(self) -> torch.device | None:
        """Of the parameters of the first module that has some."""
        return next((p.device for module in self.started for p in module.parameters()), None)

    def site(self, embedding: Site | None) -> LayerCall:
        """The run of the embedding that sees the ids."""
        module = self._embedding() if embedding is None else module_of(embedding)
        assert module is not None
        runs = self.runs.get(module, 0)
        calls = (
            [embedding.call or 0]
            if isinstance(embedding, LayerCall)
            else self.seen.get(module, list(range(runs)))
        )
        if not calls or calls[0] >= runs:
            raise ValueError(
                f"the embedding {type(module).__name__} runs {runs} times in `Phi`: give a module of the model that "
                "`Phi` calls, and of its runs one that there is."
            )
        if len(calls) > 1:
            raise ValueError(
                f"the embedding {self.name(module)} runs {len(calls)} times in `Phi`: say which run bears the noise, "
                "as in embedding=LayerCall(module, call=0)."
            )
        return LayerCall(module, calls[0])

    def _embedding(self) -> nn.Module:
        """The one that models name, or else the only one that sees the ids."""
        named = [emb for emb in map(_input_embeddings, self.started) if emb in self.seen]
        found = dict.fromkeys(named) or [m for m in self.seen if isinstance(m, nn.Embedding)]
        if len(found) == 1:
            return next(iter(found))
        if not found:
            raise ValueError(
                "no nn.Embedding that runs in `Phi` is given the token ids (a compiled model may hide it): name the "
                "module whose output bears the noise with `embedding`, or give `x` as embeddings, (words, K)."
            )
        raise ValueError(
            f"{len(found)} embeddings in `Phi` are given the token ids, {', '.join(map(self.name, found))}: say with "
            "`embedding` which of these modules bears the noise."
        )

    def name(self, module: nn.Module) -> str:
        """Dotted name in the outermost module that holds it."""
        for outer in self.started:
            for name, inner in outer.named_modules():
                if inner is module and name:
                    return f"{type(outer).__name__}.{name}"
        return f"{type(module).__name__}({', '.join(str(n) for p in module.parameters() for n in p.shape)})"


def _row(x: TokenIds) -> Tensor:
    """The ids as (1, T)."""
    ids = as_ids(x)
    if ids is None:
        raise TypeError(f"a {type(x).__name__} is given where token ids are needed: give whole numbers.")
    if ids.ndim not in (1, 2) or not ids.numel() or (ids.ndim == 2 and len(ids) != 1):
        raise ValueError(
            f"token ids of shape {tuple(ids.shape)} are given: give one sentence, (T,) or (1, T)."
        )
    return ids.reshape(1, -1)


def _input_embeddings(module: nn.Module) -> nn.Module | None:
    """What a model of transformers, or one that follows it, calls its input embeddings."""
    find = getattr(module, "get_input_embeddings", None)
    if not callable(find):
        return None
    with contextlib.suppress(NotImplementedError, AttributeError):
        found = find()
        return found if isinstance(found, nn.Module) else None
    return None
