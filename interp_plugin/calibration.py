"""The spread of every layer's states, and of the inputs, over a sample of texts: one yardstick for all texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp_plugin.storage import replace_file

FORMAT = "interp_plugin calibration 2"
_OLD = "interp_plugin calibration 1"  # without the spread of the inputs, which is not known then


@dataclass(frozen=True)
class Calibration:
    """Standard deviation v of the state's elements at each layer of one model.

    Attributes:
        model: name of the model.
        texts: how many texts it was measured on.
        state_std: key of a state -> v, float32; it broadcasts to the state.
        input_std: tau, the standard deviation of one element of the noise layer's output; None: not known.
        noise_layer: the name of that layer.

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
        """v of a state.

        Raises:
            ValueError: that state was not calibrated, or has no spread.
        """
        if key not in self.state_std:
            raise ValueError(
                f"state {key!r} was not calibrated, only {', '.join(self.state_std)}; calibrate with that layer"
            )
        std = self.state_std[key]
        if not std.any():
            raise ValueError(
                f"state {key!r} was the same in all {self.texts} texts of the calibration and has no spread; calibrate "
                "on more texts, or leave that state out"
            )
        return std

    @property
    def digest(self) -> str:
        """A name for these very numbers: equal for equal calibrations."""
        parts = [key.encode() + v.contiguous().numpy().tobytes() for key, v in sorted(self.state_std.items())]
        if self.input_std is not None:
            parts.append(f"{self.input_std!r} {self.noise_layer}".encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @property
    def about(self) -> dict[str, Any]:
        """All but the tensors, ready for JSON."""
        names = ("model", "texts", "input_std", "noise_layer")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, whole or not at all."""
        from safetensors.torch import save

        about = {"format": FORMAT, "about": json.dumps(self.about)}
        replace_file(path, save({key: v.contiguous() for key, v in self.state_std.items()}, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no calibration.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} is not a safetensors file; give what calibrate() saved"
            ) from error
        if metadata.get("format") not in (FORMAT, _OLD):
            raise ValueError(
                f"{str(path)!r} is of format {metadata.get('format')!r}, and {FORMAT!r} is needed; calibrate again"
            )
        return cls(**json.loads(metadata["about"]), state_std=tensors)
