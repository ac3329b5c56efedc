"""How a device computes treated layers: the outermost steps of int8 weights, and accuracy levels.

Accuracy levels say how `MatMulNBits` of ONNX Runtime computes layers whose weights alone are rounded. On CPUs, levels 0
to 3 are one kernel for inputs in fp32; level 4 rounds blocks of inputs to int8.

Source: `MatMulNBits`, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoprune.quantization.grid import LARGEST_WEIGHT

FP32_INPUTS, INT8_INPUTS = 1, 4

WEIGHT_ONLY = ("w4", "w8")
"""Precisions that have accuracy levels."""

AccuracyLevels = Mapping[str, int]
"""Levels by precision; a precision that is not there has `INT8_INPUTS`."""

NOT_CHOSEN: AccuracyLevels = {}


def level_of(precision: str, levels: AccuracyLevels) -> int:
    """Return the accuracy level of a precision."""
    return levels.get(precision, INT8_INPUTS)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a device computes: `largest_weight` is the outermost step of int8 weights (see `adds_in_16_bits`)."""

    largest_weight: int = LARGEST_WEIGHT
    accuracy_levels: AccuracyLevels = field(default_factory=dict)


DEFAULT_ARITHMETIC = Arithmetic()
