"""Geometries of a model: its charges, and the keys that they have in a latency table at any policy of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator, priced_operators
from autoprune.records import SearchSpace
from autoprune.structure import Structure

_MOST_COMBINATIONS = 100_000


@dataclass(frozen=True, kw_only=True)
class PricedOperators:
    """All charges of one structure: computed once with `of`, then handed to every function that needs them.

    `all` holds them in the order of `priced_operators`, `varying` those whose cost some unit changes. The others,
    `constant`, make up the remainder of a latency table.
    """

    all: tuple[PricedOperator, ...]
    varying: tuple[PricedOperator, ...]
    constant: tuple[PricedOperator, ...]

    @classmethod
    def of(cls, structure: Structure) -> PricedOperators:
        """Return the charges of a structure."""
        priced = priced_operators(structure.operators)
        varying = tuple(operator for operator in priced if operator.units)
        return cls(all=priced, varying=varying, constant=tuple(op for op in priced if not op.units))


def possible_geometries(
    priced: Sequence[PricedOperator], space: SearchSpace, unit_names: Sequence[str], *, seed: int = 0
) -> tuple[Geometry, ...]:
    """Return every geometry that a policy of `space` can produce, in a stable order, without repetition.

    An operator that depends on more than 100,000 combinations of levels is sampled instead.
    """
    rng = np.random.default_rng(seed)
    geometries: dict[Geometry, None] = {}
    for operator in priced:
        widths = _combinations(operator.units, space, unit_names, rng)
        geometries |= dict.fromkeys(operator.geometries(widths))
    return tuple(geometries)


def _combinations(
    units: Sequence[int], space: SearchSpace, unit_names: Sequence[str], rng: np.random.Generator
) -> np.ndarray:
    """Width rows `[P, U]` with every combination of the levels of `units`; all other units at their largest level."""
    levels: Mapping[str, tuple[int, ...]] = space.levels
    wanted = [np.array(levels[unit_names[u]], dtype=np.int64) for u in units]
    count = math.prod(len(values) for values in wanted)
    if count <= _MOST_COMBINATIONS:
        columns = [grid.ravel() for grid in np.meshgrid(*wanted, indexing="ij")] if wanted else []
    else:
        count = _MOST_COMBINATIONS
        columns = [rng.choice(values, size=count) for values in wanted]
    widths = np.tile(np.array([levels[name][-1] for name in unit_names], dtype=np.int64), (count, 1))
    for unit, column in zip(units, columns, strict=True):
        widths[:, unit] = column
    return widths
