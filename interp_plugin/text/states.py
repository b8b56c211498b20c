"""States of a model: which part is explained, where it is read, and its unit (state_std), which a Calibration holds."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp_plugin import files
from interp_plugin.files import Kinds, check_fields
from interp_plugin.method.perturbation import LayerCall, Selector, Site
from interp_plugin.report.explanations import INSTEAD_OF
from interp_plugin.text.inputs import Layers, class_number, is_each
from interp_plugin.text.models import (
    EACH,
    HIDDEN,
    OUTPUT,
    Encoding,
    Function,
    Label,
    TextModel,
    are_exclusive,
    plain_values,
    state_sites,
    watched,
)

FORMAT = "interp_plugin calibration 3"
_OWN = (
    "next token",
    "answer span",
)  # tasks whose target is in the encoding, or else the model's own prediction


@dataclass(frozen=True)
class Calibration:
    """Standard deviation v of the state's elements at each layer of one model.

    Attributes:
        model: name of the model.
        texts: number of texts in the sample.
        state_std: key of a state -> v, float32; it broadcasts to the state.
        input_std: tau, the standard deviation of one element of the noise layer's output; None: not known.
        noise_layer: name of the noise layer.

    Examples::
        >>> import tempfile, torch
        >>> calibration = Calibration("m", 2, {"1": torch.ones(3)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     calibration.save(folder + "/v.safetensors")
        ...     Calibration.load(folder + "/v.safetensors").state_std["1"]
        tensor([1., 1., 1.])
    """

    model: str
    texts: int
    state_std: Mapping[str, Tensor]
    input_std: float | None = None
    noise_layer: str | None = None

    def of(self, key: str) -> Tensor:
        """Return v of a state.

        Raises:
            ValueError: the state was not calibrated, or is constant.
        """
        if key not in self.state_std:
            raise ValueError(
                f"state {key!r} was not calibrated, only {', '.join(self.state_std)}; calibrate with that layer"
            )
        std = self.state_std[key]
        if not std.any():
            raise ValueError(
                f"state {key!r} was the same in all {self.texts} texts of the calibration, so its standard deviation "
                "is 0; calibrate on more texts, or leave that state out"
            )
        return std

    @property
    def digest(self) -> str:
        """A digest of the numbers: equal for equal calibrations."""
        parts = [key.encode() + v.contiguous().numpy().tobytes() for key, v in sorted(self.state_std.items())]
        if self.input_std is not None:
            parts.append(f"{self.input_std!r} {self.noise_layer}".encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @property
    def about(self) -> dict[str, Any]:
        """Everything except the tensors, ready for JSON."""
        names = ("model", "texts", "input_std", "noise_layer")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        files.write_tensors(path, FORMAT, self.about, self.state_std)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: the file is not a calibration, is damaged, or was written by another version.
        """
        about, tensors = files.read_tensors(path, FORMAT, "calibrate again, or give what calibrate() saved")
        try:
            return cls.of_file(about, tensors)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r} holds no calibration: {error}; calibrate again") from error

    @classmethod
    def of_file(cls, about: Mapping[str, Any], state_std: Mapping[str, Tensor]) -> Calibration:
        """Create a calibration from the `about` and `state_std` of a file, which are checked.

        Raises:
            ValueError: the values are not those of a calibration.
        """
        kinds: Kinds = {
            "model": str,
            "texts": int,
            "input_std": (float, int, None),
            "noise_layer": (str, None),
        }
        check_fields(about, kinds)
        tau = about["input_std"]
        if about["texts"] < 1 or (tau is not None and not 0 < tau < math.inf):
            raise ValueError(f"texts is {about['texts']} and input_std {tau}, which must be positive")
        for key, std in state_std.items():
            if (std < 0).any():
                raise ValueError(f"the standard deviation of state {key!r} is negative")
        return cls(**about, state_std=state_std)


@dataclass(frozen=True)
class State:
    """The state of one row of an explanation.

    Attributes:
        label: the layer, "output", or "output." followed by the class or the end of an answer.
        site: where the state is read; None: the model's output.
        neurons: an index into the last dimension; None: all of it.
        state_std: v of the whole last dimension; None: the state is normalised by each text's own v.
        function: the function of the scores of class ``neurons`` that is the state; None: the score.
        foil: a class with which it is contrasted.
        places: indices into dimension 1, such as the positions that predict a target; None: all of it.
        exclusive: whether classes exclude each other (softmax); otherwise each has its own probability (sigmoid).
    """

    label: Label
    site: Site | None
    neurons: int | slice | list[int] | None = None
    state_std: Tensor | None = None
    function: Function | None = None
    foil: int | None = None
    places: tuple[int, ...] | None = None
    exclusive: bool = True

    @property
    def layer(self) -> Label:
        """The layer, or "output" without its class."""
        return OUTPUT if self.site is None else self.label

    @property
    def selector(self) -> Selector | None:
        """Function that selects the places and the neurons; None if they are the whole state."""
        return None if self.neurons is None and self.places is None else self._select

    def _select(self, state: Tensor) -> Tensor:
        if self.places is not None:
            state = state[:, list(self.places)]
        if self.neurons is None:
            return state
        if isinstance(self.neurons, int) and (self.function is not None or self.foil is not None):
            ids = torch.full(state.shape[:-1], self.neurons, device=state.device)
            foils = None if self.foil is None else torch.full_like(ids, self.foil)
            return watched(state, ids, self.function or "logit", foils, self.exclusive)
        try:
            return state[..., self.neurons]
        except IndexError as error:
            raise ValueError(
                f"neurons={self.neurons!r} does not exist in layer {self.label!r}, whose last dimension has "
                f"{state.shape[-1]}; count from 0"
            ) from error

    @property
    def selected_std(self) -> Tensor | None:
        """v of the selected neurons."""
        if self.state_std is None or self.neurons is None or not self.state_std.ndim:
            return self.state_std
        return self.state_std[..., self.neurons]


@dataclass(frozen=True)
class OutputRequest:
    """The part of the output that is explained for some of the texts.

    Attributes:
        target: a class, or EACH for every class; None: all classes together, or the target in the encoding.
        foil: the class with which the target is contrasted.
        choices: the choices that are the classes of these texts.
        is_contrast: whether the target is contrasted with another.
    """

    target: int | str | None = None
    foil: int | None = None
    choices: tuple[str, ...] = ()
    is_contrast: bool = False


def requests_by_text(
    model: TextModel,
    encodings: Sequence[Encoding],
    targets: Sequence[Any],
    foils: Sequence[Any],
    labels: Sequence[Label],
    function: Function | None,
) -> dict[OutputRequest, list[int]]:
    """Group the texts by request; for language models and answer spans the targets are in the encodings.

    Raises:
        ValueError: a target that does not exist, or a target without the output among the layers.
    """
    groups: dict[OutputRequest, list[int]] = {}
    for index, (encoding, target, foil) in enumerate(zip(encodings, targets, foils)):
        if target is None and model.task not in _OWN and (foil is not None or function is not None):
            name = "function" if foil is None else "instead_of"
            raise ValueError(f"{name} is given and no target for text {index}; give a class as target")
        try:
            request = _request(model, encoding, target, foil, labels)
        except ValueError as error:
            if len({*map(str, targets)}) == 1:
                raise
            raise ValueError(f"text {index}: {error}") from error
        groups.setdefault(request, []).append(index)
    return groups


def _request(
    model: TextModel, encoding: Encoding, target: Any, foil: Any, labels: Sequence[Label]
) -> OutputRequest:
    """Return the request for one text."""
    if model.task == "next token" or (target is None and foil is None):
        return OutputRequest(None, None, encoding.choices, bool(encoding.foils))
    if foil is not None and (is_each(target) or model.task == "answer span"):
        raise ValueError(
            f"instead_of is {foil!r}, which needs one class or continuation as target, and target is {target!r}; "
            "leave it out"
        )
    if model.task == "none":
        raise ValueError(
            f"target {target!r} picks a class, and {model.name} has no classification head; leave target out or give "
            "the model with its head"
        )
    if OUTPUT not in labels:
        raise ValueError(
            f"target {target!r} picks a part of the output, and layers {labels} do not include the output; give "
            "layers='output', or use neurons for a part of a layer"
        )
    if is_each(target) or model.task == "answer span":
        return OutputRequest(EACH if is_each(target) else None, None, encoding.choices)
    choices = encoding.choices
    wanted, other = (None if each is None else class_number(model, each, choices) for each in (target, foil))
    # choices are compared by their words: equal ones have equal scores
    asked = [choices[each] if choices and each is not None else each for each in (wanted, other)]
    if other is not None and asked[0] == asked[1]:
        name = choices[other] if choices else model.class_name(other)
        raise ValueError(f"target and instead_of are both class {name!r}; give two different classes")
    return OutputRequest(wanted, other, choices, other is not None)


@dataclass(frozen=True)
class StateFinder:
    """Finds the states of a model, with their units, by the labels of its layers.

    Attributes:
        model: the model.
        calibration: the units (state_std); None: states are normalised for each text.
    """

    model: TextModel
    calibration: Calibration | None

    def labels(self, layers: Layers) -> list[Label]:
        """Return the chosen layers, without repeats; check that they exist."""
        known = list(self.model.layers)
        hidden = [label for label in state_sites(self.model) if label not in known]
        parts = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
        expanded = [label for part in parts for label in (known if part == "all" else [part])]
        chosen = list(dict.fromkeys(expanded))
        if not chosen:
            raise ValueError(f"layers {layers!r} names no layer: choose from {listing(known)}, or 'all'")
        for label in chosen:
            if isinstance(label, bool) or (label != OUTPUT and label not in known + hidden):
                raise ValueError(
                    f"layer {label!r} does not exist: the model has {listing(known)}; choose from them or 'output'"
                )
        return chosen

    def states(
        self,
        labels: Sequence[Label],
        request: OutputRequest = OutputRequest(),
        function: Function | None = None,
        neurons: int | slice | Sequence[int] | None = None,
        heads: int | Sequence[int] | None = None,
    ) -> Iterator[State]:
        """Yield the state of each label, with its unit; arguments as in :meth:`TextExplainer.explain`.

        Raises:
            ValueError: neurons or heads that do not exist, or a state that was not calibrated.
        """
        if neurons is not None and heads is not None:
            raise ValueError("neurons and heads both pick a part of a state; give one of them")
        for name, part in (("neurons", neurons), ("heads", heads)):
            if isinstance(part, Sequence) and not part:
                raise ValueError(f"{name} {part!r} is empty; give at least one, or None for the whole state")
        for label in labels:
            if label == OUTPUT:
                yield from self._outputs(request, function)
                continue
            site, part, key = self._site(label), neurons, self._key(label)
            if heads is not None:
                site, part = self._heads(label, heads)
                key = _key_of_heads(label)
            index = part if part is None or isinstance(part, (int, slice)) else list(part)
            yield State(label, site, index, self._unit(key))

    def target_name(self, request: OutputRequest) -> str | None:
        """Return the name of the target class and, if given, of its foil."""
        if not isinstance(request.target, int):
            return None
        name = request.choices.__getitem__ if request.choices else self.model.class_name
        numbers = (request.target,) if request.foil is None else (request.target, request.foil)
        return INSTEAD_OF.join(map(name, numbers))

    def to_calibrate(self, labels: Sequence[Label]) -> dict[str, State]:
        """Return the states of layers and of their attention heads, by their names in a calibration."""
        found = {self._key(label): State(label, self._site(label)) for label in labels}
        for label in labels:
            heads = self.model.head_site(label) if label in self.model.layers else None
            if heads is not None:
                found[_key_of_heads(label)] = State(label, heads[0])
        return found

    def _site(self, label: Label) -> Site | None:
        return None if label == OUTPUT else state_sites(self.model)[label]

    def _key(self, label: Label) -> str:
        """Return the name of a state in a calibration; a block's output and its normalised output have own units."""
        is_normed = label in self.model.layers and self._site(label) != self.model.layers[label]
        return f"{label}.normed" if is_normed else str(label).removeprefix(HIDDEN)

    def _unit(self, key: str) -> Tensor | None:
        return None if self.calibration is None else self.calibration.of(key)

    def _outputs(self, request: OutputRequest, function: Function | None) -> Iterator[State]:
        """Yield the output, or the requested class, or each class as a state of its own."""
        is_span = self.model.task == "answer span"
        is_another = function is not None or request.is_contrast or bool(request.choices)
        # the calibration has the unit of the default function only
        unit = None if is_span or is_another else self._unit(OUTPUT)
        state = State(OUTPUT, None, None, unit)
        if is_another:
            state = replace(state, function=function, foil=request.foil, exclusive=are_exclusive(self.model))
        if not isinstance(request.target, str):
            yield replace(state, neurons=request.target)
            return
        names = tuple(request.choices or getattr(self.model, "classes", None) or ())
        if not names:
            raise ValueError(
                f"target is {EACH!r}, but the classes of {self.model.name} have no names or are tokens; give one class"
            )
        for index, name in enumerate(names):
            label = f"{OUTPUT}.{name} ({index})" if names.count(name) > 1 else f"{OUTPUT}.{name}"
            yield replace(state, label=label, neurons=slice(index, index + 1) if is_span else index)

    def _heads(self, label: Label, heads: int | Sequence[int]) -> tuple[LayerCall, list[int]]:
        """Return where a layer's heads are read, and the indices of the chosen heads in the last dimension."""
        found = self.model.head_site(label)
        if found is None:
            raise ValueError(f"layer {label!r} has no attention heads of a known layout; leave heads out")
        site, count, width = found
        heads = plain_values(heads)
        chosen = [heads] if isinstance(heads, int) else list(heads)
        for head in chosen:
            if head not in range(count):
                raise ValueError(f"head {head!r} does not exist: layer {label!r} has heads 0 to {count - 1}")
        return site, [head * width + i for head in chosen for i in range(width)]


def _key_of_heads(label: Label) -> str:
    return f"{label}.heads"


def listing(labels: Sequence[Label]) -> str:
    """Format labels for a message: first and last of a range of numbers, otherwise all."""
    if len(labels) > 2 and all(isinstance(label, int) for label in labels):
        return f"layers {labels[0]} to {labels[-1]}"
    return ", ".join(map(repr, labels))
