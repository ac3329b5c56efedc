"""Costs that are sums of tables over a few units each: what makes an exact allocation possible.

Cost arrays of one policy are exact sums; `Additive` maps names of `records.COSTS` to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.errors import UsageError
from autoprune.records import Policy, SearchSpace

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """One additive part of a cost: `values` has an axis for each of `units` (names), over the levels of the space."""

    units: tuple[str, ...]
    values: Array


@dataclass(frozen=True, kw_only=True)
class AdditiveCost:
    """A cost as `constant + sum(tables)`."""

    constant: float
    tables: tuple[CostTable, ...]

    def require(self, space: SearchSpace) -> None:
        """Raise `UsageError` unless every table has the space's levels as its axes and is free of NaN."""
        for table in self.tables:
            shape = tuple(len(space.levels[name]) for name in table.units)
            if table.values.shape != shape or bool(np.isnan(table.values).any()):
                raise UsageError(
                    f"a cost table over {', '.join(table.units)} is a number for each combination of levels {shape}; "
                    f"got {table.values.shape} with {int(np.isnan(table.values).sum())} missing"
                )

    def of(self, space: SearchSpace, policies: Sequence[Policy]) -> Array:
        """The cost of policies, `[P]`."""
        total = np.full(len(policies), self.constant)
        for table in self.tables:
            places = [[space.levels[u].index(policy.level(u)) for policy in policies] for u in table.units]
            total += table.values[tuple(np.array(p, dtype=np.int64) for p in places)] if places else table.values
        return total


Additive = Mapping[str, AdditiveCost]
"""The costs of `records.COSTS` that are additive; a limit on another one is checked on the answer."""
