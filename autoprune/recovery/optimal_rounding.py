"""Rounding of weights by the second moments of what they multiply with: each rounding error is made up for by others.

The columns of a weight are rounded one after the other. What a column lost is added, in the share that least squares
gives, to the columns that are not rounded yet, so that the outputs of the layer change least, not its weights.

Source: Frantar and Alistarh 2022 (OBQ), https://arxiv.org/abs/2208.11580; Frantar et al. 2022 (GPTQ: the order is the
same in all rows, and the inverse is factored once), https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autoprune.quantization.grid import LARGEST_WEIGHT, Array, rounded
from autoprune.recovery.consumers import groups_of
from autoprune.recovery.moments import Moments
from autoprune.recovery.regression import ridged
from autoprune.recovery.windows import input_windows, position_dims, sample_windows

_MOST_COLUMNS = 2304
"""A layer with more columns is rounded to the nearest steps: its inverse would take longer than a fine-tuning."""

_ROWS_PER_COLUMN = 8
_DAMPING = 1e-2
"""Added to the diagonal of a second moment, as a share of the mean of that diagonal."""

_FITTED = 0.75
"""Share of the inputs that weights are rounded for; the others say whether this is better than the nearest steps."""


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """Moments of the input columns of a layer by group: of most inputs, and of the held-out others."""

    fitted: Moments
    held_out: Moments


class MomentRounding:
    """Looks at what layers read, and rounds their weights by its moments.

    The positions that are looked at are drawn at random, the same in every run.
    """

    def __init__(self) -> None:
        self._moments: dict[str, InputMoments] = {}
        self._generator = torch.Generator().manual_seed(0)

    def observe(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Take the moments of the input of a convolution or linear layer; the last arguments `args` of a node count."""
        groups, windows = groups_of(node, args), input_windows(node, args)
        dims = position_dims(windows)
        columns = math.prod(windows.shape[1 + dims :]) // groups
        if columns > _MOST_COLUMNS:
            return
        count = min(math.ceil(_ROWS_PER_COLUMN * columns / len(windows)), math.prod(windows.shape[1 : 1 + dims]))
        rows = sample_windows(windows, count, self._generator)
        rows = rows.unflatten(1, (groups, -1)).transpose(0, 1)
        fitted = math.ceil(_FITTED * rows.shape[1])
        moments = InputMoments(fitted=_moments(rows[:, :fitted]), held_out=_moments(rows[:, fitted:]))
        self._moments[node.name] = moments

    def rounded(self, node: str, weight: Array, scales: Array, *, centred: bool) -> Array:
        """Return the steps of a layer's weight, int8 `[O, ...]`; the nearest ones where its inputs were not looked at.

        Arguments are those of `rounded_by_moments`; `node` is the name of the layer's node.
        """
        moments = self._moments.get(node)
        if moments is None:
            return rounded(weight, scales)
        return rounded_by_moments(weight, scales, moments, centred=centred)


def _moments(rows: Tensor) -> Moments:
    """Return the moments of rows `[G, R, D]`."""
    count = max(rows.shape[1], 1)
    return Moments(mean=(rows.sum(1) / count).double(), raw=(rows.mT @ rows / count).double())


def rounded_by_moments(weight: Array, scales: Array, moments: InputMoments, *, centred: bool) -> Array:
    """Return a weight on the grid of its channels, rounded by moments where held-out outputs then change less.

    Args:
        weight: `[O, ...]`.
        scales: of the output channels, float32 `[O]`.
        moments: of the layer's inputs.
        centred: whether the layer has a bias, which takes up what rounding moves the mean of its outputs.

    Returns:
        The steps, int8 in the shape of the weight.
    """
    groups, columns = moments.fitted.mean.shape
    matrix = torch.from_numpy(weight).double().reshape(groups, -1, columns)
    steps = torch.from_numpy(scales).double().reshape(groups, -1, 1)
    nearest = torch.from_numpy(rounded(weight, scales)).reshape(matrix.shape).double()
    adapted = _column_by_column(matrix, steps, moments.fitted.second(centred=centred))
    second = moments.held_out.second(centred=centred)
    if _output_error(matrix - adapted * steps, second) < _output_error(matrix - nearest * steps, second):
        nearest = adapted
    return nearest.reshape(weight.shape).numpy().astype(np.int8)


def _output_error(change: Tensor, second: Tensor) -> float:
    """Return the mean squared change of the outputs for a change of the weights `[G, O, D]`."""
    return float((change @ second * change).sum())


def _column_by_column(weight: Tensor, steps: Tensor, second: Tensor) -> Tensor:
    """Round the columns of a weight `[G, O, D]` in turn, the ones with the largest inputs first.

    Args:
        weight: the weight.
        steps: size of a step, `[G, O, 1]`.
        second: second moment of the inputs, `[G, D, D]`.

    Returns:
        Numbers of steps in the shape of the weight.
    """
    order = second.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    second = second.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged(second, _DAMPING)))
    gains = torch.linalg.cholesky(inverse, upper=True)
    left, whole = weight.take_along_dim(order[:, None, :], 2) / steps, torch.empty_like(weight)
    for column in range(weight.shape[2]):
        whole[..., column] = left[..., column].round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        missing = (left[..., column] - whole[..., column]) / gains[:, column, column, None]
        left[..., column + 1 :] -= missing[..., None] * gains[:, None, column, column + 1 :]
    return whole.take_along_dim(order.argsort(1)[:, None, :], 2)
