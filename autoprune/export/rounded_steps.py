"""Rounded weights as they are stored: whole steps of 8 or 4 bits, with a scale for every output or every 32 inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoprune.quantization.grid import BLOCK, rounded, rounded_blocks, weight_scales

_BLOCK_BITS = {"w8": 8, "w4": 4}
"""Bits of a step by the precisions that round blocks of inputs."""

ROUNDED = ("int8", "int8-dynamic", *_BLOCK_BITS)
"""Precisions whose weights can be stored as steps."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A weight as signed `steps`, int8 `[O, ...]`, of so many `bits`, and the sizes of the steps, float32 `scales`.

    `scales` are those of the outputs, `[O]`, or where `blocks`, those of 32 inputs each, `[O, B]` of a weight `[O, I]`.
    """

    steps: Tensor
    scales: Tensor
    bits: int = 8

    @classmethod
    def of(cls, weight: Tensor, precision: str = "int8") -> Steps | None:
        """Return the nearest steps of a weight in a precision; `None` where it cannot be rounded so."""
        if precision not in ROUNDED or (precision in _BLOCK_BITS and weight.dim() != 2):
            return None
        numbers = weight.detach().float().cpu().numpy()
        if precision not in _BLOCK_BITS:
            scales = weight_scales(numbers, None, 1.0)
            return cls(steps=torch.from_numpy(rounded(numbers, scales)), scales=torch.from_numpy(scales))
        bits = _BLOCK_BITS[precision]
        blocks = rounded_blocks(numbers, bits)
        signed = (blocks.steps.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
        steps = signed.reshape(len(signed), -1)[:, : blocks.inputs]
        return cls(steps=torch.from_numpy(steps), scales=torch.from_numpy(blocks.scales), bits=bits)

    @property
    def blocks(self) -> bool:
        """Whether scales are those of blocks of inputs."""
        return self.scales.dim() == 2

    @property
    def values(self) -> Tensor:
        """The weight in fp32."""
        if not self.blocks:
            return self.steps.float() * self.scales.reshape(-1, *[1] * (self.steps.dim() - 1))
        whole = filled(self.steps).float().unflatten(1, (-1, BLOCK)) * self.scales[:, :, None]
        return whole.flatten(1)[:, : self.steps.shape[1]]


def filled(steps: Tensor) -> Tensor:
    """Return steps `[O, I]` whose last block of inputs is filled up with zeros."""
    return functional.pad(steps, (0, -steps.shape[1] % BLOCK))


def scales_shape(shape: tuple[int, ...], *, blocks: bool) -> tuple[int, ...]:
    """Return the shape that the scales of a weight have."""
    return (shape[0], -(-shape[1] // BLOCK)) if blocks else (shape[0],)


def value_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many steps."""
    return -(-count * bits // 8)


def to_nibbles(steps: Tensor) -> Tensor:
    """Return steps from -8 to 7 as bytes of two, the first one in the lower half."""
    halves = functional.pad(steps.flatten(), (0, steps.numel() % 2)).numpy().astype(np.uint8) & 15
    return torch.from_numpy(halves[0::2] | halves[1::2] << 4)


def of_nibbles(stored: Tensor, count: int) -> Tensor:
    """Return so many steps, int8, of bytes of two."""
    numbers = stored.numpy()
    halves = np.stack([numbers & 15, numbers >> 4], axis=1).ravel()[:count].astype(np.int8)
    return torch.from_numpy(np.where(halves > 7, halves - 16, halves).astype(np.int8))
