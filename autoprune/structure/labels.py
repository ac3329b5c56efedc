"""Labels: which index of which tensor disappears together with which other index.

Every index of every parameter dimension carries a *label*, a whole number. Operators tie labels in two ways:

- *Union*: two labels live or die together (union-find). In `linear2(relu(linear1(x)))` row 3 of `linear1.weight`
  writes the number that column 3 of `linear2.weight` reads, so both indices end with one label.
- *OR-equation*: an index (the *whole*) is removed exactly when any of its *causes* is. Channel `c` of a convolution
  with groups of 4 channels goes when its group goes, or when its place in every group goes:
  `removed(c) == removed(group[c // 4]) or removed(place[c % 4])`. Attention heads have the same form.

Label 0 is *fixed*: it is never removed. Inputs and outputs of the model are fixed, and operators without a rule fix all
that they read.

A `Value` describes a tensor by *components*: integer arrays of the tensor's rank in which one dimension is full and the
others have size 1. For `x [N, C, H, W]` the component of the channels has the shape `[1, C, 1, 1]`. An element of the
tensor is removed if and only if any of its labels is. A dimension of size above 1 without a component is fixed.
A dimension that a broadcast made has labels that belong to no parameter: it is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Equation = tuple[int, tuple[int, ...], int]
"""`(whole, causes, family)`: the whole is removed exactly when any cause is. Equations of one tie share a family."""


@dataclass(frozen=True)
class Value:
    """Labels of one tensor: its shape at capture time, and its components (see the module)."""

    shape: tuple[int, ...]
    components: tuple[Array, ...] = ()

    def along(self, dim: int) -> list[Array]:
        """Return the components of dimension `dim`, each as an array of labels `[size]`."""
        return [c.reshape(-1) for c in self.components if c.shape[dim] > 1]

    @classmethod
    def of_dims(cls, shape: tuple[int, ...], labels: Mapping[int, Sequence[Array]]) -> Value:
        """Build a value of a shape from the label arrays `[size]` of each dimension."""
        parts = []
        for dim, arrays in labels.items():
            rank_shape = [1] * len(shape)
            rank_shape[dim] = shape[dim]
            parts += [np.asarray(a).reshape(rank_shape) for a in arrays if shape[dim] > 1]
        return cls(shape, tuple(parts))


class Labels:
    """Union-find over labels, with the OR-equations and the reason why each fixed label is fixed."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._why = np.ones(1, dtype=np.int64)  # by representative; 0: free, else 1 + the number of the reason
        self._count = 1
        self._reasons = ["tied to a dimension that is fixed"]
        self._equations: list[Array] = []  # each [n, 1 + causes]
        self._factors: dict[tuple[object, ...], list[Array]] = {}
        self._wholes: dict[tuple[bytes, ...], Array] = {}

    def fresh(self, count: int) -> Array:
        """Return new labels `[count]`."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            room = max(self._count, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), room)])
            self._why = np.concatenate([self._why, np.zeros(room - len(self._why), dtype=np.int64)])
        return np.arange(start, start + count)

    def roots(self, labels: Array) -> Array:
        """Return the representatives of an array of labels, of the same shape; 0 where a label is fixed."""
        roots = self._representatives(np.asarray(labels))
        return np.where(self._why[roots] > 0, 0, roots)

    def reason(self, label: int) -> str | None:
        """Return why a label is fixed, or `None` when it is free."""
        why = int(self._why[self._representatives(np.array([label]))[0]])
        return self._reasons[why - 1] if why else None

    def _reason_of_any(self, labels: Array) -> str:
        """Return why some label among fixed ones is fixed."""
        return self._reasons[max(int(self._why[self._representatives(labels.ravel())].max()), 1) - 1]

    def _representatives(self, labels: Array) -> Array:
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def _find(self, label: int) -> int:
        while (parent := int(self._parent[label])) != label:
            label = parent
        return label

    def union(self, a: Array, b: Array) -> None:
        """Unite two label arrays of the same shape, index by index."""
        a, b = self._representatives(np.ravel(a)), self._representatives(np.ravel(b))
        fixed_a, fixed_b = self._why[a], self._why[b]
        one_fixed = (a != b) & ((fixed_a > 0) != (fixed_b > 0))
        np.maximum.at(self._why, np.where(fixed_a > 0, b, a)[one_fixed], np.maximum(fixed_a, fixed_b)[one_fixed])
        both_free = (a != b) & (fixed_a == 0) & (fixed_b == 0)
        for x, y in np.unique(np.stack([a, b], axis=1)[both_free], axis=0).tolist():
            x, y = self._find(x), self._find(y)
            if x != y:
                low, high = min(x, y), max(x, y)
                self._parent[high] = low
                self._why[low] = max(self._why[low], self._why[high])

    def fix(self, labels: Array, reason: str) -> None:
        """Fix labels for good; `reason` is kept for the user."""
        roots = np.unique(self._representatives(np.ravel(labels)))
        roots = roots[self._why[roots] == 0]
        if len(roots):
            if reason not in self._reasons:
                self._reasons.append(reason)
            self._why[roots] = 1 + self._reasons.index(reason)

    def fix_value(self, value: Value, reason: str, dims: Iterable[int] | None = None) -> None:
        """Fix every component of a value, or only the components that vary along `dims`."""
        dims = None if dims is None else set(dims)
        for component in value.components:
            if dims is None or any(component.shape[d] > 1 for d in dims):
                self.fix(component, reason)

    def either(self, whole: Array, causes: Sequence[Array]) -> None:
        """Record `removed(whole[k]) == removed(causes[0][k]) or removed(causes[1][k]) or ...`; all have one shape."""
        if len(causes) == 1:
            self.union(whole, causes[0])
        else:
            self._equations.append(np.unique(np.stack([np.ravel(whole), *map(np.ravel, causes)], axis=1), axis=0))

    def equate(self, a: Sequence[Array], b: Sequence[Array], reason: str) -> None:
        """Tie two lists of components of one dimension; an empty list stands for a fixed side and fixes the other."""
        if not a or not b:
            for labels in (*a, *b):
                self.fix(labels, reason)
        elif len(a) == 1 or len(b) == 1:
            whole, causes = (a[0], b) if len(a) == 1 else (b[0], a)
            self.either(whole, causes)
        elif [_pattern(x) for x in a] == [_pattern(x) for x in b]:
            for x, y in zip(a, b, strict=True):
                self.union(x, y)
        else:
            self.either(self.whole(a), b)

    def whole(self, components: Sequence[Array]) -> Array:
        """Return one label `[size]` for every index of a dimension; equal components get the same labels again."""
        if len(components) == 1:
            return components[0]
        key = tuple(component.tobytes() for component in components)
        if key not in self._wholes:
            self._wholes[key] = self.fresh(len(components[0]))
            self.either(self._wholes[key], components)
        return self._wholes[key]

    def factors(self, component: Array) -> list[Array]:
        """Split a component that varies along several dimensions into one component for each dimension.

        An OR-equation ties the parts to the component. Equal slices share a label, so that labels that repeat for
        every example of a batch still do.
        """
        key = (component.shape, component.tobytes())
        if key not in self._factors:
            parts = []
            for dim in np.flatnonzero(np.array(component.shape) > 1).tolist():
                slices = np.moveaxis(component, dim, 0).reshape(component.shape[dim], -1)
                distinct, which = np.unique(slices, axis=0, return_inverse=True)
                shape = [1] * component.ndim
                shape[dim] = component.shape[dim]
                parts.append(self.fresh(len(distinct))[which.ravel()].reshape(shape))
            self.either(component, [np.broadcast_to(part, component.shape) for part in parts])
            self._factors[key] = parts
        return self._factors[key]

    def simplified(self) -> list[Equation]:
        """Return the equations over representatives, simplified until nothing changes.

        A fixed whole fixes its causes, a fixed cause is dropped, and a single cause is united with its whole.
        """
        while True:
            changed, kept = False, dict[bytes, Array]()
            for equations in self._equations:
                roots = self.roots(equations)
                whole, causes = roots[:, 0], np.sort(roots[:, 1:], axis=1)
                causes[:, 1:][causes[:, 1:] == causes[:, :-1]] = 0
                living = (causes > 0).sum(axis=1)
                alone = causes.max(axis=1)
                dead = (whole == 0) & (living > 0)
                if dead.any():
                    self.fix(causes[dead], self._reason_of_any(equations[dead, :1]))
                if (bare := (whole > 0) & (living == 0)).any():
                    self.fix(whole[bare], self._reason_of_any(equations[bare, 1:]))
                if (single := (whole > 0) & (living == 1) & (whole != alone)).any():
                    self.union(whole[single], alone[single])
                changed = changed or bool(dead.any() or bare.any() or single.any())
                rest = np.concatenate([whole[:, None], causes], axis=1)[(whole > 0) & (living > 1)]
                rest = np.unique(rest, axis=0)
                kept[rest.tobytes()] = rest
            if not changed:
                families = enumerate(kept.values())
                return [(r[0], tuple(x for x in r[1:] if x), k) for k, rows in families for r in rows.tolist()]


def _pattern(labels: Array) -> bytes:
    """Return which indices of a component share a label, as bytes that do not depend on the labels' numbers."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return first[which].tobytes()
