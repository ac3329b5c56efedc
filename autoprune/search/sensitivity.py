"""Sensitivities: what each unit loses at each of its levels when all others stay full.

What a unit loses falls about exponentially with the share of it that is kept, and at nearly the same rate in all units
of a model. So a few levels are measured, and the others follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.records import Policy, SearchSpace
from autoprune.study.spec import SMALLEST_LOSS

Array = npt.NDArray[np.float64]

_FAILED_LOSS_FACTOR = 10.0
"""A level whose trial failed counts as so many times the largest loss that was measured."""

_MIDDLE = 0.5
"""Share of a unit nearest to which its second level is measured."""

_EVERY = 3
"""Of the units that can be removed every third is measured at a second level."""

_USUAL_RATE = -5.0
"""Change of a loss's logarithm over a whole unit where no unit shows it; mostly 3 to 7."""


def single_unit_policies(space: SearchSpace) -> dict[Policy, str]:
    """One policy for each level of each searched unit, all others full, in the order of the units."""
    return dict.fromkeys(_policies(space, {name: space.levels[name][:-1] for name in space.searched}), "sensitivity")


def anchor_policies(space: SearchSpace) -> dict[Policy, str]:
    """Those of `single_unit_policies` that say what the others lose.

    A unit's smallest level and the one nearest to half. What removing it loses is enough of most units that can be
    removed: how the loss falls from there on is what others of them show.
    """
    anchors: dict[str, list[int]] = {}
    removable = 0
    for name in space.searched:
        *below, full = space.levels[name]
        anchors[name] = sorted({below[0], min(below, key=lambda level: abs(level - _MIDDLE * full))})
        if below[0] == 0:
            anchors[name] = anchors[name] if removable % _EVERY == 0 else [0]
            removable += 1
    return dict.fromkeys(_policies(space, anchors), "sensitivity")


def _policies(space: SearchSpace, levels: Mapping[str, Sequence[int]]) -> Iterator[Policy]:
    for name, wanted in levels.items():
        yield from (space.policy({name: level}) for level in reversed(wanted))


def sensitivities(
    space: SearchSpace, losses: Mapping[Policy, float], measured: Collection[Policy] | None = None
) -> dict[str, Array]:
    """Divergence of every level of every searched unit, `[levels]`, from the losses of single-unit policies.

    Made monotone: a narrower level never loses less. A level without a loss (its trial failed) loses as much as can be.
    With `measured` policies (default: all single-unit ones) others are estimated: the logarithm of their loss is on a
    line in the width, through the measured levels of their unit, or falling as in the median unit where there is one.
    """
    measured = single_unit_policies(space) if measured is None else measured
    failed = _FAILED_LOSS_FACTOR * max(losses.values(), default=1.0)
    lines = {}
    for name in space.searched:
        policies = {level: space.policy({name: level}) for level in space.levels[name][:-1]}
        known = {level: losses.get(policy, failed) for level, policy in policies.items() if policy in measured}
        values = np.maximum.accumulate(np.maximum(list(known.values())[::-1], 0.0))[::-1]
        lines[name] = _Line(np.array(list(known)) / space.levels[name][-1], values)
    rates = [line.rate for line in lines.values() if line.rate is not None]
    usual = float(np.median(rates)) if rates else _USUAL_RATE
    kept = {name: np.array(space.levels[name][:-1]) / space.levels[name][-1] for name in space.searched}
    return {name: np.append(line.at(kept[name], usual), 0.0) for name, line in lines.items()}


@dataclass(frozen=True)
class _Line:
    """Losses `[K]` of one unit at the shares `[K]` of it that are kept, both in the order of the shares."""

    shares: Array
    losses: Array

    @property
    def rate(self) -> float | None:
        """How the logarithm of the loss changes with the share, towards the full unit."""
        if len(self.shares) < 2:
            return None
        logs = np.log(np.maximum(self.losses[-2:], SMALLEST_LOSS))
        return float((logs[1] - logs[0]) / (self.shares[-1] - self.shares[-2]))

    def at(self, shares: Array, usual: float) -> Array:
        """Losses at these shares, `[levels]`; `usual` is the rate where this unit has none."""
        rate = usual if self.rate is None else self.rate
        logs = np.log(np.maximum(self.losses, SMALLEST_LOSS))
        found = np.interp(shares, self.shares, logs) + rate * np.maximum(shares - self.shares[-1], 0.0)
        return np.where(np.isin(shares, self.shares), np.interp(shares, self.shares, self.losses), np.exp(found))


def by_unit(space: SearchSpace, table: Mapping[str, Array], policies: Sequence[Policy]) -> Array:
    """Sensitivities of policies by unit, `[P, searched units]`."""
    columns = [table[name] for name in space.searched]
    rows = [[c[place] for c, place in zip(columns, space.places(policy), strict=True)] for policy in policies]
    return np.array(rows, dtype=float).reshape(len(policies), len(space.searched))
