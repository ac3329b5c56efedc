"""Every cost of a policy: its predicted latency and its exact sizes, in the order of `records.COSTS`."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive, AdditiveCost, CostTable
from autoprune.latency.predictor import LatencyPredictor
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.structure import Structure

Array = npt.NDArray[np.int64]
Part = tuple[tuple[int, ...], Callable[[Array], npt.NDArray[Any]]]
"""Units (indices), and what they cost together: `[P]` for widths `[P, U]`."""

_MOST_ENTRIES = 20_000
"""A part over more combinations of levels is replaced by its main effects."""

_NEVER = 1e6
"""Cost of a combination that has none: the latency table has no entry for it."""

_SIZES: Mapping[str, Callable[[Structure, Array], Array]] = {
    "params": Structure.params,
    "macs": Structure.macs,
    "bytes": Structure.bytes,
    "activation_bytes": Structure.peak_activation_bytes,
}


def sizes(structure: Structure, widths: Array) -> dict[str, Array]:
    """Return all costs but latency by name, each int64 `[P]`, for widths int64 `[P, U]`."""
    return {name: size(structure, widths) for name, size in _SIZES.items()}


def cost_matrix(
    structure: Structure, predictor: LatencyPredictor, policies: Sequence[Policy], wanted: Collection[str] = COSTS
) -> npt.NDArray[np.float64]:
    """Return the costs of policies in the order of `records.COSTS`; those that are not `wanted` are 0.

    A search asks thousands of times, and the peak of activations alone takes longer than the latency.

    Returns:
        float64 `[P, K]`: latency in milliseconds, bytes, counts.

    Raises:
        MissingEntryError: for a width that the latency table lacks.
        PolicyError: for a policy of another model.
    """
    widths = structure.widths(policies)
    costs = np.zeros((len(widths), len(COSTS)))
    for column, name in enumerate(COSTS):
        if name in wanted:
            costs[:, column] = predictor.predict(widths) if name == "latency_ms" else _SIZES[name](structure, widths)
    return costs


def additive_costs(structure: Structure, predictor: LatencyPredictor, space: SearchSpace) -> Additive:
    """Return every cost but the peak of activations as a sum of tables over the levels of the space."""
    parts: dict[str, list[Part]] = {"latency_ms": list(predictor.parts()), "params": [], "bytes": [], "macs": []}
    for name, units, cost in structure.tensor_costs():
        parts[name].append((units, cost))
    parts["macs"] = [(op.units, op.macs) for op in structure.operators]
    tabulated, constants = _Tabulated(structure, space), {"latency_ms": predictor.remainder_ms}
    return {name: tabulated.cost(of_cost, constants.get(name, 0.0)) for name, of_cost in parts.items()}


class _Tabulated:
    """Turns parts of a cost into tables over the levels of a space."""

    def __init__(self, structure: Structure, space: SearchSpace) -> None:
        self._names = [unit.name for unit in structure.units]
        self._levels = [np.array(space.levels[name], dtype=np.int64) for name in self._names]
        self._full = np.array([levels[-1] for levels in self._levels])

    def cost(self, parts: Iterable[Part], constant: float) -> AdditiveCost:
        """The sum of parts, those over the same units in one table; main effects stand for one that is too large."""
        groups: dict[tuple[int, ...], list[Part]] = defaultdict(list)
        for units, cost in parts:
            groups[units].append((units, cost))
        tables = []
        for units, together in groups.items():
            if not units:
                constant += self._values(together, self._full[None])[0]
            elif math.prod(len(self._levels[u]) for u in units) <= _MOST_ENTRIES:
                tables.append(self._table(units, together))
            else:
                offset, effects = self._main_effects(units, together)
                constant, tables = constant + offset, tables + effects
        return AdditiveCost(constant=float(constant), tables=tuple(tables))

    def _table(self, units: tuple[int, ...], parts: Sequence[Part]) -> CostTable:
        shape = [len(self._levels[u]) for u in units]
        rows = np.tile(self._full, (math.prod(shape), 1))
        rows[:, list(units)] = list(itertools.product(*(self._levels[u] for u in units)))
        return CostTable(units=tuple(self._names[u] for u in units), values=self._values(parts, rows).reshape(shape))

    def _main_effects(self, units: tuple[int, ...], parts: Sequence[Part]) -> tuple[float, list[CostTable]]:
        """A constant and one table for each unit, exact where all others stand at their middle level."""
        middle = self._full.copy()
        middle[list(units)] = [self._levels[u][len(self._levels[u]) // 2] for u in units]
        offset, tables = float(self._values(parts, middle[None])[0]), []
        for unit in units:
            rows = np.tile(middle, (len(self._levels[unit]), 1))
            rows[:, unit] = self._levels[unit]
            tables.append(CostTable(units=(self._names[unit],), values=self._values(parts, rows) - offset))
        return offset, tables

    def _values(self, parts: Sequence[Part], rows: Array) -> npt.NDArray[np.float64]:
        total = np.sum([cost(rows) for _, cost in parts], axis=0, dtype=float)
        return np.where(np.isnan(total), _NEVER, total)
