"""Fits of one direction of a recurrent layer to the sums of its gates in the whole model, whole or with zeros.

The sums are linear in `[x_t, h_(t-1)]` (see `recurrent`), so that the equations are those of `weight_fitting`. Hidden
states are those of the whole model: the layer's own depend on the weights that are fitted. The zeros of the weights
for inputs and for hidden states have patterns of their own; what stays of both makes up for them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.errors import TrialError
from autoprune.recovery.recurrent import Direction, Part
from autoprune.recovery.weight_fitting import (
    MOST_COLUMNS,
    System,
    Zeros,
    fitting_moments,
    mask_of,
    rounds_of,
    scores_of,
)

BothZeros = tuple[Zeros | None, Zeros | None]
"""Zeros of the weights for inputs and for hidden states; `None` for a weight that has none."""


@dataclass(frozen=True, kw_only=True)
class _PartFit:
    """Gates of a part: their place in the matrix `[G H, C + H]`, means of inputs and sums, and their equations."""

    part: Part
    place: tuple[slice, slice]
    inputs_mean: Tensor
    sums_mean: Tensor
    system: System


def fit_direction(
    direction: Direction, tensors: Sequence[Tensor], columns: Tensor, sums: Sequence[Tensor], zeros: BothZeros
) -> None:
    """Fit the weights and biases of a direction, in place.

    Args:
        direction: whose `weights` the tensors are.
        tensors: weights `[G H, C]` for inputs and `[G H, H]` for hidden states of G gates, and the biases if any.
        columns: input and last hidden state `[rows, C + H]` of some steps.
        sums: of the gates of every part of the direction in the whole model, `[rows, gates H]` each.
        zeros: that the weights get.

    Raises:
        TrialError: columns or sums are not finite.
    """
    if not all(bool(torch.isfinite(each).all()) for each in (columns, *sums)):
        raise TrialError("activations must be finite; those of a recurrent layer that is fitted are not")
    if columns.shape[1] > MOST_COLUMNS:
        _largest_stay(tensors, columns, zeros)
        return
    matrix = direction.matrix(tensors)
    fits = [_fit_of(direction, tensors, columns, *each) for each in zip(direction.parts, sums, strict=True)]
    kept = torch.ones_like(matrix, dtype=torch.bool)
    values, gains = _solved(fits, kept)
    for step in _steps(zeros):
        kept = _masks(scores_of(matrix, values, gains, kept), tensors[0].shape[1], step)
        values, gains = _solved(fits, kept)
    for fit in fits:
        own = values[fit.place]
        intercept = fit.sums_mean - own @ fit.inputs_mean
        direction.assign(fit.part, own.to(matrix.dtype), intercept.to(matrix.dtype), tensors)


def _fit_of(direction: Direction, tensors: Sequence[Tensor], columns: Tensor, part: Part, sums: Tensor) -> _PartFit:
    x, y = direction.read(part, columns, tensors).double(), sums.double()
    x_mean, y_mean = (x.mean(0), y.mean(0)) if direction.centred else (torch.zeros_like(x[0]), torch.zeros_like(y[0]))
    rows = direction.rows(part, tensors)
    own = direction.read(part, direction.matrix(tensors)[rows], tensors)
    second, cross = fitting_moments(own, (x - x_mean)[None], y - y_mean)
    begin = 0 if part.reads_input else tensors[0].shape[1]
    return _PartFit(
        part=part,
        place=(rows, slice(begin, begin + x.shape[1])),
        inputs_mean=x_mean,
        sums_mean=y_mean,
        system=System(second=second, cross=cross),
    )


def _solved(fits: Sequence[_PartFit], kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of all parts that are 0 where not `kept`, and the diagonals of the inverses."""
    values = torch.zeros_like(kept, dtype=torch.float64)
    gains = torch.ones_like(values)
    for fit in fits:
        of_part = fit.system.solved(kept[fit.place][None])
        values[fit.place], gains[fit.place] = (each[0] for each in of_part)
    return values, gains


def _steps(zeros: BothZeros) -> list[BothZeros]:
    """Return the zeros through which both weights go on to the last ones."""
    each = [rounds_of(one) if one is not None else [None] for one in zeros]
    count = max(len(rounds) for rounds in each) if any(one is not None for one in zeros) else 0
    inputs, hidden = (rounds[-1:] * (count - len(rounds)) + rounds for rounds in each)
    return list(zip(inputs[:count], hidden[:count], strict=True))


def _masks(scores: Tensor, inputs: int, zeros: BothZeros) -> Tensor:
    """Return where weights `[G H, C + H]` stay, of which the first `inputs` columns are those of the inputs."""
    parts = zip((scores[:, :inputs], scores[:, inputs:]), zeros, strict=True)
    return torch.cat([_all(part) if one is None else mask_of(part, one) for part, one in parts], dim=1)


def _all(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def _largest_stay(tensors: Sequence[Tensor], columns: Tensor, zeros: BothZeros) -> None:
    """Set the weights to zero that are smallest times the norm of what they read, in place."""
    norms = columns.square().mean(0).sqrt().split([tensor.shape[1] for tensor in tensors[:2]])
    for tensor, norm, one in zip(tensors, norms, zeros, strict=False):
        if one is not None:
            tensor.mul_(mask_of(tensor.abs() * norm, one))
