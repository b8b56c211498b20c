"""The model as a function from noise to state: hooks, the context of a forward pass, and where the state is read."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from types import TracebackType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.utils._pytree import tree_map


class ExampleError(ValueError):
    """A :class:`ValueError` that concerns one example of a batch.

    Args:
        message: contains "example N".
        example: N, its number in the batch.
    """

    def __init__(self, message: str, example: int) -> None:
        super().__init__(message)
        self.example = example

    def named(self, name: str) -> ValueError:
        """Return the error with the example's name in place of its number."""
        return ValueError(str(self).replace(f"example {self.example}", name, 1))


class StateRead(BaseException):
    """Raised by a hook to stop the model's forward once the state has been read."""


# called by torch.nn.MultiheadAttention without its fast path, and by torch.nn.LSTM, GRU and RNN
_ATTENTION = torch.nn.functional.multi_head_attention_forward
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


class ForwardMode(TorchFunctionMode):
    """Changes how torch functions run during the forward passes of an explained model, in this thread only.

    * The graph is recorded even if the forward itself switches gradients off (``torch.no_grad``).
    * torch's fast path for attention, which zeroes padded positions when gradients are off, is not used: any active
      mode disables it.
    * cuDNN's recurrent kernels, which have no backward pass in eval mode, run as in training, without dropout.
    * Recurrent kernels in half precision on a CPU run in single precision: torch has several, which round a single
      example differently from a batch.

    The mode costs some microseconds per operation, so it is left out if a first forward pass shows that it is not
    needed.

    Attributes:
        needed: whether the forward pass has used anything that the mode changes.
        refuses: whether inference mode, which cannot be undone, is an error.
    """

    needed = False

    def __init__(self, refuses: bool = True) -> None:
        super().__init__()
        self.refuses = refuses

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            self.needed = True
            return None
        if self.refuses and torch.is_inference_mode_enabled():
            refuse_inference_mode()
        if func is _ATTENTION:
            self.needed = True
        elif func in _RECURRENT:
            if args[0].is_cuda:
                self.needed = True
                args = _as_in_training(args)
            elif args[0].element_size() < 4:
                self.needed = True
                return _in_single_precision(func, args)
        return func(*args, **(kwargs or {}))


def _in_single_precision(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run a recurrent kernel of half precision tensors in single precision; only its result is rounded."""
    half = args[0].dtype
    return tree_map(
        lambda x: _cast(x, torch.float32, half),
        func(*tree_map(lambda x: _cast(x, half, torch.float32), args)),
    )


def _cast(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    """Convert ``value`` to another type if it is a tensor of type ``before``."""
    return value.to(after) if isinstance(value, Tensor) and value.dtype == before else value


def _as_in_training(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Change arguments of a recurrent kernel (..., dropout, training, ...) from eval mode to training, no dropout."""
    is_packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()  # data and batch sizes
    dropout = 6 if is_packed else 5
    return args if args[dropout + 1] else (*args[:dropout], 0.0, True, *args[dropout + 2 :])


def refuse_inference_mode() -> None:
    """Raise the error for a forward pass in inference mode, which has no gradient."""
    raise ValueError(
        "the model's forward runs under torch.inference_mode, in which nothing has a gradient; replace it by "
        "torch.no_grad there (which may stay), or leave it out"
    )


class RecordedOnce:
    """Refuses layers in activation checkpoints, which recompute them without hooks; create it before the forward."""

    def __init__(self) -> None:
        self._with_gradients, self._had_hooks = torch.is_grad_enabled(), _has_saving_hooks()

    def check(self, kind: str, module: nn.Module | None, is_replaced: bool = True) -> None:
        """Check a layer; called while it runs.

        Args:
            kind: "noise", "state" or the like.
            module: the layer.
            is_replaced: whether its output is replaced; layers that are only read may be recomputed.

        Raises:
            ValueError: it runs inside ``torch.utils.checkpoint``.
        """
        if not self._with_gradients or torch.is_inference_mode_enabled():
            return
        has_hooks = is_replaced and _has_saving_hooks() and not self._had_hooks
        if has_hooks or not torch.is_grad_enabled():
            raise ValueError(
                f"the {kind} layer {type(module).__name__} runs inside torch.utils.checkpoint (or an "
                "autograd.Function, or other hooks on saved tensors), which computes it again for the gradient, "
                "without the noise; switch that off, as by model.gradient_checkpointing_disable() or model.eval(), or "
                "choose a layer outside"
            )


def _has_saving_hooks() -> bool:
    """Return whether saved tensors go through hooks, as they do inside ``torch.utils.checkpoint``."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("there are hooks"):  # raises if there are hooks
            return False
    except RuntimeError:
        return True


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Enable gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def gradients_on() -> Iterator[None]:
    """Keep gradients on, even if the code inside switches them off with ``torch.no_grad()``.

    ``torch.inference_mode()`` cannot be undone: its tensors never carry a gradient (``is_inference()``).

    Examples::
        >>> x = torch.ones(2, requires_grad=True)
        >>> with gradients_on(), torch.no_grad():
        ...     y = 2 * x
        >>> y.requires_grad
        True
    """
    with torch.enable_grad(), ForwardMode(refuses=False):
        yield


def no_fastpath() -> contextlib.AbstractContextManager[Any]:
    """Switch off torch's fast path for attention, which zeroes padded positions when gradients are off.

    Any active mode disables it; ``torch.backends.mha`` would switch it off in all threads.
    """
    mode: contextlib.AbstractContextManager[Any] = BaseTorchFunctionMode()
    return mode


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Restrict a module's hook to this thread: other threads may run the same model at the same time."""
    owner = threading.get_ident()

    def hook_of_one_thread(*given: Any) -> Any:
        return hook(*given) if threading.get_ident() == owner else None

    if "torch._dynamo" in sys.modules:  # compiled models of other threads would compile it
        from torch._dynamo.decorators import skip

        skip(hook_of_one_thread)
    return hook_of_one_thread


def on_one_device(module: Any) -> Any:
    """Restrict a DataParallel to one device: its replicas run in other threads, without our hooks and modes."""
    if not isinstance(module, nn.DataParallel) or len(module.device_ids) < 2:
        return module
    alone = copy.copy(module)
    alone.device_ids = module.device_ids[:1]
    return alone


class _Uncompiled:
    """Counts the threads inside :func:`uncompiled`, and sets the stance of ``torch.compile`` while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # only held while the stance is set
        self._here = threading.local()
        self._threads = 0
        self._switch: Any = None

    @property
    def depth(self) -> int:
        """Number of nested contexts of this thread."""
        return int(getattr(self._here, "depth", 0))

    def enter(self) -> None:
        with self._lock:
            if not self._threads:
                switch: Any = torch.compiler.set_stance(_Stance("default"))
                stance = switch.stance.stance
                stance.before = switch.prev.stance
                vars(switch.stance).update({**vars(switch.prev), "stance": stance})  # keep its other settings
                self._switch = switch
            self._threads += 1
        self._here.depth = self.depth + 1

    def leave(self) -> None:
        self._here.depth = self.depth - 1
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._switch.__exit__(None, None, None)


_UNCOMPILED = _Uncompiled()


class _Stance(str):
    """A stance that is "force_eager" in threads inside :func:`uncompiled`, and unchanged in other threads."""

    before = "default"

    def __eq__(self, other: object) -> bool:
        return ("force_eager" if _UNCOMPILED.depth else self.before) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules eagerly in this thread: compiled code skips hooks that were registered after compilation."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and importing it takes a second
        yield
        return
    _UNCOMPILED.enter()
    try:
        yield
    finally:
        _UNCOMPILED.leave()


@contextlib.contextmanager
def left_early() -> Iterator[None]:
    """Catch :class:`StateRead`, with which a hook stops the forward pass."""
    try:
        yield
    except StateRead as stop:
        _offload_again(stop.__traceback__)


def _offload_again(traceback: TracebackType | None) -> None:
    """Let accelerate offload the weights of the modules whose forward was stopped.

    Its hooks load a module's weights before its forward and offload them after it, but not when it raises.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        # read no other frames: f_locals of left_early's frame would put the error into a reference cycle
        if frame.f_code.co_name == "new_forward":
            module = frame.f_locals.get("module")
            hook = getattr(module, "_hf_hook", None)
            if hook is not None:
                hook.post_forward(module, None)
        traceback = traceback.tb_next


def modules_behind(given: Any) -> list[nn.Module]:
    """List the modules of a forward function: a module itself, or those that a plain function refers to by name."""
    if not inspect.isfunction(given):
        return [given] if isinstance(given, nn.Module) else []
    try:
        named = inspect.getclosurevars(given)
    except ValueError:  # a variable of the enclosing function has no value yet
        return []
    return [
        value
        for value in (*named.nonlocals.values(), *named.globals.values())
        if isinstance(value, nn.Module)
    ]


def weight_of(table: nn.Embedding) -> Tensor:
    """Return an embedding's table, (entries, K), even if accelerate has offloaded it (``cpu_offload``)."""
    if not table.weight.is_meta:
        return table.weight.detach()
    with torch.no_grad():  # its forward loads the table; some layers multiply the rows
        looked_up: Tensor = table(torch.arange(table.num_embeddings))
    return looked_up / float(getattr(table, "embed_scale", 1.0))


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters, or that to which accelerate loads them (``cpu_offload``)."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # a sequence of hooks
    found = [at for at in (getattr(one, "execution_device", None) for one in hooks) if at is not None]
    return torch.device(found[0]) if found else device


Put = Callable[[Tensor], Any]


def first_tensor(output: Any) -> Any:
    """Return the first tensor in a module's output: transformers' layers return tensors, tuples or ``ModelOutput``.

    A ``PackedSequence`` is converted to (B, T, ...), padded with zeros.  An output without a tensor is returned
    unchanged.

    Examples::
        >>> first_tensor({"hidden": (torch.zeros(2, 3), None)}).shape
        torch.Size([2, 3])
    """
    return _find(output)[0]


def replace_first(output: Any, value: Tensor) -> Any:
    """Return a copy of the output with its first tensor replaced.

    Examples::
        >>> replace_first((torch.zeros(1), "rest"), torch.ones(1))
        (tensor([1.]), 'rest')
    """
    return _find(output)[1](value)


def is_packed(output: Any) -> bool:
    """Return whether the first tensor of an output is a PackedSequence."""
    while isinstance(output, (tuple, list)) and output and not isinstance(output, PackedSequence):
        output = output[0]
    return isinstance(output, PackedSequence)


def _find(output: Any) -> tuple[Any, Put]:
    """Return the first tensor, depth first, and a function that rebuilds the output with another tensor."""
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
    """Return a copy of a tuple, list or mapping with one entry replaced."""
    if isinstance(container, tuple):
        entries = (*container[:key], entry, *container[key + 1 :])
        return container._make(entries) if hasattr(container, "_make") else type(container)(entries)
    changed = copy.copy(container)
    changed[key] = entry
    return changed


def _packed_like(packed: PackedSequence, value: Tensor) -> PackedSequence:
    """Pack ``value``, (B, T, ...), like ``packed``."""
    count = len(packed.data)
    order = packed._replace(data=torch.arange(count, device=packed.data.device))
    places, _ = pad_packed_sequence(order, batch_first=True, padding_value=-1)  # (B, T)
    value, real = value[:, : places.shape[1]], places >= 0
    data = value.new_zeros(count, *value.shape[2:]).index_copy(0, places[real], value[real])
    return packed._replace(data=data)


@dataclass(frozen=True)
class Layout:
    """The position of the batch in the tensor at a site.

    Attributes:
        dim: dimension of the examples: 0, or 1 in XLNet, whose layers return (T, B, K).
        each: number of entries of each example along it: S for a text read as S sentences, with states (B * S, T, K).
        length: length of the longest packed sequence; None: nothing is packed.
    """

    dim: int = 0
    each: int = 1
    length: int | None = None

    def apart(self, value: Tensor) -> Tensor:
        """Move the batch first: (R, ...), or (R, S, ...) if an example has several entries."""
        if self == Layout():
            return value  # which may not be a tensor
        value = value.movedim(self.dim, 0)
        if self.each > 1:
            value = value.unflatten(0, (-1, self.each))
        if self.length is not None:  # all sequences of these rows may be shorter
            value = functional.pad(value, [0, 0] * (value.ndim - 2) + [0, self.length - value.shape[1]])
        return value

    def joined(self, value: Tensor) -> Tensor:
        """Undo :meth:`apart`, except for packing (see :func:`replace_first`)."""
        return (value.flatten(0, 1) if self.each > 1 else value).movedim(0, self.dim)


def is_plain(value: Any, rows: int) -> bool:
    """Return whether only the first dimension can be the batch (or no dimension, which is an error elsewhere)."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    return len(value) == rows and not (rows > 1 and value.ndim > 2 and value.shape[1] == rows)


def layout_of(value: Tensor, rows: int, other: Any, other_rows: int) -> Layout | None:
    """Find the layout of ``value`` from the dimension that changes with the number of examples; None: unknown.

    Args:
        value: value for ``rows`` examples.
        other: value for ``other_rows`` examples, all equal to the first of the others.

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


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer that runs several times in a forward pass (a shared embedding, ALBERT's single block).

    Attributes:
        layer: the module.
        call: number of the run, from 0; None: the only one.
        side: its output, or its input (first argument), where for example attention heads are still separate.
    """

    layer: nn.Module
    call: int | None = 0
    side: Literal["output", "input"] = "output"


Site = nn.Module | LayerCall
"""Where noise enters or the state is read; a bare module must run exactly once in a forward pass."""


def module_of(site: Site | None) -> nn.Module | None:
    """Return the module of a site."""
    return site.layer if isinstance(site, LayerCall) else site


_ON_FAST_PATHS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def note_fast_paths(models: Iterable[nn.Module]) -> None:
    """Register the parts of ``nn.TransformerEncoderLayer``, which loses its fast path in all threads if one has a hook.

    :func:`at_site` uses a global hook for them, which that layer does not check.
    """
    for model in models:
        for layer in model.modules():
            if isinstance(layer, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
                _ON_FAST_PATHS.update(layer.modules())


@contextlib.contextmanager
def at_site(site: Site | None, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Call ``hook`` with the value at ``site`` in this thread; what it returns, unless None, replaces the value."""
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

    # with hooks of others the fast path is off anyway, and ours run after them
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
    """Return names of a forward's arguments in order, then keyword arguments that its signature does not name."""
    named = list(inspect.signature(module.forward).parameters)
    return [*named, *(name for name in kwargs if name not in named)]


@dataclass
class Recorder:
    """Records the value at a site, and the number of runs."""

    name: str
    site: Site | None
    fired: int = 0
    value: Any = None
    packed: bool = False

    def __call__(self, passing: Any) -> None:
        self.fired += 1
        value = first_tensor(passing)
        self.value = value.clone() if isinstance(value, Tensor) else value  # it may be changed in place later
        self.packed |= is_packed(passing)

    def take(self, rows: int, layout: Layout) -> Tensor:
        """Return the value with the batch first, if the site ran exactly once."""
        return checked(layout.apart(self.once()), rows, f"output of the {self.name}")

    def once(self) -> Any:
        """Return the value, if the site ran exactly once."""
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
    """Return ``value`` if it is a floating point tensor whose first dimension is the batch; otherwise raise."""
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


FULL = 0.8  # smallest length in a group of examples of about one length, as a share of the longest


def lengths_of(mask: Tensor) -> Tensor | None:
    """Return the number of tokens of each example before its padding, (B,); None if padding is not only at the end.

    Args:
        mask: true where a token is real, (B, T).

    Examples::
        >>> lengths_of(torch.tensor([[True, True, False], [True, True, True]])).tolist()
        [2, 3]
        >>> lengths_of(torch.tensor([[False, True]])) is None
        True
    """
    lengths = mask.sum(1)
    first = torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1)
    return lengths if torch.equal(first, mask) else None


def alike(
    lengths: Sequence[int], full: float = FULL, size: float = math.inf, tokens: float = math.inf
) -> list[list[int]]:
    """Group examples of about one length, the longest first; return their indices.

    Args:
        lengths: of the examples.
        full: smallest length in a group, as a share of the longest; 1: only equal lengths.
        size, tokens: maximum number of examples, and of tokens including padding, in a group.

    Examples::
        >>> alike([3, 10, 9, 2]), alike([3, 10, 9, 2], tokens=12)
        ([[1, 2], [0], [3]], [[1], [2], [0], [3]])
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        together = found[-1] if found else []
        longest = lengths[together[0]] if found else 0
        fits = lengths[index] >= full * longest and len(together) < size
        if not found or not fits or (len(together) + 1) * longest > tokens:
            found.append([])
        found[-1].append(index)
    return found


def turned(values: Tensor, starts: Tensor) -> Tensor:
    """Turn each row of (R, T, ...) around, so that it begins at its own position; negative ``starts`` undo it.

    Examples::
        >>> turned(torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([1, 0])).tolist()
        [[5, 6, 0], [7, 8, 9]]
    """
    places = torch.arange(values.shape[1], device=values.device) + starts.to(values.device).unsqueeze(1)
    index = (places % values.shape[1]).reshape(*places.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand_as(values))


Selector = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
Forward = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Runs the model on input rows; the second argument, (R,), has the example of each row."""


class SelectorError(AssertionError, ValueError):
    """A selector that does not fit the state; also an AssertionError, as in Captum."""


def select(state: Tensor, selector: Selector | None) -> Tensor:
    """Select a part of a state, (B, ...): ``selector`` indexes the dimensions after the batch, or is called.

    Examples::
        >>> select(torch.zeros(2, 5, 7), (slice(1, 3), 0)).shape
        torch.Size([2, 2])
    """
    if selector is None:
        return state
    if callable(selector):
        return selector(state)
    index = selector if isinstance(selector, tuple) else (selector,)
    try:
        return state[(slice(None), *index)]
    except IndexError as error:
        raise SelectorError(
            f"neuron_selector {selector!r} does not index a state of shape {tuple(state.shape)} (after the batch "
            "dimension); give an int, a tuple of ints and slices, or a callable"
        ) from error


@dataclass
class NoisyModel:
    """The model as a function from the site of the noise to the state: ``s = Phi(x)``.

    Args:
        forward: runs the model on rows of inputs.
        inputs: the model's own inputs, each (B, ...).
        noise_layer: the site that receives the noise; None: the inputs themselves.
        state_layer: the site of the state; None: the model's output.
        selector: which part of the state to keep.
        max_rows: maximum rows in one forward pass.
        starts: number of positions of padding before each row's tokens, (B,).  ``origin``, points and states with
            positions then begin at the first token and end with the padding, because noise draws belong to positions.
            None: they are as the model has them.

    ``read()`` or ``clean()`` must run before ``perturb()``.
    """

    forward: Forward
    inputs: tuple[Tensor, ...]
    noise_layer: Site | None = None
    state_layer: Site | None = None
    selector: Selector | None = None
    max_rows: int | None = None
    starts: Tensor | None = None
    origin: tuple[Tensor, ...] = field(default=(), init=False)
    _layouts: dict[Site, Layout] = field(default_factory=dict, init=False, repr=False)
    _needs_mode: bool = field(default=True, init=False, repr=False)

    @property
    def batch(self) -> int:
        return len(self.inputs[0])

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[rows.to(x.device)] for x in self.inputs)

    def at(self, state_layer: Site | None) -> NoisyModel:
        """Return the same model and noise with the state at another site."""
        other = replace(self, state_layer=state_layer)
        other.origin = self.origin
        return other.learned_from(self)

    def shorter(self, length: int) -> NoisyModel:
        """Return the same model and noise on the first positions of each row, dimension 1 of inputs and ``origin``."""
        other = replace(self, inputs=tuple(x[:, :length] for x in self.inputs))
        other.origin = tuple(x[:, :length] for x in self.origin)
        return other.learned_from(self)

    def from_first_tokens(self, starts: Tensor) -> NoisyModel:
        """Return the same model and noise with these ``starts``."""
        other = replace(self, starts=starts).learned_from(self)
        other.origin = tuple(turned(x, starts) for x in self.origin)
        return other

    def learned_from(self, other: NoisyModel) -> NoisyModel:
        """Copy the properties of the forward pass that the other model has detected; return this one."""
        self._layouts, self._needs_mode = other._layouts, other._needs_mode
        return self

    def clean(self) -> tuple[Tensor, Tensor]:
        """Return the state without noise, before and after selection, each (B, ...); set ``origin``."""
        [whole] = self.read([self.state_layer])
        return whole, self.selected(whole)

    def selected(self, whole: Tensor) -> Tensor:
        """Return the part of a clean state that the selector keeps."""
        return checked(select(whole, self.selector), self.batch, "selected state")

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, sites: Sequence[Site | None]) -> list[Tensor]:
        """Run the whole model once without noise; return the value at each site, (B, ...).

        Set ``origin`` to the values that noise is added to, each (B, ...).
        """
        chunks = torch.arange(self.batch).split(self.max_rows or self.batch)
        outputs, recorders = zip(*(self._recorded(sites, rows) for rows in chunks))
        self._find_layouts(recorders, sites, chunks[0])
        # the model may have changed its inputs in place
        origins = [
            (self._taken(noise_at, rows),) if self.noise_layer else self._rows(rows)
            for (noise_at, *_), rows in zip(recorders, chunks)
        ]
        states = [
            [
                (self._taken(at, rows) if at.site else checked(output, len(rows), "model's output")).detach()
                for at in states_at
            ]
            for output, (_, *states_at), rows in zip(outputs, recorders, chunks)
        ]
        self.origin = tuple(torch.cat(parts) for parts in zip(*origins))
        return [torch.cat(parts) for parts in zip(*states)]

    def _recorded(self, sites: Sequence[Site | None], rows: Tensor) -> tuple[Any, list[Recorder]]:
        """Run the model; return its output if that is a state, and recorders of the noise layer and each site."""
        recorders = [Recorder("noise layer", self.noise_layer)]
        recorders += [Recorder("state layer", site) for site in sites]
        inputs = self._rows(rows)
        note_fast_paths(modules_behind(getattr(self.forward, "module", None)))
        with contextlib.ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(at_site(recorder.site, recorder))
            stack.enter_context(uncompiled())
            mode = stack.enter_context(ForwardMode())
            output = self._in_this_thread()(inputs, rows)
        self._needs_mode = mode.needed
        return output if None in sites else None, recorders

    def _in_this_thread(self) -> Forward:
        """Return the forward without DataParallel's threads, in which hooks and modes have no effect."""
        forward: Any = self.forward
        if not is_dataclass(forward) or not hasattr(forward, "module"):
            return self.forward
        alone: Forward = replace(cast(Any, forward), module=on_one_device(forward.module))
        return alone

    def _taken(self, recorder: Recorder, rows: Tensor) -> Tensor:
        return recorder.take(len(rows), self._layout(recorder.site))

    def _find_layouts(
        self, recorders: Sequence[list[Recorder]], sites: Sequence[Site | None], rows: Tensor
    ) -> None:
        """Find the batch dimension at each site; if the shapes are ambiguous, run the model again on one example."""
        for chunks in zip(*recorders):
            if chunks[0].packed:
                self._layouts[chunks[0].site] = Layout(length=max(at.once().shape[1] for at in chunks))
        unclear = [
            index
            for index, at in enumerate(recorders[0])
            if at.site and not at.packed and not is_plain(at.once(), len(rows))
        ]
        if not unclear:
            return
        fewer = rows.new_zeros(1 if len(rows) > 1 else 2)
        try:
            _, others = self._recorded(sites, fewer)
        except Exception:  # any exception of a model that needs a certain number of examples
            return
        for index in unclear:
            at, other = recorders[0][index], others[index]
            layout = layout_of(at.value, len(rows), other.value, len(fewer))
            if at.site and layout:
                self._layouts[at.site] = layout

    def perturb(self, points: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Return the state at ``points`` (each (R, ...); row r is of example ``rows[r]``), with its graph, (R, ...).

        The forward pass stops as soon as the state is read.
        """
        [state] = self.perturbed(points, rows, [self.state_layer])
        return select(state, self.selector)

    def perturbed(
        self, points: tuple[Tensor, ...], rows: Tensor, sites: Sequence[Site | None]
    ) -> list[Tensor]:
        """Like :meth:`perturb`, for several sites in one forward pass and without selection."""
        if self.starts is not None:
            points = tuple(turned(point, -self.starts[rows]) for point in points)
        copies = tuple(point.clone() for point in points)  # leaves must not be changed in place by the model
        inputs = self._rows(rows) if self.noise_layer else copies
        read: dict[int, Any] = {}
        written = 0
        recorded = RecordedOnce()

        def leave_if_done() -> None:
            if len(read) == len(sites) and (written or not self.noise_layer):
                raise StateRead

        def write(passing: Any) -> Any:
            nonlocal written
            written += 1
            leave_if_done()  # the state is read before the noise enters
            recorded.check("noise", module_of(self.noise_layer))
            return replace_first(passing, self._layout(self.noise_layer).joined(copies[0]))

        def reader(index: int) -> Callable[[Any], None]:
            def hook(passing: Any) -> None:
                recorded.check("state", module_of(sites[index]), is_replaced=False)
                value = first_tensor(passing)
                read[index] = value.clone() if len(sites) > 1 else value  # it may be changed in place later
                leave_if_done()

            return hook

        with contextlib.ExitStack() as stack:
            stack.enter_context(at_site(self.noise_layer, write))
            for index, site in enumerate(sites):
                stack.enter_context(at_site(site, reader(index)))
            for context in (uncompiled(), left_early()):
                stack.enter_context(context)
            if self._needs_mode:
                stack.enter_context(ForwardMode())
            watched = self._needs_mode or any(site is not None for site in (self.noise_layer, *sites))
            forward = self._in_this_thread() if watched else self.forward
            output = forward(inputs, rows)
            read.update({index: output for index, site in enumerate(sites) if site is None})
        if (self.noise_layer and written != 1) or len(read) < len(sites):
            self._refuse_unseen(written, [site for index, site in enumerate(sites) if index not in read])
        states = [self._layout(site).apart(read[index]) for index, site in enumerate(sites)]
        return [self.turned_state(checked(s, len(rows), "state of noisy inputs"), rows) for s in states]

    def turned_state(self, state: Tensor, rows: Tensor) -> Tensor:
        """Return a state with the positions of the tokens, (R, T, ...), from each row's start on; others unchanged."""
        if self.starts is None or state.ndim < 3 or state.shape[1] != self.origin[0].shape[1]:
            return state
        return turned(state, self.starts[rows])

    def _layout(self, site: Site | None) -> Layout:
        return Layout() if site is None else self._layouts.get(site, Layout())

    def _refuse_unseen(self, written: int, unread: Sequence[Site | None]) -> None:
        """Raise the error for a layer that ran without noise, but not with it."""
        if self.noise_layer and written != 1:
            name, module, times = "noise", module_of(self.noise_layer), written
        else:
            name, module, times = "state", module_of(unread[0]), 0
        raise ValueError(
            f"the {name} layer {type(module).__name__} ran once without noise and {times} times with it; give "
            "a layer that runs in every forward, and a model that is not compiled, scripted or exported (those may run "
            "no hooks)"
        )


class RunningStd:
    """Mean and standard deviation of states over a corpus, one pass, constant memory (Welford; Chan et al., 1979).

    Examples::
        >>> running = RunningStd()
        >>> running.update(torch.tensor([[1.0], [3.0]]))
        >>> running.update(torch.tensor([[5.0]]))
        >>> running.std()
        tensor([1.6330])
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Add samples.

        Args:
            values: (N, ...), one sample per row; with ``mask``, (B, T, ...).
            mask: (B, T), true for positions that are samples.
        """
        if mask is not None:
            values = values[mask.to(values.device).bool()]
        if not len(values):
            return
        values = values.detach()
        values = (values.cpu() if values.device.type == "mps" else values).to(torch.float64)  # MPS has none
        if not values.isfinite().all():
            raise ValueError("a state has NaN or infinite values; state_std over it would be meaningless")
        mean, squares = values.mean(0), values.var(0, unbiased=False) * len(values)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = len(values), mean, squares
            return
        if mean.shape != self._mean.shape:
            raise ValueError(
                f"states of shape {tuple(mean.shape)} after states of shape {tuple(self._mean.shape)}; for texts of "
                "different lengths give a mask, so that every position is a sample"
            )
        total = self.count + len(values)
        gap = mean - self._mean
        self._mean = self._mean + gap * (len(values) / total)
        self._squares = self._squares + squares + gap.square() * (self.count * len(values) / total)
        self.count = total

    def of_all_elements(self) -> float | None:
        """Return the standard deviation over all elements of all samples, to five digits; None if it is 0."""
        if self._mean is None or self._squares is None:
            return None
        variance = self._squares.mean() / self.count + self._mean.var(unbiased=False)
        return float(f"{float(variance.sqrt()):.5g}") or None

    def mean(self) -> Tensor:
        """Return the mean of the samples, float32."""
        return self._known(self._mean).float()

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the population standard deviation of the samples."""
        return self._known(self._squares).div(max(self.count, 1)).sqrt().to(dtype)

    @staticmethod
    def _known(value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("no state was seen yet; call update() with at least one sample first")
        return value
