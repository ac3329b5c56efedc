"""The prior of a table: the profiled time of every geometry, or an estimate from its work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoprune.latencies import CONVERSIONS, Geometry
from autoprune.structure.geometry import RECURRENT
from autoprune.treatments import INT8

_LEAST_MS = 1e-4
_OVERHEAD_MS = 1e-3
_MACS_PER_MS = 5e7
_ELEMENTS_PER_MS = 1e6
_CONVERTED_PER_MS = 2e6
_INT8_GAIN = 3.0
"""Rough costs of a small operator on one core. Only their proportions matter: the fit scales them to the evidence."""


def prior_ms(geometries: Sequence[Geometry], profiled_ms: Mapping[int, float]) -> np.ndarray:
    """Return the prior cost of every geometry in milliseconds, float64 `[E]`, all above 0.

    A geometry that no profiled model held takes the time of the nearest profiled one of its kind, scaled by the root of
    their work. Without any of its kind, and for runtimes without a profiler, its work alone decides.

    Args:
        geometries: The `E` geometries of a table.
        profiled_ms: Milliseconds by position in `geometries`, of those that profiled models held.
    """
    known = {number: max(ms, _LEAST_MS) for number, ms in profiled_ms.items()}
    by_kind: dict[Geometry, list[int]] = defaultdict(list)
    for number in known:
        by_kind[geometries[number].kind].append(number)
    if any(geometry.treatment for geometry in geometries):
        _add_related(geometries, known, by_kind)
    return np.array(
        [known[i] if i in known else _nearest_ms(geometries, i, known, by_kind) for i in range(len(geometries))]
    )


def work_ms(geometry: Geometry) -> float:
    """Return the cost of an operator in milliseconds if only multiplications and memory traffic counted.

    Source: rough rates of one core; the fit scales their sum to the evidence.
    """
    positions = max(1, geometry.out_rows) * max(1, geometry.out_columns)
    if geometry.op in CONVERSIONS:
        return _OVERHEAD_MS + positions * geometry.c_out / _CONVERTED_PER_MS
    traffic = positions * (max(1, geometry.c_in) + max(1, geometry.c_out)) / _ELEMENTS_PER_MS
    macs = positions * _work(geometry) * float(np.prod(geometry.kernel or (1,))) / _MACS_PER_MS
    macs /= _INT8_GAIN if geometry.treatment.startswith(INT8.precision) else 1
    return _OVERHEAD_MS + traffic + macs


def _add_related(
    geometries: Sequence[Geometry], known: Mapping[int, float], by_kind: dict[Geometry, list[int]]
) -> None:
    """Add kinds that no profiled model held: those of the same operator, whatever rides on it, stand for them.

    Where layers are treated, an operator meets many riders, and its own work decides.
    """
    related: dict[Geometry, list[int]] = defaultdict(list)
    for number in known:
        related[replace(geometries[number].kind, fused="")].append(number)
    for kind in {geometry.kind for geometry in geometries} - by_kind.keys():
        if replace(kind, fused="") in related:
            by_kind[kind] = related[replace(kind, fused="")]


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
