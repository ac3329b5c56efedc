"""Gates: the widths at which an operator, a value or a parameter exists at all.

A residual branch `y = x + conv2(relu(conv1(x)))` with a unit 3 inside is gone when unit 3 has width 0. The gate of
`conv1` is then `{{3}}`: open while unit 3 is above 0. A norm that two branches with units 3 and 5 read has the gate
`{{3}, {5}}`: open while either branch is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Gate:
    """A condition on widths: open while one of `alternatives` has all its units (indices) at widths above 0."""

    alternatives: frozenset[frozenset[int]] = frozenset([frozenset()])

    def __call__(self, widths: Array) -> Array:
        """Return whether the gate is open: bool `[P]` for widths `[P, U]` (policies, units)."""
        is_open = np.zeros(len(widths), dtype=bool)
        for units in self.alternatives:
            is_open |= (widths[:, sorted(units)] > 0).all(axis=1)
        return is_open

    def __and__(self, other: Gate) -> Gate:
        if self == ALWAYS or other == ALWAYS:
            return other if self == ALWAYS else self
        return _smallest({a | b for a in self.alternatives for b in other.alternatives})

    def __or__(self, other: Gate) -> Gate:
        return _smallest(self.alternatives | other.alternatives)

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that the gate depends on, ascending."""
        return tuple(sorted(frozenset().union(*self.alternatives)))

    def open_without(self, removed: AbstractSet[int]) -> bool:
        """Return whether the gate is open when the units `removed` have width 0 and all other units are wider."""
        return any(not units & removed for units in self.alternatives)


def all_of(gates: Iterable[Gate]) -> Gate:
    """Return a gate that is open while all of `gates` are."""
    combined = ALWAYS
    for gate in gates:
        combined &= gate
    return combined


def any_of(gates: Iterable[Gate]) -> Gate:
    """Return a gate that is open while one of `gates` is."""
    combined = NEVER
    for gate in gates:
        combined |= gate
    return combined


def _smallest(alternatives: AbstractSet[frozenset[int]]) -> Gate:
    """Return a gate without the alternatives that contain another alternative, because they add nothing."""
    return Gate(frozenset(a for a in alternatives if not any(other < a for other in alternatives)))


ALWAYS, NEVER = Gate(), Gate(frozenset())
