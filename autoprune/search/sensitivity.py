"""Sensitivities: what each unit loses at each of its levels when all others stay full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.records import Policy, SearchSpace
from autoprune.search.solver import Sensitivities
from autoprune.trials import TrialResult


def single_unit_policies(space: SearchSpace) -> dict[Policy, str]:
    """One policy for each level of each searched unit, all others full, in the order of the units."""
    found: dict[Policy, str] = {}
    for name in space.searched:
        for level in reversed(space.levels[name][:-1]):
            found[space.policy({name: level})] = "sensitivity"
    return found


def sensitivities(space: SearchSpace, results: Sequence[TrialResult]) -> dict[str, np.ndarray]:
    """Divergence of every level of every searched unit, `[levels]`, from the results of `single_unit_policies`.

    Made monotone: a narrower level never loses less. A level whose trial failed loses as much as can be.
    """
    losses = {r.policy: r.measurement.loss for r in results if r.measurement is not None}
    largest = max(losses.values(), default=1.0)
    table = {}
    for name in space.searched:
        levels = space.levels[name]
        raw = [losses.get(space.policy({name: level}), 10 * largest) for level in levels[:-1]] + [0.0]
        table[name] = np.maximum.accumulate(np.maximum(raw[::-1], 0.0))[::-1]
    return table


def summed(space: SearchSpace, table: Sensitivities, policies: Sequence[Policy]) -> np.ndarray:
    """Sensitivities of policies by unit, `[P, searched units]`."""
    rows = [
        [table[name][space.levels[name].index(policy.widths[name])] for name in space.searched] for policy in policies
    ]
    return np.array(rows, dtype=float).reshape(len(policies), len(space.searched))


def to_json(space: SearchSpace, table: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Loss by unit and width, for the run folder."""
    return {
        name: {str(level): float(loss) for level, loss in zip(space.levels[name], values, strict=True)}
        for name, values in table.items()
    }
