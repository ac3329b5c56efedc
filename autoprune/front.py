"""Pareto fronts of latency (minimised) against score (maximised): dominance, hypervolume, knee, and picking a model.

Arrays are one-dimensional and of equal length, one entry per model. NaN and infinity are refused everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.records import COSTS
from autoprune.trials import FrontModel

Floats = npt.ArrayLike


def non_dominated(latency_ms: Floats, score: Floats) -> npt.NDArray[np.bool_]:
    """Return a mask of the points that no other point dominates.

    A point dominates another when it is no worse in both and better in one. So exact duplicates of a point on the front
    are all kept; of points with equal latency only the best score is, and of points with equal score only the lowest
    latency. Empty in, empty out. Memory grows with the square of the number of points.

    Args:
        latency_ms: `[points]`, finite.
        score: `[points]`, finite, higher is better.

    Returns:
        Booleans `[points]`.

    Example:
        >>> non_dominated([1.0, 2.0, 3.0], [0.90, 0.95, 0.94]).tolist()
        [True, True, False]
    """
    latency, value = _checked(latency_ms, score)
    no_worse = (latency[:, None] <= latency) & (value[:, None] >= value)
    better = (latency[:, None] < latency) | (value[:, None] > value)
    return np.logical_not((no_worse & better).any(axis=0))


def hypervolume(latency_ms: Floats, score: Floats, reference: tuple[float, float]) -> float:
    """Return the exact area that the points dominate, bounded by `reference = (latency_ms, score)`.

    Points that are not better than the reference in both add nothing, so the area of no points is 0. Compare two areas
    only when they have the same reference.

    Args:
        latency_ms: `[points]`, finite.
        score: `[points]`, finite, higher is better.
        reference: the slowest latency and the lowest score that count.

    Returns:
        Area in milliseconds times the score's unit.

    Example:
        >>> hypervolume([1.0, 2.0], [0.5, 1.0], reference=(3.0, 0.0))
        1.5
    """
    latency, value = _checked(latency_ms, score)
    worst_ms, worst_score = _checked([reference[0]], [reference[1]])
    inside = (latency < worst_ms) & (value > worst_score)
    latency, value = latency[inside], value[inside]
    order = np.lexsort((-value, latency))
    heights = np.maximum.accumulate(value[order]) - worst_score
    widths = np.diff(latency[order], append=worst_ms)
    return float(widths @ heights)


def knee(latency_ms: Floats, score: Floats) -> int:
    """Return the index of the front's point that lies farthest above the chord from its fastest to its best point.

    Both axes are scaled to the extent of the front, so units do not matter. Dominated points are never chosen. Where
    nothing lies above the chord (one or two points, straight or hollow fronts) the point with the best score is it.

    Args:
        latency_ms: `[points]`, finite, at least one.
        score: `[points]`, finite, higher is better.

    Raises:
        UsageError: when there is no point.

    Example:
        >>> knee([1.0, 2.0, 3.0], [0.50, 0.90, 0.95])
        1
    """
    latency, value = _checked(latency_ms, score)
    front = np.flatnonzero(non_dominated(latency, value))
    if not front.size:
        raise UsageError("a knee needs at least one point; got none")
    gain = np.round(_scaled(value[front]) - _scaled(latency[front]), 12)
    return int(front[np.lexsort((latency[front], -value[front], -gain))[0]])


def pick(
    models: Sequence[FrontModel],
    *,
    limit: Limit | None = None,
    min_score: float | None = None,
    knee: bool = False,
    cost: str = "latency_ms",
) -> FrontModel:
    """Choose one model: the best score within a limit on costs, else the cheapest with `min_score`, or the knee.

    Latency is the measured one where a model was measured, otherwise the predicted one. The limits also restrict the
    knee.

    Args:
        models: the models to choose from.
        limit: the most that the model may cost.
        min_score: smallest score on validation data.
        knee: choose the best compromise of cost and score, see `knee`.
        cost: one of `records.COSTS`: the cost of the cheapest model and of the knee.

    Raises:
        UsageError: when no limit and no knee was asked for, or no model qualifies (the message names the nearest one).
    """
    if limit is None and min_score is None and not knee:
        raise UsageError("say which model to pick: give a largest cost, a smallest score, or ask for the knee")
    if not models:
        raise UsageError("the front holds no models yet; let the search finish first")
    fitting = [m for m in models if limit is None or _excess(m, limit) <= 1]
    if not fitting:
        raise _too_dear(models, limit)
    good = [m for m in fitting if min_score is None or m.score >= min_score]
    if not good:
        raise _too_poor(fitting, min_score, limit)
    if knee:
        return good[_knee_of(good, cost)]
    if limit is None:
        return min(good, key=lambda m: (cost_of(m, cost), -m.score))
    return max(good, key=lambda m: (m.score, -cost_of(m, cost)))


def latency_of(model: FrontModel) -> float:
    """Return a model's measured latency in milliseconds, or the predicted one when it has not been measured."""
    known = model.latency_ms_predicted if model.latency_ms_measured is None else model.latency_ms_measured
    return math.inf if known is None else known


def cost_of(model: FrontModel, cost: str) -> float:
    """Return one of `records.COSTS` of a model; infinite where an older version of autoprune did not count it."""
    value = latency_of(model) if cost == "latency_ms" else getattr(model, cost)
    return math.inf if value is None else float(value)


def _excess(model: FrontModel, limit: Limit) -> float:
    """Return the largest cost of a model as a share of its maximum."""
    return max(cost_of(model, name) / most for name, most in zip(COSTS, limit.most, strict=True))


def _knee_of(models: Sequence[FrontModel], cost: str) -> int:
    return knee([cost_of(m, cost) for m in models], [m.score for m in models])


def _shown(model: FrontModel, limit: Limit | None) -> str:
    """Write the costs of a model that a limit is about; its latency without one."""
    return (limit or Limit.of(latency_ms=1)).shown(cost_of(model, name) for name in COSTS)


def _too_dear(models: Sequence[FrontModel], limit: Limit | None) -> UsageError:
    nearest = min(models, key=lambda m: _excess(m, limit) if limit else latency_of(m))
    timed = limit is not None and math.isfinite(limit.most[COSTS.index("latency_ms")])
    of_dense = f" ({nearest.latency_ratio:.1%} of dense)" if timed else ""
    return UsageError(
        f"no model takes at most {limit}; the nearest is {nearest.digest} with {_shown(nearest, limit)}{of_dense}. "
        "Allow more, or search with a smaller budget."
    )


def _too_poor(models: Sequence[FrontModel], min_score: float | None, limit: Limit | None) -> UsageError:
    nearest = max(models, key=lambda m: m.score)
    within = "" if limit is None else f" within {limit}"
    return UsageError(
        f"no model{within} scores at least {min_score:.4g}; the best is {nearest.digest} with {nearest.score:.4g} "
        f"at {_shown(nearest, limit)}. Ask for less, or search with a larger budget or effort."
    )


def _scaled(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    extent = np.ptp(values)
    return (values - values.min()) / extent if extent > 0 else np.zeros_like(values)


def _checked(latency_ms: Floats, score: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    latency, value = np.asarray(latency_ms, dtype=float), np.asarray(score, dtype=float)
    if latency.ndim != 1 or latency.shape != value.shape:
        raise UsageError(f"latency and score need one entry per model; got shapes {latency.shape} and {value.shape}")
    if not (np.isfinite(latency).all() and np.isfinite(value).all()):
        raise UsageError("latency and score must be finite; leave out models that have not been scored")
    return latency, value
