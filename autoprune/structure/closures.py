"""Closures: the smallest sets of labels that can be removed without removing anything that is fixed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from autoprune.structure.labels import Equation

Atom = frozenset[int]
"""Representatives that are removed together."""


def minimal_closures(seeds: AbstractSet[int], equations: Sequence[Equation]) -> list[Atom]:
    """Minimal removable sets that hold one of the labels `seeds`, in order of their smallest label.

    What is only ever a whole goes with one of its causes, so that sets begin with causes.
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
    """Those that hold no other one."""
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
    """All labels that go when `seed` goes; `None` when no consistent set exists or a fixed label is reached.

    A removed cause removes the whole. A cause goes too once everything that it is a cause of in one family is gone.
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
