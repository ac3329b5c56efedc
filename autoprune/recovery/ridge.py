"""A matrix that can be inverted whatever the data."""

from __future__ import annotations

import torch
from torch import Tensor


def ridged(matrix: Tensor, share: float) -> Tensor:
    """`matrix` `[D, D]` with a share of its mean diagonal added to the diagonal."""
    extra = share * float(matrix.diagonal().mean())
    return matrix + torch.eye(len(matrix), dtype=matrix.dtype) * max(extra, 1e-12)
