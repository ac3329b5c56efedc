"""Ridge regression of a layer's missing outputs on its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 1e-3
"""Added to the diagonal of X^T X, as a share of the mean of that diagonal."""


def regression(rows: Tensor, target: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the ridge regression of `target` `[R, O]` on `rows` `[R, D]`: weights `[O, D]` and an intercept `[O]`.

    The intercept is 0 unless `centred`. The ridge pulls the weights to 0, so a target of residuals changes weights only
    where the rows ask for it. A leading dimension of groups has a regression for each.
    """
    x, y = (each.mean(-2) if centred else torch.zeros_like(each[..., 0, :]) for each in (rows, target))
    inputs, outputs, count = rows - x[..., None, :], target - y[..., None, :], rows.shape[-2]
    second = ridged((inputs.mT @ inputs / count).double(), _RIDGE)
    weight = torch.linalg.solve(second, (inputs.mT @ outputs / count).double()).mT.to(rows.dtype)
    return weight, y - (weight @ x if x.dim() == 1 else (weight @ x[..., None]).squeeze(-1))


def ridged(matrix: Tensor, share: float) -> Tensor:
    """Return `matrix` `[..., D, D]` with a share of its mean diagonal added to the diagonal: it can be inverted."""
    extra = (share * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp(min=1e-12)
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype) * extra[..., None, None]
