"""The prior of a table: what the runtime's profiler says about every geometry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.errors import LatencyError
from autoprune.latency.bench import Bench
from autoprune.latency.geometries import PricedOperator
from autoprune.latency.node_times import NodeOwners, node_times_ms
from autoprune.latency.predictor import GeometryIndex
from autoprune.records import Geometry

_LEAST_MS = 1e-4
_UNKNOWN_MS = 1e-3


def prior_ms(
    bench: Bench,
    priced: Sequence[PricedOperator],
    geometries: Sequence[Geometry],
    index: GeometryIndex,
    widths: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Node times of every geometry, float64 `[E]`, seen in the policies `widths` `[P, U]`; and how many were not seen.

    Those take the time of the nearest geometry of the same kind, scaled by the root of the work.
    Raises `LatencyError` when the profiler reports nothing that can be attributed.
    """
    owners = NodeOwners(bench.dense, priced)
    found: dict[int, list[float]] = defaultdict(list)
    for row, model in zip(index.numbers(widths), bench.models(widths, "operators"), strict=True):
        for operator, cost in node_times_ms(model, bench.target, bench.feeds, owners).items():
            found[int(row[operator])].append(cost)
    if not found:
        raise LatencyError("the runtime's profiler reported no operator of the model; nothing can be attributed")
    known = {number: max(float(np.median(costs)), _LEAST_MS) for number, costs in found.items()}
    prior = [known[i] if i in known else _nearest_ms(geometries, i, known) for i in range(len(geometries))]
    return np.array(prior), len(geometries) - len(known)


def _nearest_ms(geometries: Sequence[Geometry], wanted: int, known: Mapping[int, float]) -> float:
    goal = geometries[wanted]
    same = [i for i in known if _kind(geometries[i]) == _kind(goal)]
    if not same:
        return _UNKNOWN_MS
    sizes = np.array([[geometries[i].c_in, geometries[i].c_out] for i in same], dtype=float)
    distance = np.abs(np.log(sizes / [goal.c_in, goal.c_out])).sum(axis=1)
    nearest = same[int(distance.argmin())]
    return known[nearest] * (_work(goal) / _work(geometries[nearest])) ** 0.5


def _kind(geometry: Geometry) -> tuple[object, ...]:
    return geometry.op, geometry.height, geometry.width, geometry.kernel, geometry.stride, geometry.fused


def _work(geometry: Geometry) -> float:
    return max(1, geometry.c_in) * max(1, geometry.c_out) / max(1, geometry.groups)
