"""Geometries of a model: its charges, and the keys that they have in a latency table at any policy of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator, priced_operators
from autoprune.latency.treated_charges import treated_charges
from autoprune.records import SearchSpace
from autoprune.structure import Structure

_MOST_COMBINATIONS = 100_000


@dataclass(frozen=True, kw_only=True)
class PricedOperators:
    """All charges of one structure: computed once with `of`, then handed to every function that needs them.

    `all` holds them in the order of `priced_operators`, `varying` those whose cost some unit or layer changes. The
    others, `constant`, make up the remainder of a latency table.
    """

    all: tuple[PricedOperator, ...]
    varying: tuple[PricedOperator, ...]
    constant: tuple[PricedOperator, ...]

    @classmethod
    def of(cls, structure: Structure, layers: Sequence[str] = ()) -> PricedOperators:
        """Return the charges of a structure.

        Args:
            structure: of the model.
            layers: names of the layers that may be treated, in the order of the last columns of rows.
        """
        priced = priced_operators(structure.operators)
        if layers:
            priced = treated_charges(structure, priced, layers)
        varying = tuple(operator for operator in priced if operator.units)
        return cls(all=priced, varying=varying, constant=tuple(op for op in priced if not op.units))


def possible_geometries(
    priced: Sequence[PricedOperator], space: SearchSpace, names: Sequence[str], *, seed: int = 0
) -> tuple[Geometry, ...]:
    """Return every geometry that a policy of `space` can produce, in a stable order, without repetition.

    An operator that depends on more than 100,000 combinations of levels is sampled instead. `names` are those of the
    columns of rows: units, then layers.
    """
    rng = np.random.default_rng(seed)
    geometries: dict[Geometry, None] = {}
    for operator in priced:
        rows = _combinations(operator.units, space.codes, names, rng)
        geometries |= dict.fromkeys(operator.geometries(rows))
    return tuple(geometries)


def _combinations(
    columns: Sequence[int], codes: Mapping[str, Sequence[int]], names: Sequence[str], rng: np.random.Generator
) -> np.ndarray:
    """Rows `[P, U + L]` with every combination of levels in some columns; others hold the largest or dense one."""
    wanted = [np.array(codes[names[column]], dtype=np.int64) for column in columns]
    count = math.prod(len(values) for values in wanted)
    if count <= _MOST_COMBINATIONS:
        combined = [grid.ravel() for grid in np.meshgrid(*wanted, indexing="ij")] if wanted else []
    else:
        count = _MOST_COMBINATIONS
        combined = [rng.choice(values, size=count) for values in wanted]
    rows = np.tile(np.array([codes[name][-1] for name in names], dtype=np.int64), (count, 1))
    for column, values in zip(columns, combined, strict=True):
        rows[:, column] = values
    return rows
