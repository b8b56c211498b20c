"""How far scores move when the embeddings move a little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from interp_plugin.comparison.inputs import Inputs, seeded
from interp_plugin.comparison.judged import Metric, Trial
from interp_plugin.method.perturbation import first_tensor, in_this_thread, module_of

RADIUS = 0.1
"""Of the ball, in standard deviations of the text's embeddings."""
SAMPLES = 5
"""Points of the ball; the method runs once for each."""
_NEW = 2**30  # ids from here on are moved words; no vocabulary is that large


@contextmanager
def moved(inputs: Inputs, offsets: Tensor) -> Iterator[Inputs]:
    """The same text with something added to the embeddings of its words, while the block runs.

    Every token becomes a new word, which has the old one's embedding and the offset.  So the offset goes
    where the token goes, and away when it is masked or deleted, whatever a method does with its inputs.
    Special tokens stay as they are: some models look for them.

    Args:
        inputs: the text.
        offsets: (T, K); those of special tokens are not used.

    Examples::
        >>> from interp_plugin import huggingface
        >>> model = huggingface.HuggingFaceModel(*huggingface.load(huggingface.default_model_path()))
        >>> inputs = Inputs(model, model.encode("a good film"))
        >>> with moved(inputs, torch.full((5, 192), 0.5)) as other:
        ...     (other.embeddings - inputs.embeddings)[0, :, 0]
        tensor([0.0000, 0.5000, 0.5000, 0.5000, 0.0000])
    """
    layer = module_of(inputs.model.embedding)
    assert layer is not None
    words = _MovedWords(inputs.ids[0], offsets)
    handles = [
        layer.register_forward_pre_hook(in_this_thread(words.enter), with_kwargs=True),
        layer.register_forward_hook(in_this_thread(words.leave)),
    ]
    try:
        known = zip(inputs.encoding.ids, inputs.encoding.offsets)
        ids = tuple(old if offset is None else _NEW + place for place, (old, offset) in enumerate(known))
        yield replace(inputs, encoding=replace(inputs.encoding, ids=ids))
    finally:
        for handle in handles:
            handle.remove()


class _MovedWords:
    """Gives the embedding the ids that it knows, and adds the offsets to what it makes of them."""

    def __init__(self, ids: Tensor, offsets: Tensor) -> None:
        self.ids = ids
        self.offsets = torch.cat([offsets, torch.zeros_like(offsets[:1])])  # the last one is of other words
        self.places: Tensor | None = None

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.places = None
        known = tuple(map(self._known, args))
        return known, {name: self._known(value) for name, value in kwargs.items()}

    def _known(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.long or not bool((value >= _NEW).any()):
            return value
        new = value >= _NEW
        self.places = torch.where(new, value - _NEW, len(self.ids))
        return torch.where(new, self.ids.to(value.device)[(value - _NEW).clamp(min=0)], value)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.places is None:
            return None
        first = first_tensor(output)
        first = first + self.offsets.to(first)[self.places.to(first.device)]
        return type(output)([first, *output[1:]]) if isinstance(output, (tuple, list)) else first


def max_sensitivity(name: str = "max-sensitivity", radius: float = RADIUS, samples: int = SAMPLES) -> Metric:
    """Captum's ``sensitivity_max``: the most that scores move in a small ball, relative to their norm.

    The ball is Captum's (every element of every word's embedding moves by at most the radius, special tokens
    stay); the norm is L2 over the players; a method that draws has the same draws each time.  The method runs
    once for each sample.

    Args:
        name: in tables.
        radius: in standard deviations of the text's embeddings.
        samples: points of the ball, the same for all methods.
    """
    if radius <= 0 or samples < 1:
        raise ValueError(
            f"radius is {radius} and samples {samples}; give a radius above 0 and 1 or more samples"
        )

    def measure(trial: Trial) -> float:
        import captum.metrics

        inputs = trial.inputs
        with seeded(inputs.seed):
            found = captum.metrics.sensitivity_max(
                _scores_at(trial),
                inputs.embeddings,
                perturb_radius=radius * float(inputs.embeddings.std()),
                n_perturb_samples=samples,
            )
        return float(found)

    return Metric(
        name, measure, higher_is_better=False, source="Yeh et al. 2019, def. 2.2; Captum sensitivity_max"
    )


def _scores_at(trial: Trial) -> Callable[[Any], Any]:
    """The method's scores as a function of embeddings, (R, T, K) -> (R, T); 0 where a token is no player.

    A tuple for a tuple, as Captum's methods.
    """
    inputs = trial.inputs

    @torch.enable_grad()  # Captum's metrics switch gradients off
    def scores_at(embeddings: Any) -> Any:
        rows = []
        for point in first_tensor(embeddings):
            if torch.equal(point, inputs.embeddings[0]):
                rows.append(trial.scores)
                continue
            with moved(inputs, point - inputs.embeddings[0]) as other:
                rows.append(trial.method(other, trial.target, trial.state))
        scores = torch.where(inputs.players, torch.stack(rows), 0.0)
        return (scores,) if isinstance(embeddings, tuple) else scores

    return scores_at
