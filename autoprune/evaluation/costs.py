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
from autoprune.errors import PolicyError
from autoprune.latency.predictor import LatencyPredictor
from autoprune.latency.stand_in import MacsPredictor
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.structure import Structure
from autoprune.treatments import DENSE

Array = npt.NDArray[np.int64]
Part = tuple[tuple[int, ...], Callable[[Array], npt.NDArray[Any]]]
"""Columns of rows, units and layers, and what they cost together: `[P]` for rows `[P, U + L]`."""

_MOST_ENTRIES = 20_000
"""A part over more combinations of widths is replaced by its main effects."""

_MOST_TREATED_ENTRIES = 200_000
"""The same with the treatments of layers counted, too: a concatenation of many layers has 2 to the power of them."""

_NEVER = 1e6
"""Cost of a combination that has none: the latency table has no entry for it."""

_SIZES: Mapping[str, Callable[[Structure, Array, Sequence[str]], Array]] = {
    "params": Structure.params,
    "bytes": Structure.bytes,
    "macs": Structure.macs,
}
"""Costs that widths and treatments decide."""


def sizes(structure: Structure, rows: Array, layers: Sequence[str] = ()) -> dict[str, Array]:
    """Return all costs but latency by name, each int64 `[P]`.

    Precisions change the bytes of weights alone: `params` and `macs` are counts, and ranks change these, too.
    `activation_bytes` are those of the model in fp32 with whole weights.

    Args:
        structure: of the model.
        rows: int64 `[P, U + L]` (`structure.rows`).
        layers: names of the `L` layers.
    """
    return {name: _size(name, structure, rows, layers) for name in COSTS if name != "latency_ms"}


def _size(name: str, structure: Structure, rows: Array, layers: Sequence[str]) -> Array:
    if name == "activation_bytes":
        return structure.peak_activation_bytes(rows[:, : len(structure.units)])
    return _SIZES[name](structure, rows, layers)


def cost_matrix(
    structure: Structure,
    predictor: LatencyPredictor | MacsPredictor,
    policies: Sequence[Policy] | Array,
    wanted: Collection[str] = COSTS,
) -> npt.NDArray[np.float64]:
    """Return the costs of policies in the order of `records.COSTS`; those that are not `wanted` are 0.

    Policies may be given as rows (`structure.rows`). A search asks thousands of times, and the peak of activations
    alone takes longer than the latency.

    Returns:
        float64 `[P, K]`: latency in milliseconds, bytes, counts.

    Raises:
        MissingEntryError: for a width or a treatment that the latency table lacks.
        PolicyError: for a policy of another model.
    """
    layers = predictor.layers
    rows = policies if isinstance(policies, np.ndarray) else structure.rows(policies, layers)
    costs = np.zeros((len(rows), len(COSTS)))
    for column, name in enumerate(COSTS):
        if name in wanted:
            timed = name == "latency_ms"
            costs[:, column] = predictor.predict(rows) if timed else _size(name, structure, rows, layers)
    return costs


def additive_costs(
    structure: Structure, predictor: LatencyPredictor | MacsPredictor, space: SearchSpace, deviations: float = 0.0
) -> Additive:
    """Return every cost but the peak of activations as a sum of tables over the levels of the space.

    A layer of the latency table that the space leaves out is dense. Every part of the latency has so many of its own
    standard `deviations` added.

    Raises:
        PolicyError: the space treats a layer that the latency table does not know.
    """
    unknown = [name for name in space.layer_names if name not in predictor.layers and len(space.levels[name]) > 1]
    if unknown:
        raise PolicyError(
            f"the latency table knows no treatment of {unknown[0]!r}, which the search space treats. Run `autoprune "
            "profile` with this space."
        )
    parts: dict[str, list[Part]] = {
        "latency_ms": list(predictor.parts(deviations)),
        "params": [],
        "bytes": [],
        "macs": [],
    }
    for name, units, cost in structure.tensor_costs(predictor.layers):
        parts[name].append((units, cost))
    tabulated, constants = (
        _Tabulated(predictor.columns, predictor.layers, space),
        {"latency_ms": predictor.remainder_ms},
    )
    return {name: tabulated.cost(of_cost, constants.get(name, 0.0)) for name, of_cost in parts.items()}


class _Tabulated:
    """Turns parts of a cost into tables over the levels of a space."""

    def __init__(self, columns: Sequence[str], layers: Sequence[str], space: SearchSpace) -> None:
        self._names = columns
        codes = space.codes
        self._levels = [np.array(codes.get(name, (DENSE.code,)), dtype=np.int64) for name in columns]
        self._units = len(columns) - len(layers)
        self._searched = set(codes)
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
            elif self._fit_a_table(units):
                tables.append(self._table(units, together))
            else:
                offset, effects = self._main_effects(units, together)
                constant, tables = constant + offset, tables + effects
        return AdditiveCost(constant=float(constant), tables=tuple(tables))

    def _fit_a_table(self, columns: tuple[int, ...]) -> bool:
        levels = {column: len(self._levels[column]) for column in columns}
        widths = math.prod(count for column, count in levels.items() if column < self._units)
        return widths <= _MOST_ENTRIES and math.prod(levels.values()) <= _MOST_TREATED_ENTRIES

    def _table(self, units: tuple[int, ...], parts: Sequence[Part]) -> CostTable:
        units = tuple(u for u in units if self._names[u] in self._searched)
        shape = [len(self._levels[u]) for u in units]
        rows = np.tile(self._full, (math.prod(shape), 1))
        rows[:, list(units)] = list(itertools.product(*(self._levels[u] for u in units)))
        return CostTable(units=tuple(self._names[u] for u in units), values=self._values(parts, rows).reshape(shape))

    def _main_effects(self, units: tuple[int, ...], parts: Sequence[Part]) -> tuple[float, list[CostTable]]:
        """A constant and one table for each unit, exact where all others stand at their middle level."""
        middle = self._full.copy()
        middle[list(units)] = [self._levels[u][len(self._levels[u]) // 2] for u in units]
        offset, tables = float(self._values(parts, middle[None])[0]), []
        for unit in (u for u in units if self._names[u] in self._searched):
            rows = np.tile(middle, (len(self._levels[unit]), 1))
            rows[:, unit] = self._levels[unit]
            tables.append(CostTable(units=(self._names[unit],), values=self._values(parts, rows) - offset))
        return offset, tables

    def _values(self, parts: Sequence[Part], rows: Array) -> npt.NDArray[np.float64]:
        total = np.sum([cost(rows) for _, cost in parts], axis=0, dtype=float)
        return np.where(np.isnan(total), _NEVER, total)
