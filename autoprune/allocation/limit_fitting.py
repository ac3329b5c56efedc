"""Moving a policy onto a limit, so that no trial is spent on one that costs too much or is needlessly small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from autoprune.allocation.limits import Predict, fastest, fits
from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace

_CHUNK = 32
"""Points of a walk that are predicted at once."""

Indices = npt.NDArray[np.int64]

FitToLimit = Callable[[Policy, SearchSpace, Predict, Limit, np.random.Generator], Policy | None]
"""The signature of `fit_to_limit`."""


def fit_to_limit(
    policy: Policy, space: SearchSpace, predict: Predict, limit: Limit, rng: np.random.Generator
) -> Policy | None:
    """Project `policy` onto the limit: narrow random units level by level until it fits, then widen while it fits.

    The result is maximal: no single unit can go up one level within the limit. Deterministic in `rng`, and it leaves a
    maximal policy alone. None when the walks down to the smallest and the fastest policy meet nothing that fits.
    """
    start = np.array(space.places(policy), dtype=np.int64)
    down = _walk(start, np.zeros_like(start), rng)
    first = _first(down, True, space, predict, limit)
    if first is None and space.layer_names:  # the cheapest treatments on paper are not the fastest of narrow layers
        down = _walk(start, np.array(space.places(fastest(space, predict)), dtype=np.int64), rng)
        first = _first(down, True, space, predict, limit)
    if first is None:
        return None
    return space.at(_widen(down[first], space, predict, limit, rng).tolist())


def _widen(current: Indices, space: SearchSpace, predict: Predict, limit: Limit, rng: np.random.Generator) -> Indices:
    top = np.array([len(space.levels[name]) - 1 for name in space.searched], dtype=np.int64)
    up = _walk(current, top, rng)
    beyond = _first(up, False, space, predict, limit)
    current = up[-1 if beyond is None else max(beyond - 1, 0)]
    while (wider := current + np.eye(len(top), dtype=np.int64)[current < top]).size:
        fitting = _fitting(wider, space, predict, limit)
        if not fitting.any():
            break
        current = rng.choice(wider[fitting])
    return current


def _walk(start: Indices, end: Indices, rng: np.random.Generator) -> Indices:
    """All points of a random walk in single level steps, `(steps + 1, units)`, with `start` first and `end` last."""
    steps = rng.permutation(np.repeat(np.arange(len(start)), np.abs(end - start)))
    moves = np.eye(len(start), dtype=np.int64)[steps] * np.sign(end - start)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


def _first(points: Indices, wanted: bool, space: SearchSpace, predict: Predict, limit: Limit) -> int | None:
    """The first of the points that fits, or that does not; most walks need not be looked at to their ends."""
    for start in range(0, len(points), _CHUNK):
        matches = np.flatnonzero(_fitting(points[start : start + _CHUNK], space, predict, limit) == wanted)
        if matches.size:
            return start + int(matches[0])
    return None


def _fitting(points: Indices, space: SearchSpace, predict: Predict, limit: Limit) -> npt.NDArray[np.bool_]:
    return fits(predict([space.at(point) for point in points.tolist()]), limit)
