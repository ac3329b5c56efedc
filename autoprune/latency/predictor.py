"""From widths to milliseconds: one lookup for each operator, vectorised over policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoprune.errors import MissingEntryError, PolicyError
from autoprune.latency.geometries import PricedOperator
from autoprune.records import Geometry, Policy

_BITS = 21
"""Channel counts below 2**21 pack three to an int64 key."""


class GeometryIndex:
    """Finds the entry of every operator of many policies at once."""

    def __init__(self, priced: Sequence[PricedOperator], geometries: Sequence[Geometry]) -> None:
        self._priced = tuple(priced)
        by_signature: dict[Geometry, list[tuple[int, int]]] = {operator.signature: [] for operator in priced}
        for number, geometry in enumerate(geometries):
            signature = _signature(geometry)
            if signature in by_signature:
                sizes = np.array([[geometry.c_in, geometry.c_out, geometry.groups]], dtype=np.int64)
                by_signature[signature].append((int(_packed(sizes)[0]), number))
        self._keys: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        for operator in priced:
            pairs = np.array(sorted(by_signature[operator.signature]), dtype=np.int64).reshape(-1, 2)
            # A sentinel above every key keeps the search inside the array.
            self._keys.append(np.append(pairs[:, 0], np.iinfo(np.int64).max))
            self._numbers.append(np.append(pairs[:, 1], -1))

    def numbers(self, widths: np.ndarray) -> np.ndarray:
        """Positions in `geometries`: int64 `[P, operators]` for widths `[P, U]`; -1 where there is no entry."""
        found = np.empty((len(widths), len(self._priced)), dtype=np.int64)
        for column, (operator, keys, numbers) in enumerate(zip(self._priced, self._keys, self._numbers, strict=True)):
            wanted = _packed(operator.sizes(widths))
            place = np.searchsorted(keys, wanted)
            found[:, column] = np.where(keys[place] == wanted, numbers[place], -1)
        return found

    def geometry(self, operator: int, widths: np.ndarray) -> Geometry:
        """Key of one operator for one row of widths `[U]`."""
        priced = self._priced[operator]
        return priced.geometry(priced.sizes(widths[None])[0])


class LatencyPredictor:
    """Predicts the latency of any policy of one structure from the entries of a table; holds no model."""

    def __init__(
        self,
        unit_names: Sequence[str],
        priced: Sequence[PricedOperator],
        entries_ms: Mapping[Geometry, float],
        intercept_ms: float,
    ) -> None:
        self._unit_names = tuple(unit_names)
        self._index = GeometryIndex(priced, tuple(entries_ms))
        self._costs = np.array([*entries_ms.values(), 0.0])
        self._intercept_ms = intercept_ms

    def predict(self, policies: Sequence[Policy] | np.ndarray) -> np.ndarray:
        """Milliseconds, float64 `[P]`, of policies or of widths `[P, U]` (int64, units in the structure's order).

        Raises `MissingEntryError` that names the first geometry without an entry.
        """
        widths = policies if isinstance(policies, np.ndarray) else self._widths(policies)
        numbers = self._index.numbers(widths)
        if numbers.size and numbers.min() < 0:
            row, operator = np.argwhere(numbers < 0)[0]
            raise MissingEntryError(
                f"the latency table has no entry for `{self._index.geometry(int(operator), widths[row])}`. "
                "Run `autoprune profile` with a search space that contains this width."
            )
        return self._intercept_ms + self._costs[numbers].sum(axis=1)

    def _widths(self, policies: Sequence[Policy]) -> np.ndarray:
        try:
            rows = [[policy.widths[name] for name in self._unit_names] for policy in policies]
        except KeyError as error:
            raise PolicyError(f"the policy has no width for unit {error}; expected {list(self._unit_names)}") from error
        return np.array(rows, dtype=np.int64).reshape(len(policies), len(self._unit_names))


def _signature(geometry: Geometry) -> Geometry:
    return replace(geometry, c_in=0, c_out=0, groups=0)


def _packed(sizes: np.ndarray) -> np.ndarray:
    """One int64 key for each row of `[P, 3]`."""
    return (sizes[:, 0] << 2 * _BITS) | (sizes[:, 1] << _BITS) | sizes[:, 2]
