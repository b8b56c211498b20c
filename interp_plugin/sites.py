"""A place in the model, what passes there, and how to replace it."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from interp_plugin.forwards import in_this_thread, refuse_inference_mode
from interp_plugin.outputs import Layout, first_tensor, is_packed


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer that runs several times in a forward (a shared embedding, ALBERT's one block).

    Attributes:
        layer: the module.
        call: which of its runs, from 0; None: its only one.
        side: its output, or what it is given (first argument): attention heads are last seen apart there.
    """

    layer: nn.Module
    call: int | None = 0
    side: Literal["output", "input"] = "output"


Site = nn.Module | LayerCall
"""Where noise enters or the state is read; a bare module must run exactly once in a forward."""


def module_of(site: Site | None) -> nn.Module | None:
    """The module of a site."""
    return site.layer if isinstance(site, LayerCall) else site


_ON_FAST_PATHS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def note_fast_paths(models: Iterable[nn.Module]) -> None:
    """Remember the parts of ``nn.TransformerEncoderLayer``, whose fast path is off in all threads while one has a hook.

    :func:`at_site` hooks them by a hook of all modules, which that layer does not ask for.
    """
    for model in models:
        for layer in model.modules():
            if isinstance(layer, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
                _ON_FAST_PATHS.update(layer.modules())


@contextlib.contextmanager
def at_site(site: Site | None, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Let ``hook`` see, and replace if it returns something, what passes at ``site`` in this thread."""
    if site is None:
        yield
        return
    where = site if isinstance(site, LayerCall) else LayerCall(site, None)
    runs = 0

    def watch(passing: Any) -> Any:
        nonlocal runs
        runs += 1
        return hook(passing) if where.call is None or runs - 1 == where.call else None

    def watch_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            given = watch(args)
            return None if given is None else (given, kwargs)
        names = sorted(kwargs, key=_order_of(module, kwargs).index)  # called with keyword arguments alone
        given = watch(tuple(kwargs[name] for name in names))
        return None if given is None else ((), dict(zip(names, given)))

    def watch_output(module: nn.Module, args: Any, output: Any) -> Any:
        return watch(output) if module is where.layer or not for_all else None

    # where others' hooks are there already the fast path is off, and ours come after them
    for_all = where.layer in _ON_FAST_PATHS and not where.layer._forward_hooks
    if where.side == "input":
        handle = where.layer.register_forward_pre_hook(in_this_thread(watch_input), with_kwargs=True)
    elif for_all:
        handle = register_module_forward_hook(in_this_thread(watch_output))
    else:
        handle = where.layer.register_forward_hook(in_this_thread(watch_output))
    try:
        yield
    finally:
        handle.remove()


def _order_of(module: nn.Module, kwargs: dict[str, Any]) -> list[str]:
    """Names of a forward's arguments, as it is written, and after them those that it does not name."""
    named = list(inspect.signature(module.forward).parameters)
    return [*named, *(name for name in kwargs if name not in named)]


@dataclass
class Recorder:
    """Keeps what passes at a site and counts how often."""

    name: str
    site: Site | None
    fired: int = 0
    value: Any = None
    packed: bool = False

    def __call__(self, passing: Any) -> None:
        self.fired += 1
        value = first_tensor(passing)
        self.value = value.clone() if isinstance(value, Tensor) else value  # work in place may follow
        self.packed |= is_packed(passing)

    def take(self, rows: int, layout: Layout) -> Tensor:
        """The value, if it passed exactly once with the batch dimension first, or laid out so."""
        return checked(layout.apart(self.once()), rows, f"output of the {self.name}")

    def once(self) -> Any:
        """The value, if it passed exactly once."""
        if not self.fired and isinstance(self.site, LayerCall) and self.site.call is not None:
            raise ValueError(
                f"the {self.name} {type(self.site.layer).__name__} has no run {self.site.call} in one forward (counted "
                "from 0); leave that layer out, or give one that runs"
            )
        if self.fired != 1:
            raise ValueError(
                f"the {self.name} fired {self.fired} times in one forward, and exactly once is needed; pick a module "
                "that runs once (of a module used several times, its container or a LayerCall; scripted and exported "
                "models run no hooks, and neither do threads that the forward starts, as DataParallel's)"
            )
        return self.value


def checked(value: Any, rows: int, name: str) -> Tensor:
    """``value`` if it is a floating tensor whose first dimension is the batch."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the {name} is a {type(value).__name__}, and a tensor (or a tuple or mapping with one in it) is needed"
        )
    if value.is_inference():
        refuse_inference_mode()
    if not value.is_floating_point():
        raise TypeError(
            f"the {name} is of type {value.dtype}, and floating point numbers are needed to measure distortion"
        )
    if value.ndim == 0 or len(value) != rows:
        raise ValueError(
            f"the {name} has shape {tuple(value.shape)} for {rows} examples; its first dimension must be the batch (of "
            "a layer any dimension, or neighbouring entries along it for each example); choose another layer, or let "
            "the model move the batch first"
        )
    return value
