"""All numbers of the int8 layers of a model, and the safetensors file that keeps them beside the weights in fp32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from autoprune.errors import RunFolderError
from autoprune.quantization.grid import Range, RoundedWeight
from autoprune.runfolder import write_atomic

_STEPS, _SCALES, _BIAS = ".steps", ".scales", ".bias"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The numbers of int8 layers.

    `ranges` are those of tensors by their keys (`Placement.keys`), `weights` the rounded ones by the names of layers.
    """

    ranges: Mapping[str, Range]
    weights: Mapping[str, RoundedWeight]

    def save(self, path: Path) -> None:
        """Write the numbers to a file, atomically."""
        tensors: dict[str, np.ndarray] = {}
        for name, weight in self.weights.items():
            tensors |= {name + _STEPS: weight.steps, name + _SCALES: weight.scales}
            tensors |= {} if weight.bias is None else {name + _BIAS: weight.bias}
        ranges = {key: [of_tensor.low, of_tensor.high] for key, of_tensor in self.ranges.items()}
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomic(path, save(contiguous, {"ranges": json.dumps(ranges)}))

    @classmethod
    def load(cls, path: Path) -> Quantization:
        """Read the numbers that `save` wrote; `RunFolderError` for any other file."""
        try:
            with safe_open(path, framework="np") as file:
                ranges = json.loads(file.metadata()["ranges"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            names = [name.removesuffix(_STEPS) for name in tensors if name.endswith(_STEPS)]
            weights = {
                name: RoundedWeight(
                    steps=tensors[name + _STEPS], scales=tensors[name + _SCALES], bias=tensors.get(name + _BIAS)
                )
                for name in names
            }
            return cls(ranges={key: Range(low=low, high=high) for key, (low, high) in ranges.items()}, weights=weights)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is absent or damaged: {error}. `autoprune verify` makes it again") from error
