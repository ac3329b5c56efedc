"""Sensitivities: the loss of a model with one decision at one of its levels, all others dense.

The loss falls about exponentially with the kept share of the unit, at nearly the same rate in all units of a model. So
a few levels are measured, and the losses of the others are interpolated. Every treatment of a layer is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.records import Policy, SearchSpace
from autoprune.study.spec import SMALLEST_LOSS
from autoprune.treatments import Level

Array = npt.NDArray[np.float64]

_FAILED_LOSS_FACTOR = 10.0
"""Loss of a level whose trial failed, as a multiple of the largest measured loss."""

_MIDDLE = 0.5
"""Share of a unit that the second measured level comes nearest to."""

_EVERY = 3
"""Every third of the removable units is measured at a second level."""

_USUAL_RATE = -5.0
"""Change of the logarithm of the loss over a whole unit, used where no unit shows it (measured: -3 to -7)."""


def single_unit_policies(space: SearchSpace) -> dict[Policy, str]:
    """One policy for each level of each searched unit, all others full, in the order of the units."""
    return dict.fromkeys(_policies(space, {name: space.levels[name][:-1] for name in space.searched}), "sensitivity")


def anchor_policies(space: SearchSpace) -> dict[Policy, str]:
    """Return the policies of `single_unit_policies` that are measured; the losses of the others follow from theirs.

    They have a unit at its smallest level, and at the level nearest to half. Of removable units two in three are
    measured at width 0 alone: every third one shows how the loss falls from there.
    """
    anchors: dict[str, Sequence[Level]] = {}
    layers = set(space.layer_names)
    removable = 0
    for name in space.searched:
        if name in layers:
            anchors[name] = space.levels[name][:-1]
            continue
        *below, full = space.widths_of(name)
        anchors[name] = sorted({below[0], min(below, key=lambda level: abs(level - _MIDDLE * full))})
        if below[0] == 0:
            anchors[name] = anchors[name] if removable % _EVERY == 0 else [0]
            removable += 1
    return dict.fromkeys(_policies(space, anchors), "sensitivity")


def _policies(space: SearchSpace, levels: Mapping[str, Sequence[Level]]) -> Iterator[Policy]:
    for name, wanted in levels.items():
        yield from (space.policy({name: level}) for level in reversed(wanted))


def sensitivities(
    space: SearchSpace, losses: Mapping[Policy, float], measured: Collection[Policy] | None = None
) -> dict[str, Array]:
    """Return the loss of every level of every searched unit, `[levels]`, made monotone: narrower never loses less.

    Args:
        space: the units and their levels.
        losses: of single-unit policies. A measured policy without a loss (its trial failed) gets 10 times the largest.
        measured: the policies whose trials were run; default: all single-unit policies. The logarithm of the loss at
            any other level is interpolated linearly in the width. Beyond the widest measured level it falls at the rate
            of its unit, or at the median rate of all units where a unit has one measured level.
    """
    measured = single_unit_policies(space) if measured is None else measured
    failed = _FAILED_LOSS_FACTOR * max(losses.values(), default=1.0)
    lines, treated = {}, {}
    layers = set(space.layer_names)
    for name in space.searched:
        policies = {level: space.policy({name: level}) for level in space.levels[name][:-1]}
        known = {level: losses.get(policy, failed) for level, policy in policies.items() if policy in measured}
        losses_of = np.maximum(list(known.values()), 0.0)
        if name in layers:
            treated[name] = np.append(losses_of, 0.0)
            continue
        widths = np.array(list(known), dtype=float)
        lines[name] = _Line(widths / space.widths_of(name)[-1], np.maximum.accumulate(losses_of[::-1])[::-1])
    rates = [line.rate for line in lines.values() if line.rate is not None]
    usual = float(np.median(rates)) if rates else _USUAL_RATE
    kept = {name: np.array(space.widths_of(name)[:-1]) / space.widths_of(name)[-1] for name in lines}
    estimated = {name: np.append(line.at(kept[name], usual), 0.0) for name, line in lines.items()} | treated
    return {name: estimated[name] for name in space.searched}


@dataclass(frozen=True)
class _Line:
    """Losses `[K]` of one unit at its kept shares `[K]`, by ascending share."""

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
        estimated = np.interp(shares, self.shares, logs) + rate * np.maximum(shares - self.shares[-1], 0.0)
        return np.where(np.isin(shares, self.shares), np.interp(shares, self.shares, self.losses), np.exp(estimated))


def by_unit(space: SearchSpace, table: Mapping[str, Array], policies: Sequence[Policy]) -> Array:
    """Sensitivities of policies by unit, `[P, searched units]`."""
    columns = [table[name] for name in space.searched]
    rows = [[c[place] for c, place in zip(columns, space.places(policy), strict=True)] for policy in policies]
    return np.array(rows, dtype=float).reshape(len(policies), len(space.searched))
