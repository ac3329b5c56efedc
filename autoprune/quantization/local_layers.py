"""Layers that are treated alone, computed in PyTorch as ONNX Runtime computes them.

Gradients pass straight through all rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.quantization.arithmetic import INT8_INPUTS, WEIGHT_ONLY
from autoprune.quantization.grid import BLOCK, LARGEST_WEIGHT, LEVELS, rounded, rounded_blocks, weight_scales
from autoprune.quantization.rounding import straight_through


def local_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    precision: str,
    accuracy_level: int = INT8_INPUTS,
    largest_weight: int = LARGEST_WEIGHT,
) -> Tensor:
    """Return the output `[..., O]` of a linear layer that is treated alone.

    Args:
        x: input `[..., I]`.
        weight: in fp32 `[O, I]`.
        bias: `[O]`, or `None`.
        precision: `int8-dynamic`: the input is rounded to the range of its own numbers, those of all examples of the
            batch together. `w8`, `w4`: at accuracy level 4, its blocks are rounded to 8 bits with a scale each, as
            `MatMulNBits` of ONNX Runtime does; at other levels it stays in fp32.
        accuracy_level: of `w8` and `w4`.
        largest_weight: the outermost step of weights in `int8-dynamic`.
    """
    if precision not in WEIGHT_ONLY:
        on_grids = partial(_on_channel_grids, largest_weight)
        return functional.linear(straight_through(x, on_own_grid), straight_through(weight, on_grids), bias)
    round_input, round_weight = _inputs_on_block_grids, partial(_on_block_grids, 8 if precision == "w8" else 4)
    if accuracy_level != INT8_INPUTS:
        return functional.linear(x, straight_through(weight, round_weight), bias)
    return functional.linear(straight_through(x, round_input), straight_through(weight, round_weight), bias)


def int8_dynamic_lstm(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], biased: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, batch_first: bool, largest_weight: int = LARGEST_WEIGHT,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what `aten.lstm` does for one layer in `int8-dynamic`: outputs, last hidden and last cell states.

    The input has the range of all its steps, and every step's hidden states have theirs.
    """
    on_grids = partial(_on_channel_grids, largest_weight)
    steps = straight_through(x.transpose(0, 1) if batch_first else x, on_own_grid)
    each, outputs = 4 if biased else 2, []
    for direction in range(2 if bidirectional else 1):
        of_inputs, of_states, *biases = weights[direction * each : (direction + 1) * each]
        gates = functional.linear(
            steps, straight_through(of_inputs, on_grids), biases[0] + biases[1] if biased else None
        )
        recurrent = straight_through(of_states, on_grids)
        outputs.append(_lstm_steps(gates, recurrent, *(state[direction] for state in states), reverse=direction == 1))
    hidden = torch.cat([of_steps for of_steps, _ in outputs], dim=-1)
    cells = torch.stack([cell for _, cell in outputs])
    last = torch.stack([of_steps[-1 if number == 0 else 0] for number, (of_steps, _) in enumerate(outputs)])
    return hidden.transpose(0, 1) if batch_first else hidden, last, cells


def _lstm_steps(
    gates: Tensor, recurrent: Tensor, hidden: Tensor, cell: Tensor, *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the hidden states of all steps `[T, N, H]` and the last cell state `[N, H]`.

    `gates` `[T, N, 4 H]` are the shares of the inputs, `recurrent` `[4 H, H]` the weights of the states.
    """
    after = []
    for of_inputs in gates.flip(0) if reverse else gates:
        sums = of_inputs + functional.linear(straight_through(hidden, on_own_grid), recurrent)
        update, forget, new, out = sums.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + update.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        after.append(hidden)
    return torch.stack(after[::-1] if reverse else after), cell


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


def _on_channel_grids(largest_weight: int, weight: Tensor) -> Tensor:
    numbers = weight.numpy()
    scales = weight_scales(numbers, None, 1.0, largest_weight=largest_weight)
    return torch.from_numpy(rounded(numbers, scales) * scales[:, None])


def _on_block_grids(bits: int, weight: Tensor) -> Tensor:
    return torch.from_numpy(rounded_blocks(weight.numpy(), bits).values)


def _inputs_on_block_grids(x: Tensor) -> Tensor:
    inputs = x.shape[-1]
    blocks = functional.pad(x, (0, -inputs % BLOCK)).unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(dim=-1, keepdim=True) / LARGEST_WEIGHT
    steps = (blocks * torch.where(scales > 0, 1 / scales, 0.0)).round_()
    return (steps * scales).flatten(-2)[..., :inputs]
