"""The seed's interface: one sentence, any callable ``Phi``, one sigma per word."""

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
    if not isinstance(embedding, nn.Module | LayerCall | None) or getattr(embedding, "side", "") == "input":
        raise TypeError(f"`embedding` is {embedding!r}: give the module whose output bears the noise.")
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
"""The modules that run, in the order in which they start, and whether they are given the ids."""


def run_on_ids(Phi: Callable[[Any], Any], x: TokenIds) -> tuple[Any, Any, Started]:
    """What ``Phi`` was given, the state of one sentence of token ids, and the modules that ran.

    ``Phi`` is given the ids as they are; if it raises an error, as a tensor of shape (1, T), which is what
    the models of transformers take; and a tensor on the device of its model, if that is another.

    Raises:
        ValueError: more than one sentence.
        TypeError: it takes neither form.
    """
    row = _row(x)
    forms: list[Any] = [x] if isinstance(x, Tensor) and x.shape == row.shape else [x, row]
    errors: list[Exception] = []
    for form in forms:
        for _ in range(2):  # the second time on the model's device
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
            own = first_tensor(output)
            return replace_first(output, x.to(own).reshape(own.shape))

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
        return replace(self, ids=self.ids.to(device)) if isinstance(self.ids, Tensor) else self


@contextlib.contextmanager
def _watching(row: Tensor) -> Iterator[Started]:
    """Watch all modules that run in this thread, and which of them are given the ids, (1, T)."""
    started: Started = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        given = as_ids(args[0]) if args and isinstance(args[0], Tensor) else None
        is_row = given is not None and torch.equal(given.reshape(-1).cpu(), row[0].cpu())
        started.append((module, is_row))

    handle = register_module_forward_pre_hook(in_this_thread(before))
    try:
        yield started
    finally:
        handle.remove()


def _site(started: Started, embedding: Site | None) -> LayerCall:
    """The run of the embedding that is given the ids."""
    module = _embedding(started) if embedding is None else module_of(embedding)
    assert module is not None
    runs = [sees for each, sees in started if each is module]
    if isinstance(embedding, LayerCall):
        calls = [embedding.call or 0]
    else:
        calls = [call for call, sees in enumerate(runs) if sees] or list(range(len(runs)))
    if not calls or calls[0] >= len(runs):
        raise ValueError(
            f"the embedding {type(module).__name__} runs {len(runs)} times in `Phi`: give a module of the model that "
            "`Phi` calls, and of its runs one that there is."
        )
    if len(calls) > 1:
        raise ValueError(
            f"the embedding {_name(module, started)} runs {len(calls)} times in `Phi`: say which run bears the noise, "
            "as in embedding=LayerCall(module, call=0)."
        )
    return LayerCall(module, calls[0])


def _embedding(started: Started) -> nn.Module:
    """The one that models name, or else the only one that is given the ids."""
    seen = [module for module, sees in started if sees]
    of_models = [_input_embeddings(module) for module, _ in started]
    named = [module for module in seen if module in of_models]
    found = dict.fromkeys(named or [module for module in seen if isinstance(module, nn.Embedding)])
    if len(found) == 1:
        return next(iter(found))
    if not found:
        raise ValueError(
            "no nn.Embedding that runs in `Phi` is given the token ids (a compiled model may hide it): name the "
            "module whose output bears the noise with `embedding`, or give `x` as embeddings, (words, K)."
        )
    names = ", ".join(_name(module, started) for module in found)
    raise ValueError(
        f"{len(found)} embeddings in `Phi` are given the token ids, {names}: say with `embedding` which of these "
        "modules bears the noise."
    )


def _name(module: nn.Module, started: Started) -> str:
    """Dotted name in the outermost module that holds it."""
    for outer, _ in started:
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


def _input_embeddings(module: Any) -> Any:
    """What a model of transformers, or one that follows it, calls its input embeddings; None of other modules."""
    with contextlib.suppress(AttributeError, NotImplementedError):
        return module.get_input_embeddings()
    return None


START = 0.01  # of the scale: the minimum is approached from the small-noise side, never from the cap


def calculate_regularization(
    sampled_x: Iterable[Tensor | TokenIds],
    Phi: Callable[..., Tensor],
    reduced_axes: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> NDArray[np.floating]:
    """Standard deviation of the state over a sample of sentences: what makes layers comparable.

    The states are folded in one at a time and never kept, so `sampled_x` may be a generator.

    Args:
        sampled_x: sentences, each of shape (words, K) or token ids, as `Phi` takes them; two or more.
        Phi: maps a sentence to the state, as in :class:`Interpreter`.
        reduced_axes: axes of one sentence's state to average out first; they stay with length 1.
            Sentences may differ in length along these axes only.
        device: where to put each sentence before `Phi` sees it; default: where it is.

    Returns:
        Population standard deviation, float64, of the state's shape with 1 for every reduced axis.

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
            given = x if device is None or not isinstance(x, Tensor) else x.to(device)
            state = _state((lambda ids: run_on_ids(Phi, ids)[1]) if as_ids(x) is not None else Phi, given)
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
    """How much noise each word of one sentence can bear before the state ``Phi(x)`` notices.

    A thin call of :class:`~interp_plugin.InformationLoss` for a `Phi` without batch dimension, after
    Guan et al., "Towards a Deep and Unified Understanding of Deep Neural Models in NLP", ICML 2019.

    Args:
        x: embeddings of the words, of shape (words, K); or token ids, a list, an array or a tensor of shape
            (words,) or (1, words): noise then enters at the output of the embedding that sees them.
        Phi: maps `x` to a state of any shape; ids are given as they are, or else as a tensor of shape
            (1, words). A module is used as it is: nothing is trained and its training flag stays.
            ``torch.no_grad()`` inside does no harm.
        scale: the cap on sigma, called `max_sigma` elsewhere; 10 x std of the word embeddings is usual.
        rate: weight of entropy against distortion.
        regularization: standard deviation of the state, from :func:`calculate_regularization`; it
            broadcasts to the state. Elements where it is zero never moved and do not count, and of the
            others only the square is used. Default: the root mean square of ``Phi(x)``.
        words: names of the words for :meth:`visualize`; default: their positions.
        embedding: of token ids: the module (or one run of it) whose output bears the noise. Default:
            ``get_input_embeddings()`` of the model in `Phi`, or the one ``nn.Embedding`` that sees the ids.

    Attributes:
        x: what bears the noise, (words, K).
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
            raise ValueError(
                "`embedding` says where noise enters for token ids, but `x` has embeddings: leave it out."
            )
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
        """Move the sentence and the regularization, and `Phi` too where it is a module."""
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

        Without `iteration` and `lr` the package's solver runs to its tolerance, and ``fit_`` holds its
        diagnostics. With either, stochastic Adam minimises the same objective.

        Args:
            iteration: steps of Adam, one fresh draw each; default with `lr` given: 5000. The result is the
                mean of log sigma over the later half, not the step whose draw was luckiest.
            lr: learning rate of Adam; default with `iteration` given: 0.01.
            show_progress: show a progress bar.
        """
        warn_of_training(self.Phi, stacklevel=3)
        state, std = self._reference()
        if iteration is None and lr is None:
            # `Phi` sees one sentence at a time: it has no batch dimension and may unsqueeze or index at will
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
        """Sigma of each word, (words,), in the units of `x`: small where the state needs the word."""
        if self._sigma is None:
            raise RuntimeError("there is no sigma yet: call `optimize()` first, which learns it.")
        sigma: NDArray[np.floating] = self._sigma.cpu().numpy()
        return sigma

    @property
    def ratio(self) -> Tensor:
        """Logit of sigma / scale, (words, 1), as in the authors' code; before `optimize` where Adam starts."""
        if self._sigma is None:
            return torch.full_like(self.x[:, :1], math.log(START / (1 - START)))
        return torch.logit(self._sigma / self.scale).unsqueeze(1)

    def visualize(self) -> Figure:
        """Draw sigma as a heat map over the words.

        Returns:
            The figure. An interactive session shows it; a script is told, by a warning, how to keep it.
        """
        import matplotlib

        sigma = self.get_sigma()
        if not (hasattr(sys, "ps1") or matplotlib.is_interactive()):
            warnings.warn(
                "visualize() shows figures in interactive sessions only; here it returns the figure: keep it with "
                'interpreter.visualize().savefig("sigma.png")',
                stacklevel=2,
            )
            return draw_words_heatmap(sigma, self.words)
        import matplotlib.pyplot as plt

        figure = draw_words_heatmap(sigma, self.words, plt.figure())
        plt.show()
        return figure

    def _reference(self) -> tuple[Tensor, Tensor]:
        """The state without noise, and the standard deviation of each of its elements."""
        with torch.no_grad():
            state = _state(self._of_x, self.x)
        if state.is_inference():
            raise ValueError(
                "`Phi` runs under torch.inference_mode(), whose tensors carry no gradient: leave it out, or use "
                "torch.no_grad() in its place."
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
        generator = torch.Generator().manual_seed(0)  # private, on the CPU: the same draws on every device
        ratio = torch.full_like(self.x[:, 0], math.log(START / (1 - START))).requires_grad_()
        optimizer = torch.optim.Adam([ratio], lr=lr)
        late = torch.zeros_like(ratio, requires_grad=False)
        # the solver's own objective, for a batch of one
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
                late += log_sigma.detach() / (iteration - iteration // 2)
            optimizer.step()
        return late.exp()


def _state(Phi: Callable[..., Any], x: Any) -> Tensor:
    """``Phi(x)``, with its graph where gradients are on, also if `Phi` switches them off."""
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
            "`regularization` is zero everywhere, so that no element of the state counts: compute it from sentences "
            "whose states differ."
        )
    return regular
