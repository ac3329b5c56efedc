"""From labels to units: which channels go together, and which of them may be chosen freely.

An *atom* is a smallest set of labels that can be removed alone: the closure of one label under unions and
OR-equations that never reaches label 0. Atoms that touch the same dimensions equally often are interchangeable: they
are the channels of one unit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autoprune.records import Member, Unit
from autoprune.structure.labels import Array, Labels

Site = tuple[str, str, int]
"""A dimension: ("parameter", state-dict name, dim), or ("eval" | "train", node name, dim; -1: groups)."""


@dataclass(frozen=True)
class Channels:
    """Which channel of which unit each index of one dimension belongs to.

    `size` indices; `of_unit[u]` has shape `[size]`, the channel number in unit `u`, or -1. An index lives while every
    channel it belongs to is kept.
    """

    size: int
    of_unit: Mapping[int, Array]

    def first(self, size: int) -> Channels:
        """The first `size` indices alone."""
        return Channels(size, {unit: channel[:size] for unit, channel in self.of_unit.items()})

    def living(self, keep: Mapping[int, Array]) -> Array:
        """Boolean mask `[size]`; `keep[u]` is the boolean mask over the channels of unit `u`."""
        mask = np.ones(self.size, dtype=bool)
        for unit, channel in self.of_unit.items():
            mask &= (channel < 0) | keep[unit][channel]
        return mask


def find_units(labels: Labels, sites: Mapping[Site, list[Array]]) -> tuple[tuple[Unit, ...], dict[Site, Channels]]:
    """Units and, for every site, the channels of its indices.

    `sites` maps each labelled dimension to its components (1-d label arrays). Atoms whose living counts would not be a
    product of widths are fixed, and the search for units starts again.
    """
    while True:
        rooted = _rooted(labels, sites)
        atoms = _atoms(labels, rooted)
        groups = _interchangeable(atoms, rooted)
        lookups = _lookups(groups)
        found = {site: _channels(arrays, lookups) for site, arrays in rooted.items()}
        channels = {site: of_site for site, (of_site, _) in found.items()}
        ragged = {unit for _, conflicts in found.values() for unit in conflicts} | _overlapping(groups)
        ragged |= {unit for of_site in channels.values() for unit in _ragged(of_site, groups)}
        if not ragged:
            return _as_units(groups, channels), channels
        for unit in ragged:
            for atom in groups[unit]:
                labels.fix(np.array(sorted(atom)), "its living counts are not a product of widths")


def _rooted(labels: Labels, sites: Mapping[Site, list[Array]]) -> dict[Site, list[Array]]:
    labels.simplified()
    return {site: [labels.roots(a) for a in arrays] for site, arrays in sites.items()}


def _atoms(labels: Labels, rooted: Mapping[Site, list[Array]]) -> list[frozenset[int]]:
    """Minimal removable label sets, of those labels that occur in a parameter."""
    equations = labels.simplified()
    seeds = {int(x) for (kind, _, _), arrays in rooted.items() if kind == "parameter" for a in arrays for x in a} - {0}
    involved = {x for whole, causes in equations for x in (whole, *causes)}
    atoms = {frozenset([seed]) for seed in seeds - involved}
    of_label = defaultdict(list)
    for equation in equations:
        for label in (equation[0], *equation[1]):
            of_label[label].append(equation)
    closures = {
        c for c in (_closure(seed, of_label) for seed in sorted(seeds | involved - {0}) if seed in involved) if c
    }
    minimal = [c for c in closures if not any(other < c for other in closures)]
    return sorted(atoms.union(minimal), key=lambda a: min(a))


def _closure(seed: int, equations: Mapping[int, list[tuple[int, tuple[int, ...]]]]) -> frozenset[int] | None:
    """All labels that go when `seed` goes; `None` when no consistent set exists or a fixed label is reached.

    A removed cause removes the whole. A cause goes too once everything that it could be the cause of is gone.
    """
    removed, queue = {seed}, [seed]
    while queue:
        label = queue.pop()
        forced = {whole for whole, causes in equations[label] if label in causes}
        for whole, causes in equations[label]:
            if whole == label and not removed.intersection(causes):
                forced |= {c for c in causes if all(w in removed for w, cs in equations[c] if c in cs)}
        for new in forced - removed:
            removed.add(new)
            queue.append(new)
    if 0 in removed:
        return None
    consistent = all(removed.intersection(cs) for x in removed for whole, cs in equations[x] if whole == x)
    return frozenset(removed) if consistent else None


def _interchangeable(atoms: list[frozenset[int]], rooted: Mapping[Site, list[Array]]) -> list[list[frozenset[int]]]:
    """Group atoms by how often they occur at each site; atoms of a group in order of their first index."""
    home = defaultdict(list)
    for number, atom in enumerate(atoms):
        for label in atom:
            home[label].append(number)
    counts: list[Counter[Site]] = [Counter() for _ in atoms]
    first: dict[int, tuple[Site, int]] = {}
    for site, arrays in rooted.items():
        for array in arrays:
            for index, label in enumerate(array.tolist()):
                for number in home.get(label, ()):
                    counts[number][site] += 1
                    first.setdefault(number, (site, index))
    groups = defaultdict(list)
    for number in range(len(atoms)):
        groups[frozenset(counts[number].items())].append(number)
    order = {site: k for k, site in enumerate(rooted)}
    members = [sorted(group, key=lambda n: first[n][1]) for group in groups.values() if group[0] in first]
    members.sort(key=lambda group: (order[first[group[0]][0]], first[group[0]][1]))
    return [[atoms[n] for n in group] for group in members]


def _overlapping(groups: list[list[frozenset[int]]]) -> set[int]:
    """Units whose channels share a label, so that their number removed would depend on which are chosen."""
    return {u for u, atoms in enumerate(groups) if sum(map(len, atoms)) != len(frozenset().union(*atoms))}


def _lookups(groups: list[list[frozenset[int]]]) -> list[Array]:
    """Per unit, the channel of every label (`-1`: none)."""
    size = 1 + max((x for atoms in groups for atom in atoms for x in atom), default=0)
    lookups = []
    for atoms in groups:
        lookup = np.full(size + 1, -1, dtype=np.int64)
        for channel, atom in enumerate(atoms):
            lookup[list(atom)] = channel
        lookups.append(lookup)
    return lookups


def _channels(arrays: list[Array], lookups: list[Array]) -> tuple[Channels, set[int]]:
    """Channels of one site, and the units of which an index would belong to two channels at once."""
    of_unit: dict[int, Array] = {}
    conflicts: set[int] = set()
    for array in arrays:
        for unit, lookup in enumerate(lookups):
            channel = lookup[np.minimum(array, len(lookup) - 1)]
            if (channel < 0).all():
                continue
            before = of_unit.get(unit, channel)
            if ((before >= 0) & (channel >= 0) & (before != channel)).any():
                conflicts.add(unit)
            of_unit[unit] = np.where(channel >= 0, channel, before)
    return Channels(len(arrays[0]), of_unit), conflicts


def _ragged(channels: Channels, groups: list[list[frozenset[int]]]) -> set[int]:
    """Units of this site whose channels do not each cover as many indices together with every partner channel."""
    if not channels.of_unit:
        return set()
    names = sorted(channels.of_unit)
    belongs = np.stack([channels.of_unit[u] >= 0 for u in names])
    bad: set[int] = set()
    for pattern in {tuple(column) for column in belongs.T.tolist()}:
        units = [u for u, inside in zip(names, pattern, strict=True) if inside]
        where = (np.array(pattern) == belongs.T).all(axis=1)
        combos = Counter(zip(*(channels.of_unit[u][where].tolist() for u in units), strict=True))
        full = int(np.prod([len(groups[u]) for u in units])) if units else 1
        if units and (len(combos) != full or len(set(combos.values())) != 1):
            bad.update(units)
    return bad


def _as_units(groups: list[list[frozenset[int]]], channels: Mapping[Site, Channels]) -> tuple[Unit, ...]:
    units, taken = [], Counter()
    for number, atoms in enumerate(groups):
        members = tuple(
            Member(parameter=name, dim=dim, per_channel=int((found.of_unit[number] >= 0).sum()) // len(atoms))
            for (kind, name, dim), found in channels.items()
            if kind == "parameter" and number in found.of_unit
        )
        name = _unit_name(members)
        taken[name] += 1
        suffix = f"#{taken[name]}" if taken[name] > 1 else ""
        units.append(Unit(name=name + suffix, kind="channel", width=len(atoms), members=members))
    return tuple(units)


def _unit_name(members: tuple[Member, ...]) -> str:
    """Path of the module that produces the channels: the first weight that the unit cuts along dimension 0."""
    producers = [m for m in members if m.dim == 0 and m.parameter.endswith("weight")]
    first = (producers or list(members))[0].parameter
    return first.rpartition(".")[0] or first
