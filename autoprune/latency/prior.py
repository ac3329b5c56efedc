"""The prior of a table: what the runtime's profiler says about every geometry, or what its work suggests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from autoprune.device.timing import Kernels
from autoprune.latency.geometries import PricedOperator
from autoprune.latency.node_times import NodeOwners, node_times_ms
from autoprune.records import Geometry
from autoprune.structure.geometry import RECURRENT

_LEAST_MS = 1e-4
_OVERHEAD_MS = 1e-3
_MACS_PER_MS = 5e7
_ELEMENTS_PER_MS = 1e6
"""Rough costs of a small operator on one core. Only their proportions matter: the fit scales them to the evidence."""


def prior_ms(
    geometries: Sequence[Geometry],
    numbers: np.ndarray,
    kernels: Iterable[Kernels],
    dense: onnx.ModelProto | None,
    priced: Sequence[PricedOperator],
) -> tuple[np.ndarray, int]:
    """Prior cost of every geometry, float64 `[E]`; and how many of them no profiled model held.

    `numbers` `[P, varying operators]` are the geometries of the profiled policies, `kernels` what the profiler said
    about each, `priced` all operators, those that no unit changes included.

    A geometry that was not seen takes the time of the nearest of its kind, scaled by the root of the work; without any
    such, and for runtimes without a profiler, the work alone decides.
    """
    found: dict[int, list[float]] = defaultdict(list)
    if dense is not None:
        owners = NodeOwners(dense, priced)
        columns: dict[str, list[int]] = defaultdict(list)
        for column, operator in enumerate(op for op in priced if op.units):
            columns[operator.carrier].append(column)
        for row, times in zip(numbers, kernels, strict=False):
            for operator, cost in node_times_ms(times, owners).items():
                # Where a branch is gone, what it carried is charged elsewhere.
                held = [int(row[c]) for c in columns[priced[operator].carrier] if row[c] >= 0]
                if len(held) == 1:
                    found[held[0]].append(cost)
    known = {number: max(float(np.median(costs)), _LEAST_MS) for number, costs in found.items()}
    kinds: dict[Geometry, list[int]] = defaultdict(list)
    for number in known:
        kinds[geometries[number].kind].append(number)
    prior = [known[i] if i in known else _nearest_ms(geometries, i, known, kinds) for i in range(len(geometries))]
    return np.array(prior), len(geometries) - len(known)


def work_ms(geometry: Geometry) -> float:
    """What an operator would cost if multiplications and memory traffic were all that counts."""
    positions = max(1, geometry.out_rows) * max(1, geometry.out_columns)
    traffic = positions * (max(1, geometry.c_in) + max(1, geometry.c_out)) / _ELEMENTS_PER_MS
    macs = positions * _work(geometry) * float(np.prod(geometry.kernel or (1,))) / _MACS_PER_MS
    return _OVERHEAD_MS + traffic + macs


def _nearest_ms(
    geometries: Sequence[Geometry],
    wanted: int,
    known: Mapping[int, float],
    kinds: Mapping[Geometry, Sequence[int]],
) -> float:
    goal = geometries[wanted]
    same = kinds.get(goal.kind, ())
    if not same:
        return work_ms(goal)
    sizes = np.array([[geometries[i].c_in, geometries[i].c_out] for i in same], dtype=float)
    distance = np.abs(np.log(sizes / [goal.c_in, goal.c_out])).sum(axis=1)
    nearest = same[int(distance.argmin())]
    return known[nearest] * (_work(goal) / _work(geometries[nearest])) ** 0.5


def _work(geometry: Geometry) -> float:
    if geometry.op in RECURRENT:
        hidden = geometry.c_out / geometry.groups
        return RECURRENT[geometry.op] * geometry.c_out * (geometry.c_in + hidden)
    return max(1, geometry.c_in) * max(1, geometry.c_out) / max(1, geometry.groups)
