"""The int8 grid: scales, zero points and rounded weights, the same for the ONNX file and its twin in PyTorch.

Activations are unsigned and asymmetric, one scale for a tensor: q = round(x / scale) + zero point, 0 to 255. Weights
are signed and symmetric, one scale for each output channel: q = round(w / scale), -127 to 127. A bias is int32 with
the scale of the sums that it is added to, which is the input's times the weight's.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; the operators QuantizeLinear and QLinearConv of ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

LEVELS = 255
"""Steps between the smallest and the largest number of a tensor."""

LARGEST_WEIGHT = 127

LARGEST_SATURATING_WEIGHT = 63
"""Of weights of 7 bits, for CPUs that add two products of an int8 layer in 16 bits: 2 x 255 x 63 still fits.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "Data type selection".
"""

_LARGEST_BIAS = float(2**30)
"""Half of what int32 holds: the other half is left to the sums."""

SMALLEST_SCALE = 1e-12
"""Scale of a tensor or a filter of zeros; products of two such scales are no denormals."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The interval of a tensor's numbers that int8 covers; it is widened to hold 0, which the grid holds exactly."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range is two finite numbers, the lower one first; got {self.low!r} and {self.high!r}")

    @property
    def scale(self) -> float:
        """Step of the grid, a float32 number."""
        step = (max(self.high, 0.0) - min(self.low, 0.0)) / LEVELS
        return float(np.float32(max(step, SMALLEST_SCALE)))

    @property
    def zero_point(self) -> int:
        """Number of the grid's step that is 0."""
        return int(np.clip(np.rint(-min(self.low, 0.0) / self.scale), 0, LEVELS))


@dataclass(frozen=True, kw_only=True)
class RoundedWeight:
    """A weight on the grid: `steps` int8 `[O, ...]`, `scales` float32 `[O]`, and its layer's bias float32 `[O]`."""

    steps: Array
    scales: Array
    bias: Array | None = None

    @property
    def values(self) -> Array:
        """The weights as numbers, float32 `[O, ...]`."""
        return self.steps.astype(np.float32) * _per_channel(self.scales, self.steps.ndim)


def nearest(
    weight: Array, bias: Array | None, input_scale: float, *, largest_weight: int = LARGEST_WEIGHT
) -> RoundedWeight:
    """Round a weight `[O, ...]` to the nearest steps of the grid, of which the outermost is `largest_weight`."""
    scales = weight_scales(weight, bias, input_scale, largest_weight=largest_weight)
    return RoundedWeight(steps=rounded(weight, scales), scales=scales, bias=bias)


def weight_scales(
    weight: Array, bias: Array | None, input_scale: float, *, largest_weight: int = LARGEST_WEIGHT
) -> Array:
    """Return the scale of every output channel, float32 `[O]`.

    A filter is as fine as its largest weight allows, but never so fine that its bias does not fit in int32: filters
    of almost dead channels would.

    Args:
        weight: `[O, ...]`.
        bias: `[O]`, or `None`.
        input_scale: scale of the tensor that the layer reads.
        largest_weight: step of the largest number of a filter.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1, initial=0)
    scales = largest.astype(np.float64) / largest_weight
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias).astype(np.float64) / (_LARGEST_BIAS * input_scale))
    return np.maximum(scales, SMALLEST_SCALE).astype(np.float32)


def rounded(weight: Array, scales: Array) -> Array:
    """Return weights `[O, ...]` on the grid of their channels, int8, each rounded to the nearest step."""
    steps = np.rint(weight / _per_channel(scales, weight.ndim))
    return np.clip(steps, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)


def rounded_bias(bias: Array, scales: Array, input_scale: float) -> tuple[Array, Array]:
    """Return a bias `[O]` in int32, and its scales, float32 `[O]`."""
    of_sums = (np.float32(input_scale) * scales).astype(np.float32)
    steps = np.rint(bias.astype(np.float64) / of_sums)
    limit = np.iinfo(np.int32).max
    return np.clip(steps, -limit, limit).astype(np.int32), of_sums


def bias_in_grid(bias: Array, scales: Array, input_scale: float) -> Array:
    """Return a bias `[O]` rounded to the steps of `rounded_bias`.

    A step is not always small beside the steps of the output: twin and file must round alike.
    """
    steps, of_sums = rounded_bias(bias, scales, input_scale)
    return (steps * of_sums.astype(np.float64)).astype(np.float32)


BLOCK = 32
"""Inputs of an output channel that share a scale where weights alone are rounded."""


@dataclass(frozen=True, kw_only=True)
class RoundedBlocks:
    """A weight `[O, I]` on the grids of its blocks of `BLOCK` inputs, the last one filled up with zeros.

    `steps` uint8 `[O, B, BLOCK]`, the middle of their 2^bits numbers is 0; `scales` float32 `[O, B]`, also below 0.
    """

    steps: Array
    scales: Array
    bits: int
    inputs: int

    @property
    def values(self) -> Array:
        """The weights as numbers, float32 `[O, I]`."""
        numbers = (self.steps.astype(np.float32) - 2 ** (self.bits - 1)) * self.scales[..., None]
        return numbers.reshape(len(numbers), -1)[:, : self.inputs]


def rounded_blocks(weight: Array, bits: int) -> RoundedBlocks:
    """Round a weight `[O, I]` block by block: the largest number of a block is the lowest step, which has no opposite.

    Source: the grid of `MatMulNBits` without zero points in ONNX Runtime.
    """
    outputs, inputs = weight.shape
    count, middle = -(-inputs // BLOCK), 2 ** (bits - 1)
    padded = np.zeros((outputs, count * BLOCK), np.float32)
    padded[:, :inputs] = weight
    blocks = padded.reshape(outputs, count, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)[..., 0]
    scales = largest / np.float32(-middle)
    scales = np.where(np.abs(scales) < SMALLEST_SCALE, np.float32(SMALLEST_SCALE), scales)
    steps = np.clip(np.rint(blocks / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    return RoundedBlocks(steps=steps, scales=scales.astype(np.float32), bits=bits, inputs=inputs)


def _per_channel(scales: Array, dimensions: int) -> Array:
    return scales.reshape(-1, *[1] * (dimensions - 1))
