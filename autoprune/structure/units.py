"""From labels to units: groups of channels of which any may be kept.

An *atom* is a smallest set of labels that can be removed alone (`closures`). Two atoms that touch the same dimensions
equally often are interchangeable: they are two channels of one unit. In `linear2(relu(linear1(x)))` with 8 hidden
features there are 8 atoms. Each touches one row of `linear1.weight`, one entry of `linear1.bias` and one column of
`linear2.weight`, so they are one unit of width 8.

Sizes must be polynomials in the widths (`geometry`): a dimension may not have 3 indices for one channel and 2 for
another. Units that break this rule are fixed, and the grouping is repeated. Dimensions with the same labels have one
*pattern*, which is looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.records import Member, Unit
from autoprune.structure.closures import Atom, minimal_closures
from autoprune.structure.labels import Array, Labels

Site = tuple[str, str, int]
"""A dimension: `("parameter", state-dict name, dim)` or `("eval" | "train", node name, dim)`; dim -1: the groups."""


@dataclass(frozen=True)
class Channels:
    """The channels that each index of one dimension of `size` indices belongs to.

    `of_unit[u]` `[size]` is the number of each index's channel in unit `u`, or -1. An index lives while every channel
    that it belongs to is kept.
    """

    size: int
    of_unit: Mapping[int, Array]

    def first(self, size: int) -> Channels:
        """Return the channels of the first `size` indices alone."""
        return Channels(size, {unit: channel[:size] for unit, channel in self.of_unit.items()})

    def living(self, keep: Mapping[int, Array]) -> Array:
        """Return which indices live, bool `[size]`; `keep[u]` `[width]` says which channels of unit `u` are kept."""
        mask = np.ones(self.size, dtype=bool)
        for unit, channel in self.of_unit.items():
            mask &= (channel < 0) | keep[unit][channel]
        return mask


def find_units(
    labels: Labels,
    sites: Mapping[Site, list[Array]],
    roles: Mapping[str, Sequence[Array]] | None = None,
    describe: Callable[[Site], str] = str,
    useless: Callable[[Mapping[Site, Channels], list[int]], Mapping[int, str]] | None = None,
) -> tuple[tuple[Unit, ...], dict[Site, Channels]]:
    """Group labels into units; return the units and the channels of every dimension.

    Args:
        labels: all ties. Units whose living counts would not be a product of widths are fixed in it, and the grouping
            is repeated.
        sites: components of each labelled dimension, arrays of labels `[size]`.
        roles: labels by the kind of unit that they make; all other units have the kind "channel".
        describe: returns the words for a site, for the reasons of units that are fixed.
        useless: returns the units that no policy can change, with the reason, from channels and widths; they are fixed.

    Returns:
        The units, in order of the first dimension that they cut, and the channels of every site.
    """
    while True:
        equations = labels.simplified()
        patterns, of_site = _patterns(labels, sites)
        of_parameters = {of_site[site] for site in sites if site[0] == "parameter"}
        seeds = {int(x) for p in of_parameters for array in patterns[p] for x in np.unique(array)} - {0}
        homes = _Homes(minimal_closures(seeds, equations), patterns)
        of_patterns = [homes.channels(pattern) for pattern in patterns]
        ragged = homes.overlapping() | {unit for _, conflicts in of_patterns for unit in conflicts}
        ragged |= {unit for channels, _ in of_patterns for unit in _ragged(channels, homes.widths)}
        if not ragged:
            channels = {site: of_patterns[of_site[site]][0] for site in sites}
            reasons = useless(channels, homes.widths) if useless else {}
            if not reasons:
                return _as_units(homes, channels, labels, roles or {}), channels
            for unit, reason in reasons.items():
                labels.fix(homes.labels_of(unit), reason)
        for unit in ragged:
            uneven = [conflicts | _ragged(channels, homes.widths) for channels, conflicts in of_patterns]
            where = next((site for site in sites if site[0] == "eval" and unit in uneven[of_site[site]]), None)
            where = where or next((site for site in sites if unit in uneven[of_site[site]]), None)
            labels.fix(homes.labels_of(unit), _why_ragged(None if where is None else describe(where)))


def _why_ragged(where: str | None) -> str:
    """Return why a unit keeps its width, given the words for the first dimension that it would cut unevenly."""
    if where is None:
        return "its channels share entries, so that none can go alone"
    return f"its channels meet each other in {where}, so that none can go alone"


def _patterns(labels: Labels, sites: Mapping[Site, list[Array]]) -> tuple[list[list[Array]], dict[Site, int]]:
    """Return the distinct patterns (lists of representatives), and the number of every site's pattern."""
    by_labels: dict[tuple[bytes, ...], int] = {}
    by_roots: dict[tuple[bytes, ...], int] = {}
    patterns: list[list[Array]] = []
    of_site = {}
    for site, arrays in sites.items():
        key = tuple(a.tobytes() for a in arrays)
        if key not in by_labels:
            roots = [labels.roots(a) for a in arrays]
            by_labels[key] = by_roots.setdefault(tuple(r.tobytes() for r in roots), len(patterns))
            if by_labels[key] == len(patterns):
                patterns.append(roots)
        of_site[site] = by_labels[key]
    return patterns, of_site


class _Homes:
    """Atoms grouped into units, and the atoms that hold each label."""

    def __init__(self, atoms: list[Atom], patterns: Sequence[Sequence[Array]]) -> None:
        self._atoms = atoms
        self._layers = _layers(atoms)
        groups = self._interchangeable(patterns)
        self._groups = groups
        self._unit = np.full(len(atoms) + 1, -1, dtype=np.int64)  # the last entry stands for "no atom"
        self._channel = np.full(len(atoms) + 1, -1, dtype=np.int64)
        for unit, members in enumerate(groups):
            self._unit[members] = unit
            self._channel[members] = np.arange(len(members))

    @property
    def widths(self) -> list[int]:
        """Number of channels of every unit."""
        return [len(members) for members in self._groups]

    def atoms_of(self, unit: int) -> list[Atom]:
        """Return the label sets of the channels of a unit."""
        return [self._atoms[n] for n in self._groups[unit]]

    def labels_of(self, unit: int) -> Array:
        """Return the labels of all channels of a unit, ascending."""
        return np.array(sorted(x for atom in self.atoms_of(unit) for x in atom))

    def overlapping(self) -> set[int]:
        """Return the units whose channels share a label: the number of labels removed would depend on the choice."""
        overlapping = set()
        for unit in range(len(self._groups)):
            atoms = self.atoms_of(unit)
            if sum(map(len, atoms)) != len(frozenset().union(*atoms)):
                overlapping.add(unit)
        return overlapping

    def channels(self, pattern: Sequence[Array]) -> tuple[Channels, set[int]]:
        """Return the channels of one pattern, and the units that have two channels at one index."""
        of_unit: dict[int, Array] = {}
        conflicts: set[int] = set()
        for numbers in self._numbers(pattern):
            units = self._unit[numbers]
            for unit in np.unique(units[units >= 0]).tolist():
                channel = np.where(units == unit, self._channel[numbers], -1)
                before = of_unit.get(unit, channel)
                if ((before >= 0) & (channel >= 0) & (before != channel)).any():
                    conflicts.add(unit)
                of_unit[unit] = np.where(channel >= 0, channel, before)
        return Channels(len(pattern[0]), dict(sorted(of_unit.items()))), conflicts

    def _numbers(self, pattern: Sequence[Array]) -> list[Array]:
        """Return the numbers of the atoms of every index (`-1`: none), one array for each component and layer."""
        arrays = []
        for array in pattern:
            for layer in self._layers:
                numbers = layer[np.minimum(array, len(layer) - 1)]
                if (numbers >= 0).any():
                    arrays.append(numbers)
        return arrays

    def _interchangeable(self, patterns: Sequence[Sequence[Array]]) -> list[Array]:
        """Group atoms by how often they occur in each pattern; a group is in order of the atoms' first index."""
        signature = np.zeros(len(self._atoms), dtype=np.uint64)
        first = np.full((len(self._atoms), 2), -1, dtype=np.int64)
        for place, pattern in enumerate(patterns):
            numbers = np.concatenate([np.zeros(0, dtype=np.int64), *self._numbers(pattern)])
            index = np.arange(len(numbers)) % len(pattern[0])
            index, numbers = index[numbers >= 0], numbers[numbers >= 0]
            order = np.argsort(index, kind="stable")
            index, numbers = index[order], numbers[order]
            atoms, at, counts = np.unique(numbers, return_index=True, return_counts=True)
            signature[atoms] += _mixed(np.uint64(place), counts.astype(np.uint64))
            new = atoms[first[atoms, 0] < 0]
            first[new, 1] = index[at][first[atoms, 0] < 0]
            first[new, 0] = place
        groups = []
        present = np.flatnonzero(first[:, 0] >= 0)
        for kind in np.unique(signature[present]):
            members = present[signature[present] == kind]
            groups.append(members[np.argsort(first[members, 1], kind="stable")])
        # Factors of one dimension begin at the same index: the outer factor (heads) comes before the inner factor.
        return sorted(groups, key=lambda m: (*first[m[0]].tolist(), -first[m[min(1, len(m) - 1)], 1]))


def _layers(atoms: Sequence[Atom]) -> list[Array]:
    """Return arrays of which the `k`-th maps a label to the number of the `k`-th atom that holds it (`-1`: none)."""
    labels = np.array([x for atom in atoms for x in atom], dtype=np.int64)
    numbers = np.repeat(np.arange(len(atoms)), [len(atom) for atom in atoms])
    order = np.argsort(labels, kind="stable")
    labels, numbers = labels[order], numbers[order]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    layers = []
    for k in range(int(rank.max(initial=-1)) + 1):
        layer = np.full(int(labels.max()) + 2, -1, dtype=np.int64)
        layer[labels[rank == k]] = numbers[rank == k]
        layers.append(layer)
    return layers


def _mixed(place: np.uint64, counts: Array) -> Array:
    """Return one number for every (pattern, count) such that sums do not collide by accident.

    Source: splitmix64 (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):
        z = (place << np.uint64(32)) + counts
        z = (z + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _ragged(channels: Channels, widths: Sequence[int]) -> set[int]:
    """Return the units whose channels do not all cover equally many indices with every partner channel."""
    if not channels.of_unit:
        return set()
    names = sorted(channels.of_unit)
    numbers = np.stack([channels.of_unit[u] for u in names], axis=1)
    patterns, which = np.unique(numbers >= 0, axis=0, return_inverse=True)
    ragged: set[int] = set()
    for number, pattern in enumerate(patterns):
        units = [u for u, inside in zip(names, pattern, strict=True) if inside]
        combinations, counts = np.unique(numbers[which.ravel() == number][:, pattern], axis=0, return_counts=True)
        every = int(np.prod([widths[u] for u in units]))
        if units and (len(combinations) != every or counts.min() != counts.max()):
            ragged.update(units)
    return ragged


def _as_units(
    homes: _Homes, channels: Mapping[Site, Channels], labels: Labels, roles: Mapping[str, Sequence[Array]]
) -> tuple[Unit, ...]:
    marked = {role: {int(x) for a in arrays for x in labels.roots(a)} - {0} for role, arrays in roles.items()}
    members: list[list[Member]] = [[] for _ in homes.widths]
    for (kind, name, dim), of_site in channels.items():
        for number, channel in of_site.of_unit.items() if kind == "parameter" else ():
            per_channel = int((channel >= 0).sum()) // homes.widths[number]
            members[number].append(Member(parameter=name, dim=dim, per_channel=per_channel))
    units, taken = [], Counter[str]()
    for number, width in enumerate(homes.widths):
        kind = next((role for role, of_role in marked.items() if of_role & homes.atoms_of(number)[0]), "channel")
        name = _unit_name(members[number])
        taken[name] += 1
        suffix = f"#{taken[name]}" if taken[name] > 1 else ""
        units.append(Unit(name=name + suffix, kind=kind, width=width, members=tuple(members[number])))
    return tuple(units)


def _unit_name(members: Sequence[Member]) -> str:
    """Return the path of the module that produces the channels: of the first weight that is cut along dimension 0."""
    producers = [m for m in members if m.dim == 0 and m.parameter.endswith("weight")]
    first = (producers or list(members))[0].parameter
    return first.rpartition(".")[0] or first
