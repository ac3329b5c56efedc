"""Closures: the smallest sets of labels that can be removed without removing anything that is fixed.

Removing one label may force others. With the equations `removed(c0) == removed(g0) or removed(i0)` and
`removed(c1) == removed(g0) or removed(i1)`:

- removing `g0` (a group) forces `c0` and `c1`: the closure of `g0` is `{g0, c0, c1}`;
- removing `i0` (a place in every group) forces `c0`: the closure of `i0` is `{i0, c0}`;
- removing `c0` alone needs one of its causes, so closures start from causes.

A closure that reaches label 0 is not removable. A closure that contains another one is not minimal. The closures that
remain are the *atoms*: each is one channel, one head, one group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from autoprune.structure.labels import Equation

Atom = frozenset[int]
"""A smallest set of labels (representatives) that can be removed alone."""


def minimal_closures(seeds: AbstractSet[int], equations: Sequence[Equation]) -> list[Atom]:
    """Return the minimal removable sets that hold one of the labels `seeds`, in order of their smallest label.

    Sets are grown from causes, because a label that is only ever a whole goes with one of its causes.
    """
    of_label: dict[int, list[Equation]] = defaultdict(list)
    for equation in equations:
        for label in (equation[0], *equation[1]):
            of_label[label].append(equation)
    causes = {cause for _, causes, _ in equations for cause in causes}
    closures = {c for c in (_closure(seed, of_label) for seed in sorted(causes)) if c and not seeds.isdisjoint(c)}
    alone = {frozenset([seed]) for seed in seeds if seed not in of_label}
    return sorted(alone.union(_minimal(closures)), key=lambda atom: (min(atom), len(atom)))


def _minimal(closures: Iterable[Atom]) -> list[Atom]:
    """Return the closures that contain no other closure."""
    by_label: dict[int, list[Atom]] = defaultdict(list)
    kept: list[Atom] = []
    for closure in sorted(closures, key=lambda c: (len(c), min(c))):
        if not any(other < closure for label in closure for other in by_label.get(label, ())):
            kept.append(closure)
            by_label[min(closure)].append(closure)
    return kept


def _wholes(cause: int, family: int, equations: Mapping[int, Sequence[Equation]]) -> list[int]:
    return [whole for whole, causes, f in equations[cause] if f == family and cause in causes]


def _closure(seed: int, equations: Mapping[int, Sequence[Equation]]) -> Atom | None:
    """Return all labels that go when `seed` goes; `None` when no consistent set exists or a fixed label is reached.

    A removed cause removes its whole. A removed whole without a removed cause removes every cause of which all wholes
    in that family are removed.
    """
    removed, queue = {seed}, [seed]
    while queue:
        label = queue.pop()
        forced = set()
        for whole, causes, family in equations[label]:
            if label in causes:
                forced.add(whole)
            elif removed.isdisjoint(causes):
                forced |= {c for c in causes if removed.issuperset(_wholes(c, family, equations))}
        forced -= removed
        removed |= forced
        queue += forced
    consistent = all(not removed.isdisjoint(cs) for x in removed for whole, cs, _ in equations[x] if whole == x)
    return frozenset(removed) if consistent and 0 not in removed else None
