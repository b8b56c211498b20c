"""Calibration: standard deviations of every layer's states, and of the inputs, over a sample of texts."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp_plugin import files
from interp_plugin.files import Kinds, check_fields

FORMAT = "interp_plugin calibration 3"


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
