"""Gates: at which widths something is there at all."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Gate:
    """Open while one of `alternatives` has all its units (indices) at widths above 0.

    A convolution in a residual branch has one alternative: the units inside the branch. What two branches share is
    there while either of them is.
    """

    alternatives: frozenset[frozenset[int]] = frozenset([frozenset()])

    def __call__(self, widths: Array) -> Array:
        """Whether it is open: bool `[P]` for widths `[P, U]`."""
        found = np.zeros(len(widths), dtype=bool)
        for units in self.alternatives:
            found |= (widths[:, sorted(units)] > 0).all(axis=1)
        return found

    def __and__(self, other: Gate) -> Gate:
        if self == ALWAYS or other == ALWAYS:
            return other if self == ALWAYS else self
        return _smallest({a | b for a in self.alternatives for b in other.alternatives})

    def __or__(self, other: Gate) -> Gate:
        return _smallest(self.alternatives | other.alternatives)

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that it depends on, ascending."""
        return tuple(sorted(frozenset().union(*self.alternatives)))

    def open_without(self, removed: AbstractSet[int]) -> bool:
        """Whether it is open when the units `removed` have width 0 and all others do not."""
        return any(not units & removed for units in self.alternatives)


def all_of(gates: Iterable[Gate]) -> Gate:
    """Open while all of them are."""
    found = ALWAYS
    for gate in gates:
        found &= gate
    return found


def _smallest(alternatives: AbstractSet[frozenset[int]]) -> Gate:
    """Without the alternatives that hold another one: they add nothing."""
    return Gate(frozenset(a for a in alternatives if not any(other < a for other in alternatives)))


ALWAYS, NEVER = Gate(), Gate(frozenset())
