"""Densities by sizes alone."""

from __future__ import annotations

import math

import pytest

from autoprune.sparsity.densities import erk_densities

SHAPES = {"small": (4, 3), "large": (16, 8), "filters": (8, 4, 3, 3)}


def test_densities_by_sizes_alone() -> None:
    densities = erk_densities(SHAPES, 0.3)
    kept = sum(densities[name] * math.prod(shape) for name, shape in SHAPES.items())
    assert kept == pytest.approx(0.3 * sum(math.prod(shape) for shape in SHAPES.values()))
    assert densities["small"] == 1.0
    assert densities["large"] / densities["filters"] == pytest.approx((24 / 128) / (18 / 288))
