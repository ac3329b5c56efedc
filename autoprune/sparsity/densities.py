"""How a density of several weights is divided among them by their sizes alone. This module never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Return the share of numbers that each weight `[O, I, ...]` keeps, so that `density` of all are kept.

    A weight keeps a share in proportion to the sum of its sizes over their product, at most all.

    Source: Evci et al. 2020, https://arxiv.org/abs/1911.11134, section 3, after Mocanu et al. 2018.

    Example:
        >>> densities = erk_densities({"inputs": (64, 4), "states": (64, 16)}, 0.25)
        >>> {name: round(density, 2) for name, density in densities.items()}
        {'inputs': 0.57, 'states': 0.17}
    """
    numbers = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(numbers[name], 1) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        budget = density * sum(numbers.values()) - sum(numbers[name] for name in full)
        free = shapes.keys() - full
        scale = budget / max(sum(raw[name] * numbers[name] for name in free), 1e-30)
        over = {name for name in free if scale * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else max(scale * raw[name], 1 / numbers[name]) for name in shapes}
        full |= over
