"""Inputs, patterns and fits of tests of zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.sparsity.patterns import Pattern


def normal(*sizes: int, seed: int = 0) -> Tensor:
    """Return numbers of a normal distribution."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, size: int) -> Tensor:
    """Return inputs `[count, size]` that hardly vary in many directions."""
    return normal(count, size) * torch.logspace(0, -2, size) @ torch.linalg.qr(normal(size, size, seed=1))[0]


def pattern_of(text: str) -> Pattern:
    """Return a pattern from its text."""
    pattern = Pattern.parse(text)
    assert pattern is not None
    return pattern
