"""Which policies to time, so that every entry of the table has evidence."""

from __future__ import annotations

import numpy as np

from autoprune.latency.predictor import GeometryIndex
from autoprune.records import SearchSpace

_POOL_PER_POLICY = 20
_UNIFORM_STEPS = 8
_SPREAD = 0.35
"""Standard deviation of the log of a unit's keep ratio around the ratio of its policy."""


def random_widths(space: SearchSpace, unit_names: tuple[str, ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """Random policies, int64 `[count, U]`: half with independent levels, half with similar keep ratios in all units.

    Independent levels alone would all cost about the same; similar ratios reach the cheap and the dear ends.
    """
    columns = []
    shares = rng.uniform(0, 1, size=count)
    proportional = rng.permutation(count) < count // 2
    for name in unit_names:
        levels = np.array(space.levels[name], dtype=np.int64)
        independent = rng.choice(levels, size=count)
        wanted = shares * levels[-1] * np.exp(rng.normal(0, _SPREAD, size=count))
        columns.append(np.where(proportional, _nearest(levels, wanted), independent))
    return np.stack(columns, axis=1)


def covering_widths(
    space: SearchSpace, unit_names: tuple[str, ...], index: GeometryIndex, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` policies, int64 `[count, U]`, chosen greedily so that every entry occurs, and all about equally often.

    The extremes and a ladder of uniform policies always take part.
    """
    fixed = _uniform_ladder(space, unit_names)
    pool = random_widths(space, unit_names, _POOL_PER_POLICY * count, rng)
    numbers = index.numbers(pool)
    seen = np.zeros(numbers.max(initial=0) + 1)
    np.add.at(seen, index.numbers(fixed).ravel(), 1)
    chosen = []
    for _ in range(max(0, count - len(fixed))):
        gain = (1 / (1 + seen[numbers]) ** 2).sum(axis=1)
        best = int(gain.argmax())
        chosen.append(best)
        np.add.at(seen, numbers[best], 1)
    return np.concatenate([fixed, pool[chosen]])


def _uniform_ladder(space: SearchSpace, unit_names: tuple[str, ...]) -> np.ndarray:
    ratios = np.linspace(0, 1, _UNIFORM_STEPS)
    levels = [np.array(space.levels[name], dtype=np.int64) for name in unit_names]
    return np.unique(np.stack([_nearest(values, ratios * values[-1]) for values in levels], axis=1), axis=0)


def _nearest(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The level nearest to each wanted width."""
    return levels[np.abs(levels[:, None] - wanted[None, :]).argmin(axis=0)]
