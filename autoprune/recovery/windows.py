"""Input windows and outputs of the layers that least squares fits, position by position.

Windows are `[N, H, W, ...]` with what a position reads behind; those of 3-d convolutions are `[N, T, H, W, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from autoprune.recovery.consumers import MATRIX, TRANSPOSED, input_of


def input_windows(node: fx.Node, args: tuple[Any, ...]) -> Tensor:
    """Return the input windows of a consumer, one for each output position: `[N, H, W, ...]`, a view."""
    if node.target in MATRIX:
        return _rows(input_of(node, args))
    return _transposed_windows(args) if node.target in TRANSPOSED else _windows(args)


def output_positions(node: fx.Node, output: Tensor) -> Tensor:
    """Return the output of a consumer by position, as `input_windows` orders them: `[N, H, W, O]`, a view."""
    if node.target in MATRIX:
        return _rows(output)
    output = output.movedim(1, -1)
    return output.unsqueeze(1) if output.dim() == 3 else output


def position_dims(windows: Tensor) -> int:
    """Return the number of dimensions with positions: 3 for windows (8 dimensions) and outputs (5) of 3-d layers."""
    return 3 if windows.dim() in (5, 8) else 2


def kept_positions(node: fx.Node, masks: Mapping[tuple[str, str, int], np.ndarray]) -> Tensor | None:
    """Return which output positions of the dense model are left in the pruned one: bool `[H * W]`, `None` for all.

    A linear layer has a position for every index of the dimensions between the first and the last one of its input.
    These may be channels, as in layers that mix tokens, or that all heads share.
    """
    shape = node.meta["val"].shape
    between = {dim: masks.get(("eval", node.name, dim)) for dim in range(1, len(shape) - 1)}
    if node.target not in MATRIX or all(mask is None or mask.all() for mask in between.values()):
        return None
    kept = np.ones(1, dtype=bool)
    for dim, mask in between.items():
        kept = np.logical_and.outer(kept, np.ones(int(shape[dim]), dtype=bool) if mask is None else mask).ravel()
    return torch.from_numpy(kept)


def sample_windows(windows: Tensor, count: int, generator: torch.Generator, kept: Tensor | None = None) -> Tensor:
    """Draw up to `count` random positions of every example, each example its own, and return their windows `[rows, D]`.

    Args:
        windows: `[N, H, W, ...]` or `[N, T, H, W, ...]`, which are flattened to `D` numbers each.
        count: positions of each example.
        generator: the same state draws the same positions.
        kept: bool `[H * W]` over the positions of the dense model, when `windows` hold only the kept ones. The draw is
            then the same as among all positions, without those that were removed.
    """
    sizes = windows.shape[1 : 1 + position_dims(windows)]
    total = math.prod(sizes) if kept is None else len(kept)
    drawn = torch.rand((len(windows), total), generator=generator)
    positions = drawn.topk(min(count, total), largest=False).indices
    examples = torch.arange(len(windows))[:, None].expand_as(positions)
    if kept is not None:
        left = kept[positions]
        examples, positions = examples[left], (kept.cumsum(0) - 1)[positions[left]]
    return windows[(examples, *torch.unravel_index(positions, sizes))].reshape(examples.numel(), -1)


def _rows(x: Tensor) -> Tensor:
    """View the inputs of a linear layer as windows `[N, rows, 1, D]`."""
    return x.reshape(len(x), -1, 1, x.shape[-1])


def by_example(windows: Tensor, examples: int) -> Tensor:
    """Return windows `[N, H, W, ...]` with all positions of an example together, where `forward` made them examples."""
    is_one = math.prod(windows.shape[1 : 1 + position_dims(windows)]) == 1
    if len(windows) > examples > 0 and len(windows) % examples == 0 and is_one:
        return windows.reshape(examples, -1, *windows.shape[2:])
    return windows


def _windows(args: tuple[Any, ...]) -> Tensor:
    """View the padded input of a convolution as windows `[N, H, W, C, kernel height, kernel width]` (3-d: with T)."""
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel, padding = given[0], tuple(given[1].shape[2:]), given[4]
    stride, dilation = _spread(given[3], len(kernel)), _spread(given[5], len(kernel))
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        total = reach if padding == "same" else [0] * len(kernel)
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _spread(padding, len(kernel))]
    return _unfolded(x, kernel, stride, sides, dilation)


def _transposed_windows(args: tuple[Any, ...]) -> Tensor:
    """Return the windows of a transposed convolution: those of a convolution of its input with zeros between entries.

    The kernel of that convolution is flipped (see `Consumer.matrix`). A negative padding crops.
    """
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 0, 1, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel = given[0], tuple(given[1].shape[2:])
    stride, padding, extra, dilation = (_spread(given[k], len(kernel)) for k in (3, 4, 5, 7))
    spread = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    apart = x.new_zeros((*x.shape[:2], *spread))
    apart[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    before = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    sides = [(b, b + e) for b, e in zip(before, extra, strict=True)]
    return _unfolded(apart, kernel, (1,) * len(kernel), sides, dilation)


def _unfolded(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    sides: Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
) -> Tensor:
    """Pad `x` by `sides` and view it as windows `[N, H, W, C, kernel height, kernel width]` (3-d: with T).

    Channels come last in memory: what a window reads is then close together, and drawing windows takes a half to a
    quarter of the time.
    """
    x = F.pad(x, [side for pair in reversed(sides) for side in pair]).movedim(1, -1).contiguous().movedim(-1, 1)
    for axis in range(len(kernel)):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    if len(kernel) == 1:
        x = x.unsqueeze(2).unsqueeze(4)
    return x.movedim(1, x.dim() // 2)


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else (tuple(value) * rank)[:rank]
