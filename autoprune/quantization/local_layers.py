"""Linear layers that are treated alone, computed in PyTorch as ONNX Runtime computes them.

Gradients pass straight through all rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.quantization.grid import BLOCK, LARGEST_WEIGHT, LEVELS, rounded, rounded_blocks, weight_scales
from autoprune.quantization.rounding import straight_through


def local_linear(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """Return the output `[..., O]` of a linear layer that is treated alone.

    Args:
        x: input `[..., I]`.
        weight: in fp32 `[O, I]`.
        bias: `[O]`, or `None`.
        precision: `int8-dynamic`: the input is rounded to the range of its own numbers, those of all examples of the
            batch together. `w8`, `w4`: its blocks are rounded to 8 bits with a scale each, as `MatMulNBits` of ONNX
            Runtime does at accuracy level 4.
    """
    round_input, round_weight = _ROUNDING[precision]
    return functional.linear(straight_through(x, round_input), straight_through(weight, round_weight), bias)


def on_own_grid(x: Tensor) -> Tensor:
    """Return numbers on the unsigned grid of 8 bits that their own range gives.

    Source: DynamicQuantizeLinear, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html.

    Example:
        >>> on_own_grid(torch.tensor([0.0, 0.504, 2.55]))
        tensor([0.0000, 0.5000, 2.5500])
    """
    lowest, highest = torch.aminmax(x)
    low, high = lowest.clamp(max=0), highest.clamp(min=0)
    scale = torch.where(high > low, (high - low) / LEVELS, 1.0)
    zero_point = (-low / scale).round().clamp(0, LEVELS)
    return ((x / scale).round() + zero_point).clamp_(0, LEVELS).sub_(zero_point).mul_(scale)


def _on_channel_grids(weight: Tensor) -> Tensor:
    numbers = weight.numpy()
    scales = weight_scales(numbers, None, 1.0)
    return torch.from_numpy(rounded(numbers, scales) * scales[:, None])


def _on_block_grids(bits: int, weight: Tensor) -> Tensor:
    return torch.from_numpy(rounded_blocks(weight.numpy(), bits).values)


def _inputs_on_block_grids(x: Tensor) -> Tensor:
    inputs = x.shape[-1]
    blocks = functional.pad(x, (0, -inputs % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST_WEIGHT
    steps = (blocks * torch.where(scales > 0, 1 / scales, 0.0)).round_()
    return (steps * scales).flatten(-2)[..., :inputs]


_Rounding = Callable[[Tensor], Tensor]

_ROUNDING: Mapping[str, tuple[_Rounding, _Rounding]] = {
    "int8-dynamic": (on_own_grid, _on_channel_grids),
    "w8": (_inputs_on_block_grids, partial(_on_block_grids, 8)),
    "w4": (_inputs_on_block_grids, partial(_on_block_grids, 4)),
}
"""Rounding of inputs and of weights by precision."""
