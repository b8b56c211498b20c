"""Interpreter, the interface of Guan et al.'s reference code: one sentence, any callable ``Phi``, one sigma a word."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from tqdm.auto import tqdm

from interp_plugin.attribution import InformationLoss
from interp_plugin.method.objective import distortion, loss, state_weight
from interp_plugin.method.perturbation import (
    LayerCall,
    RecordedOnce,
    Recorder,
    RunningStd,
    Site,
    at_site,
    first_tensor,
    gradients_on,
    in_this_thread,
    module_of,
    replace_first,
)
from interp_plugin.method.problem import warn_of_training
from interp_plugin.method.solver import NoiseFit
from interp_plugin.report.figures import draw_words_heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TokenIds = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]]
"""One sentence, (T,) or (1, T): whole numbers in a tensor, an array or a list."""


def as_ids(x: Any) -> Tensor | None:
    """Convert ``x`` to a tensor of token ids, int64, of any shape; return None if it holds no integers.

    Examples::
        >>> as_ids([101, 7592, 102])
        tensor([ 101, 7592,  102])
        >>> as_ids(torch.ones(3, 4)) is None
        True
    """
    if isinstance(x, (list, tuple, np.ndarray)) and len(x):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):  # ragged or not numeric
            return None
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        return None
    return x.detach().long()


def embedded(
    Phi: Callable[[Any], Any], x: TokenIds, embedding: Site | None = None
) -> tuple[Tensor, OfEmbeddings]:
    """Return the embeddings of one sentence of token ids, (T, K), and ``Phi`` as a function of them.

    Args:
        Phi: maps token ids to a state.
        x: the ids.
        embedding: the module whose output receives the noise, or one of its calls; None: ``get_input_embeddings()``
            of the model that runs in ``Phi``, or else the only ``nn.Embedding`` that receives the ids.

    Raises:
        TypeError: ``embedding`` is not a module, or ``Phi`` does not accept ids.
        ValueError: no embedding receives the ids, or several do.
    """
    if not isinstance(embedding, nn.Module | LayerCall | None) or getattr(embedding, "side", "") == "input":
        raise TypeError(f"`embedding` is {embedding!r}: give the module whose output receives the noise.")
    with torch.no_grad():
        ids, _, started = run_on_ids(Phi, x)
        site = _site(started, embedding)
        recorder = Recorder("embedding", site)
        with at_site(site, recorder):
            Phi(ids)
    value, count = recorder.value, _row(x).shape[1]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:-1].numel() != count:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the embedding {_name(site.layer, started)} gives {shape} for {count} token ids: its output must be one "
            "row for each of them."
        )
    return value.detach().reshape(count, -1), OfEmbeddings(Phi, ids, site)


Started = list[tuple[nn.Module, bool]]
"""Modules in the order in which they start, and whether their input is the token ids."""


def run_on_ids(Phi: Callable[[Any], Any], x: TokenIds) -> tuple[Any, Any, Started]:
    """Run ``Phi`` on one sentence of token ids; return its input, the state, and the modules that ran.

    ``Phi`` gets the ids unchanged; if that raises an error, as a tensor of shape (1, T), as the models of transformers
    expect.  A tensor that fails is tried again on the device of the model.

    Raises:
        ValueError: more than one sentence.
        TypeError: ``Phi`` accepts neither form.
    """
    row = _row(x)
    forms: list[Any] = [x] if isinstance(x, Tensor) and x.shape == row.shape else [x, row]
    errors: list[Exception] = []
    for form in forms:
        for _ in range(2):  # the second attempt is on the model's device
            with _watching(row) as started:
                try:
                    return form, Phi(form), started
                except Exception as error:
                    errors.append(error)
            device = next((p.device for module, _ in started for p in module.parameters()), None)
            if not isinstance(form, Tensor) or device in (None, form.device):
                break
            form = form.to(device)
    if len(forms) == 1:
        raise errors[-1]
    raise TypeError(
        f"`Phi` accepts the token ids neither unchanged, as a {type(x).__name__} ({errors[0]}), nor as a tensor of "
        f"shape {tuple(row.shape)} ({errors[-1]}): give them in the form that it accepts."
    ) from errors[-1]


@dataclass(frozen=True)
class OfEmbeddings:
    """``Phi`` of a sentence of token ids, as a function of the embeddings.

    Args:
        Phi: maps token ids to a state.
        ids: the ids, in the form that ``Phi`` accepts.
        site: the call of the embedding module whose output is replaced.
    """

    Phi: Callable[[Any], Any]
    ids: Any
    site: LayerCall

    def __call__(self, x: Tensor) -> Any:
        """Return the state when the embedding's output is ``x``, (T, K)."""
        fired, recorded = 0, RecordedOnce()

        def replaced(output: Any) -> Any:
            nonlocal fired
            fired += 1
            recorded.check("embedding", self.site.layer)
            own = first_tensor(output)
            return replace_first(output, x.to(own).reshape(own.shape))

        with at_site(self.site, replaced):
            state = self.Phi(self.ids)
        if fired != 1:
            raise ValueError(
                f"the embedding {type(self.site.layer).__name__} ran in an earlier call of `Phi` and does not now: "
                "`Phi` must run the same modules in each call (a compiled model may skip hooks: give the original one)."
            )
        return state

    def to(self, device: torch.device | str) -> OfEmbeddings:
        """Return a copy with the ids on another device."""
        return replace(self, ids=self.ids.to(device)) if isinstance(self.ids, Tensor) else self


@contextlib.contextmanager
def _watching(row: Tensor) -> Iterator[Started]:
    """Record the modules that run in this thread, and whether each receives the ids, (1, T)."""
    started: Started = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        ids = as_ids(args[0]) if args and isinstance(args[0], Tensor) else None
        is_row = ids is not None and torch.equal(ids.reshape(-1).cpu(), row[0].cpu())
        started.append((module, is_row))

    handle = register_module_forward_pre_hook(in_this_thread(before))
    try:
        yield started
    finally:
        handle.remove()


def _site(started: Started, embedding: Site | None) -> LayerCall:
    """Return the call of the embedding module that receives the ids."""
    module = _embedding(started) if embedding is None else module_of(embedding)
    assert module is not None
    runs = [receives_ids for each, receives_ids in started if each is module]
    if isinstance(embedding, LayerCall):
        calls = [embedding.call or 0]
    else:
        calls = [call for call, receives_ids in enumerate(runs) if receives_ids] or list(range(len(runs)))
    if not calls or calls[0] >= len(runs):
        raise ValueError(
            f"the embedding {type(module).__name__} runs {len(runs)} times in `Phi`: give a module of the model that "
            "`Phi` calls, and the number of an existing call."
        )
    if len(calls) > 1:
        raise ValueError(
            f"the embedding {_name(module, started)} runs {len(calls)} times in `Phi`: choose the call that receives "
            "the noise, as in embedding=LayerCall(module, call=0)."
        )
    return LayerCall(module, calls[0])


def _embedding(started: Started) -> nn.Module:
    """Return the model's ``get_input_embeddings()``, or else the only ``nn.Embedding`` that receives the ids."""
    receivers = [module for module, receives_ids in started if receives_ids]
    declared = [_input_embeddings(module) for module, _ in started]
    named = [module for module in receivers if module in declared]
    found = dict.fromkeys(named or [module for module in receivers if isinstance(module, nn.Embedding)])
    if len(found) == 1:
        return next(iter(found))
    if not found:
        raise ValueError(
            "no nn.Embedding that runs in `Phi` receives the token ids (a compiled model may hide it): give the "
            "module whose output receives the noise as `embedding`, or give `x` as embeddings, (words, K)."
        )
    names = ", ".join(_name(module, started) for module in found)
    raise ValueError(
        f"{len(found)} embeddings in `Phi` receive the token ids, {names}: choose the module that receives the noise "
        "with `embedding`."
    )


def _name(module: nn.Module, started: Started) -> str:
    """Return the dotted name of a module within the outermost module that contains it."""
    for outer, _ in started:
        for name, inner in outer.named_modules():
            if inner is module and name:
                return f"{type(outer).__name__}.{name}"
    return f"{type(module).__name__}({', '.join(str(n) for p in module.parameters() for n in p.shape)})"


def _row(x: TokenIds) -> Tensor:
    """Convert the ids to shape (1, T)."""
    ids = as_ids(x)
    if ids is None:
        raise TypeError(f"a {type(x).__name__} was given where token ids are needed: give integers.")
    if ids.ndim not in (1, 2) or not ids.numel() or (ids.ndim == 2 and len(ids) != 1):
        raise ValueError(f"token ids have shape {tuple(ids.shape)}: give one sentence, (T,) or (1, T).")
    return ids.reshape(1, -1)


def _input_embeddings(module: Any) -> Any:
    """Return ``get_input_embeddings()`` of a model that has this method, as in transformers; otherwise None."""
    with contextlib.suppress(AttributeError, NotImplementedError):
        return module.get_input_embeddings()
    return None


START = 0.01  # initial sigma / scale: the minimum is approached from the small-noise side, never from the cap


def calculate_regularization(
    sampled_x: Iterable[Tensor | TokenIds],
    Phi: Callable[..., Tensor],
    reduced_axes: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.floating]:
    """Compute the standard deviation of the state over a sample of sentences, which makes layers comparable.

    States are processed one at a time and not stored, so `sampled_x` may be a generator.

    Args:
        sampled_x: two or more sentences, each of shape (words, K) or token ids, as `Phi` accepts them.
        Phi: maps a sentence to the state, as in :class:`Interpreter`.
        reduced_axes: axes of a sentence's state to average over first; they are kept with length 1.
            Sentences may differ in length along these axes only.
        device: device to which each sentence is moved before the call of `Phi`; default: it is not moved.

    Returns:
        Population standard deviation, float64, with the state's shape and length 1 for every reduced axis.

    Examples::

        >>> corpus = torch.tensor([[[0.0, 2.0]], [[4.0, 2.5]]])
        >>> calculate_regularization(corpus, lambda x: 10 * x)
        array([[20. ,  2.5]])
    """
    running = RunningStd()
    shape: torch.Size | None = None
    count = 0
    for count, x in enumerate(sampled_x, start=1):
        with torch.no_grad():
            sentence = x if device is None or not isinstance(x, Tensor) else x.to(device)
            state = _state((lambda ids: run_on_ids(Phi, ids)[1]) if as_ids(x) is not None else Phi, sentence)
        for axis in reduced_axes or ():
            if not -state.ndim <= axis < state.ndim:
                raise ValueError(f"`reduced_axes` has {axis}, but a state has shape {tuple(state.shape)}.")
            state = state.mean(dim=axis, keepdim=True)
        if shape is not None and state.shape != shape:
            axes = [i for i, (a, b) in enumerate(zip(state.shape, shape)) if a != b]
            raise ValueError(
                f"sentence {count} has a state of shape {tuple(state.shape)} where the ones before have "
                f"{tuple(shape)}: name the axes that vary with the length, as in `reduced_axes={axes}`."
            )
        shape = state.shape
        running.update(state.unsqueeze(0))
    if count < 2:
        raise ValueError(f"`sampled_x` has {count} sentence(s): a standard deviation needs 2 or more.")
    std: NDArray[np.floating] = running.std(torch.float64).cpu().numpy()
    return std


class Interpreter:
    """How much noise each word of one sentence can bear before the state ``Phi(x)`` changes.

    A thin wrapper around :class:`~interp_plugin.InformationLoss` for a `Phi` without batch dimension, after
    Guan et al., "Towards a Deep and Unified Understanding of Deep Neural Models in NLP", ICML 2019.

    Args:
        x: embeddings of the words, of shape (words, K); or token ids, a list, an array or a tensor of shape
            (words,) or (1, words): noise is then added to the output of the embedding that receives them.
        Phi: maps `x` to a state of any shape. Token ids are passed unchanged, or else as a tensor of shape
            (1, words). A module is used unchanged: it is not trained, and its training flag is kept.
            ``torch.no_grad()`` inside is harmless.
        scale: the cap on sigma, called `max_sigma` elsewhere; 10 x std of the word embeddings is usual.
        rate: weight of entropy against distortion.
        regularization: standard deviation of the state, from :func:`calculate_regularization`; it
            broadcasts to the state. Elements where it is zero are constant and are ignored; of the
            others only the square is used. Default: the root mean square of ``Phi(x)``.
        words: names of the words for :meth:`visualize`; default: their positions.
        embedding: for token ids, the module (or one call of it) whose output receives the noise. Default:
            ``get_input_embeddings()`` of the model in `Phi`, or the only ``nn.Embedding`` that receives the ids.

    Attributes:
        x: the embeddings to which noise is added, (words, K).
        s, d: the number of words, and K.
        ratio: logit of sigma / scale, (words, 1); infinite at the cap.
        regular: `regularization` as a tensor, or None.

    Examples::

        >>> weight = torch.tensor([1.0, 2.0, 4.0])
        >>> x = torch.linspace(-1, 1, 768).reshape(3, 256)
        >>> interpreter = Interpreter(x, lambda x: weight @ x, words=["a", "rare", "bird"])
        >>> interpreter.optimize()
        >>> sigma = interpreter.get_sigma()
        >>> [f"{ratio:.2f}" for ratio in sigma[0] / sigma]
        ['1.00', '2.00', '4.00']
    """

    def __init__(
        self,
        x: Tensor | TokenIds,
        Phi: Callable[..., Tensor],
        scale: float = 0.5,
        rate: float = 0.1,
        regularization: Tensor | NDArray[np.floating] | float | None = None,
        words: Sequence[str] | None = None,
        embedding: Site | None = None,
    ) -> None:
        self.Phi = Phi
        self._of_x: Callable[[Tensor], Any] | OfEmbeddings = Phi
        if as_ids(x) is not None:
            x, self._of_x = embedded(Phi, x, embedding)
        elif embedding is not None:
            raise ValueError("`embedding` is only for token ids, and `x` holds embeddings: leave it out.")
        x = _checked_sentence(x)
        for name, value in (("scale", scale), ("rate", rate)):
            if not 0 < float(value) < math.inf:
                raise ValueError(f"`{name}` is {value}: it must be positive and finite.")
        if words is not None and len(words) != len(x):
            raise ValueError(f"`words` has {len(words)} entries for {len(x)} rows of `x`: give one a row.")
        self.x = x.detach()
        self.s, self.d = x.shape
        self.scale = float(scale)
        self.rate = float(rate)
        self.regular = _checked_regularization(regularization, self.x)
        self.words = [str(i) for i in range(len(x))] if words is None else list(words)
        self.fit_: NoiseFit | None = None  # diagnostics of the last `optimize()`; None after Adam
        self._sigma: Tensor | None = None

    def to(self, device: torch.device | str) -> Interpreter:
        """Move the sentence, the regularization and, if it is a module, `Phi` to a device."""
        self.x = self.x.to(device)
        if self.regular is not None:
            self.regular = self.regular.to(device)
        if isinstance(self._of_x, OfEmbeddings):
            self._of_x = self._of_x.to(device)
        if isinstance(self.Phi, nn.Module):
            self.Phi.to(device)
        return self

    def optimize(
        self, iteration: int | None = None, lr: float | None = None, show_progress: bool = False
    ) -> None:
        """Learn sigma.

        Without `iteration` and `lr`, the package's solver runs to its tolerance, and ``fit_`` holds its
        diagnostics. With either, stochastic Adam minimises the same objective.

        Args:
            iteration: number of steps of Adam, each with a new noise sample; default if `lr` is given: 5000.
                The result is the mean of log sigma over the second half of the steps.
            lr: learning rate of Adam; default if `iteration` is given: 0.01.
            show_progress: show a progress bar.
        """
        warn_of_training(self.Phi, stacklevel=3)
        state, std = self._reference()
        if iteration is None and lr is None:
            # `Phi` has no batch dimension, so it is called on one sentence at a time
            batched = InformationLoss(
                lambda rows: torch.stack([_state(self._of_x, x).flatten() for x in rows])
            )
            self.fit_ = batched.fit(
                self.x.unsqueeze(0),
                state_std=None if self.regular is None else std.flatten(),
                rate=self.rate,
                max_sigma=self.scale,
                show_progress=show_progress,
            )
            self._sigma = self.fit_.sigma[0]
            return
        iteration, lr = 5000 if iteration is None else iteration, 0.01 if lr is None else lr
        if iteration < 1 or not 0 < lr < math.inf:
            raise ValueError(f"`iteration` is {iteration} and `lr` is {lr}: both must be positive.")
        self.fit_, self._sigma = None, self._adam(state, std, iteration, lr, show_progress)

    def get_sigma(self) -> NDArray[np.floating]:
        """Return sigma of each word, (words,), in the units of `x`: small where the state needs the word."""
        if self._sigma is None:
            raise RuntimeError("there is no sigma yet: call `optimize()` first, which learns it.")
        sigma: NDArray[np.floating] = self._sigma.cpu().numpy()
        return sigma

    @property
    def ratio(self) -> Tensor:
        """Logit of sigma / scale, (words, 1), as in the authors' code; before `optimize`, Adam's initial value."""
        if self._sigma is None:
            return torch.full_like(self.x[:, :1], math.log(START / (1 - START)))
        return torch.logit(self._sigma / self.scale).unsqueeze(1)

    def visualize(self) -> Figure:
        """Draw sigma as a heat map over the words.

        Returns:
            The figure. An interactive session also shows it; a script gets a warning that says how to save it.
        """
        import matplotlib

        sigma = self.get_sigma()
        if not (hasattr(sys, "ps1") or matplotlib.is_interactive()):
            warnings.warn(
                "visualize() shows figures in interactive sessions only; here it returns the figure: save it with "
                'interpreter.visualize().savefig("sigma.png")',
                stacklevel=2,
            )
            return draw_words_heatmap(sigma, self.words)
        import matplotlib.pyplot as plt

        figure = draw_words_heatmap(sigma, self.words, plt.figure())
        plt.show()
        return figure

    def _reference(self) -> tuple[Tensor, Tensor]:
        """Return the state without noise, and the standard deviation of each of its elements."""
        with torch.no_grad():
            state = _state(self._of_x, self.x)
        if state.is_inference():
            raise ValueError(
                "`Phi` runs under torch.inference_mode(), whose tensors carry no gradient: remove it, or use "
                "torch.no_grad() instead."
            )
        if not bool(state.isfinite().all()):
            raise ValueError("`Phi(x)` without noise holds NaN or inf: check the model and `x`.")
        if self.regular is None:
            return state, state.square().mean().sqrt().expand_as(state)
        try:
            return state, self.regular.abs().expand_as(state)
        except RuntimeError as error:
            raise ValueError(
                f"`regularization` of shape {tuple(self.regular.shape)} does not broadcast to the "
                f"state's {tuple(state.shape)}: compute it with the same `Phi`, and name in `reduced_axes` "
                "the axes that vary with the length."
            ) from error

    def _adam(self, state: Tensor, std: Tensor, iteration: int, lr: float, show_progress: bool) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same samples on every device
        ratio = torch.full_like(self.x[:, 0], math.log(START / (1 - START))).requires_grad_()
        optimizer = torch.optim.Adam([ratio], lr=lr)
        mean_log_sigma = torch.zeros_like(ratio, requires_grad=False)  # over the second half of the steps
        # the solver's objective, for a batch of one
        reference = state.unsqueeze(0)
        weight = state_weight(reference, std.unsqueeze(0), torch.ones_like(reference, dtype=torch.bool))
        for step in tqdm(range(iteration), disable=not show_progress):
            noise = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype).to(self.x.device)
            with torch.enable_grad():
                log_sigma = math.log(self.scale) + nn.functional.logsigmoid(ratio)
                noisy = _state(self._of_x, self.x + log_sigma.exp().unsqueeze(1) * noise)
                value = loss(
                    distortion(noisy.unsqueeze(0), reference, weight), log_sigma.unsqueeze(0), self.rate
                )
            if not bool(value.isfinite()):
                raise ValueError(f"`Phi` returned NaN or inf for the noisy `x` of step {step}: check it.")
            (ratio.grad,) = torch.autograd.grad(value, ratio)
            if step >= iteration // 2:
                mean_log_sigma += log_sigma.detach() / (iteration - iteration // 2)
            optimizer.step()
        return mean_log_sigma.exp()


def _state(Phi: Callable[..., Any], x: Any) -> Tensor:
    """Return ``Phi(x)``; if gradients are enabled here, with its graph even if `Phi` disables gradients."""
    with gradients_on() if torch.is_grad_enabled() else contextlib.nullcontext():
        state = Phi(x)
    if not isinstance(state, Tensor):
        raise TypeError(f"`Phi` returned a {type(state).__name__}: it must return the state as one tensor.")
    if not state.is_floating_point():
        raise TypeError(f"`Phi` returned {state.dtype}: distortion needs a floating-point state.")
    if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled() and not state.requires_grad:
        raise ValueError(
            "`Phi` returned a state without a gradient: it must be a differentiable function of `x`, without "
            "detach(), numpy() or torch.inference_mode() on the way (torch.no_grad() is fine)."
        )
    return state


def _checked_sentence(x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"`x` is a {type(x).__name__}: give a tensor of shape (words, K), or token ids as a list, array or tensor."
        )
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"`x` has shape {tuple(x.shape)}: give one sentence, (words, K), no batch axis.")
    if not x.is_floating_point():
        raise TypeError(f"`x` is {x.dtype}: give floating-point embeddings, or token ids.")
    if not bool(x.isfinite().all()):
        raise ValueError("`x` holds NaN or inf: noise cannot be added to it.")
    return x


def _checked_regularization(value: Any, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    regular = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if not bool(regular.isfinite().all()):
        raise ValueError(
            "`regularization` holds NaN or inf: give the standard deviation of each state element."
        )
    if not bool(regular.any()):
        raise ValueError(
            "`regularization` is zero everywhere, so no element of the state counts: compute it from sentences "
            "whose states differ."
        )
    return regular
