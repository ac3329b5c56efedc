"""Rounding to the int8 grid in PyTorch, with gradients that pass straight through.

`torch.fake_quantize_per_tensor_affine` rounds alike and takes more than ten times as long, because it also makes a mask
for the gradient; `scripts/benchmarks/int8.py` prints both times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoprune.quantization.grid import LARGEST_WEIGHT, LEVELS


def in_grid(values: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return numbers in the grid of an int8 tensor; the gradient is 1 where nothing is clipped, else 0.

    Example:
        >>> in_grid(torch.tensor([0.26, 9.0, -0.1]), 0.5, 0)
        tensor([0.5000, 9.0000, 0.0000])
    """
    clipped = values.clamp(-zero_point * scale, (LEVELS - zero_point) * scale)
    rounded = (clipped.detach() if clipped.requires_grad else clipped).div(scale).round_().mul_(scale)
    return clipped + (rounded - clipped).detach() if clipped.requires_grad else rounded


def weight_in_grid(weight: Tensor, scales: Tensor) -> Tensor:
    """Return a weight `[O, ...]` in the grid of its output channels, of `scales` `[O]`; the gradient is 1."""
    each = scales.reshape(-1, *[1] * (weight.dim() - 1))
    return straight_through(
        weight, lambda numbers: (numbers / each).round_().clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT).mul_(each)
    )


def straight_through(values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return rounded values, with the gradient of the values themselves."""
    rounded = rounding(values.detach())
    return values + (rounded - values).detach() if values.requires_grad and torch.is_grad_enabled() else rounded
