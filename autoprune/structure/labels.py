"""Labels: which index of which tensor disappears together with which other.

Every index of every parameter dimension carries a *label*. Operators unite labels that must live or die together
(union-find), and record OR-equations where an index dies with any of several causes (`removed(c) == removed(g) or
removed(i)`, as in grouped convolutions). Label 0 is *fixed*: it is never removed.

A `Value` describes a tensor by *components*: integer arrays of the tensor's rank whose dimensions are full or 1. An
element is removed if and only if any of its labels is. A dimension of size above 1 without a component is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Value:
    """Labels of one tensor: its shape at capture time and the components that vary along its dimensions."""

    shape: tuple[int, ...]
    components: tuple[Array, ...] = ()

    def along(self, dim: int) -> list[Array]:
        """The components of dimension `dim`, each as a 1-d array of labels."""
        return [c.reshape(-1) for c in self.components if c.shape[dim] > 1]

    @classmethod
    def of_dims(cls, shape: tuple[int, ...], labels: Mapping[int, Sequence[Array]]) -> Value:
        """Build a value from 1-d label arrays per dimension."""
        parts = []
        for dim, arrays in labels.items():
            rank_shape = [1] * len(shape)
            rank_shape[dim] = shape[dim]
            parts += [np.asarray(a).reshape(rank_shape) for a in arrays if shape[dim] > 1]
        return cls(shape, tuple(parts))


class Labels:
    """Union-find over labels, with the OR-equations and the reason why a label is fixed."""

    def __init__(self) -> None:
        self._parent = [0]
        self.reasons: dict[int, str] = {}
        self.equations: list[tuple[int, tuple[int, ...]]] = []

    def fresh(self, count: int) -> Array:
        """New labels, shape `[count]`."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, label: int) -> int:
        """Representative of a label; 0 when it is fixed."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Array) -> Array:
        """Representatives of an array of labels, same shape."""
        distinct, inverse = np.unique(labels, return_inverse=True)
        return np.array([self.find(int(x)) for x in distinct], dtype=np.int64)[inverse].reshape(np.shape(labels))

    def _join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        low, high = min(a, b), max(a, b)
        self._parent[high] = low
        if high in self.reasons:
            self.reasons.setdefault(low, self.reasons[high])

    def union(self, a: Array, b: Array) -> None:
        """Tie two label arrays of the same shape, index by index."""
        pairs = np.unique(np.stack([np.ravel(a), np.ravel(b)], axis=1), axis=0)
        for x, y in pairs:
            self._join(int(x), int(y))

    def fix(self, labels: Array, reason: str) -> None:
        """Never remove these labels; `reason` is kept for the user."""
        for label in np.unique(labels):
            root = self.find(int(label))
            if root:
                self.reasons.setdefault(int(label), reason)
                self.reasons.setdefault(root, reason)
                self._parent[root] = 0

    def fix_value(self, value: Value, reason: str, dims: Iterable[int] | None = None) -> None:
        """Fix every component of a value, or only those that vary along `dims`."""
        dims = None if dims is None else set(dims)
        for component in value.components:
            if dims is None or any(component.shape[d] > 1 for d in dims):
                self.fix(component, reason)

    def either(self, whole: Array, causes: Sequence[Array]) -> None:
        """`removed(whole[k]) == removed(causes[0][k]) or removed(causes[1][k]) or ...`, all arrays of one shape."""
        if len(causes) == 1:
            self.union(whole, causes[0])
            return
        for row in np.unique(np.stack([np.ravel(whole), *map(np.ravel, causes)], axis=1), axis=0):
            self.equations.append((int(row[0]), tuple(int(x) for x in row[1:])))

    def equate(self, a: Sequence[Array], b: Sequence[Array], reason: str) -> None:
        """Tie two lists of components of one dimension; an empty side is fixed and fixes the other."""
        if not a or not b:
            for labels in (*a, *b):
                self.fix(labels, reason)
        elif len(a) == len(b):
            for x, y in zip(a, b, strict=True):
                self.union(x, y)
        elif len(a) == 1:
            self.either(a[0], b)
        elif len(b) == 1:
            self.either(b[0], a)
        else:
            for labels in (*a, *b):
                self.fix(labels, reason)

    def simplified(self) -> list[tuple[int, tuple[int, ...]]]:
        """Equations over representatives, with fixed causes dropped and single causes united, until nothing changes."""
        while True:
            changed, kept = False, []
            for whole, causes in self.equations:
                root = self.find(whole)
                living = tuple(sorted({self.find(c) for c in causes} - {0}))
                if root == 0 and living:
                    self.fix(np.array(living), self.reasons.get(whole, "tied to a dimension that is fixed"))
                    changed = True
                elif root and not living:
                    self.fix(np.array([root]), "tied to dimensions that are fixed")
                    changed = True
                elif root and len(living) == 1:
                    changed = changed or root != living[0]
                    self._join(root, living[0])
                elif root:
                    kept.append((root, living))
            if not changed:
                return sorted(set(kept))
