"""All numbers of the treated layers of a model, and the safetensors file that keeps them beside the weights in fp32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from autoprune.errors import RunFolderError
from autoprune.files import parsed_json
from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from autoprune.quantization.grid import LARGEST_WEIGHT, Range, RoundedWeight
from autoprune.runfolder import write_atomic
from autoprune.treatments import Treatment

_STEPS, _SCALES, _BIAS = ".steps", ".scales", ".bias"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The numbers of treated layers.

    `ranges` are those of int8 tensors by their keys (`Placement.keys`), `weights` the rounded ones of int8 layers by
    their names. `local` holds the treatments of layers that are treated alone, whose numbers follow from their weights,
    and `arithmetic` says how the device computes them.
    """

    ranges: Mapping[str, Range]
    weights: Mapping[str, RoundedWeight]
    local: Mapping[str, Treatment] = field(default_factory=dict)
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC

    def save(self, path: Path) -> None:
        """Write the numbers to a file, atomically."""
        tensors: dict[str, np.ndarray] = {}
        for name, weight in self.weights.items():
            tensors |= {name + _STEPS: weight.steps, name + _SCALES: weight.scales}
            tensors |= {} if weight.bias is None else {name + _BIAS: weight.bias}
        ranges = {key: [of_tensor.low, of_tensor.high] for key, of_tensor in self.ranges.items()}
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        local = {name: str(treatment) for name, treatment in self.local.items()}
        levels, largest = dict(self.arithmetic.accuracy_levels), self.arithmetic.largest_weight
        metadata = {"ranges": ranges, "local": local, "accuracy_levels": levels, "largest_weight": largest}
        write_atomic(path, save(contiguous, {name: json.dumps(value) for name, value in metadata.items()}))

    @classmethod
    def load(cls, path: Path) -> Quantization:
        """Read the numbers that `save` wrote; `RunFolderError` for any other file."""
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                ranges, local = parsed_json(metadata["ranges"]), parsed_json(metadata.get("local", "{}"))
                levels = parsed_json(metadata.get("accuracy_levels", "{}"))
                largest = parsed_json(metadata.get("largest_weight", str(LARGEST_WEIGHT)))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            names = [name.removesuffix(_STEPS) for name in tensors if name.endswith(_STEPS)]
            weights = {
                name: RoundedWeight(
                    steps=tensors[name + _STEPS], scales=tensors[name + _SCALES], bias=tensors.get(name + _BIAS)
                )
                for name in names
            }
            return cls(
                ranges={key: Range(low=low, high=high) for key, (low, high) in ranges.items()},
                weights=weights,
                local={name: Treatment.parse(text) for name, text in local.items()},
                arithmetic=Arithmetic(largest_weight=int(largest), accuracy_levels=levels),
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise RunFolderError(f"{path} is absent or damaged: {error}. `autoprune verify` makes it again") from error
