"""Sensitivities: what each unit loses at each of its levels when all others stay full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.records import Policy, SearchSpace

_FAILED_LOSS_FACTOR = 10.0
"""A level whose trial failed counts as so many times the largest loss that was measured."""


def single_unit_policies(space: SearchSpace) -> dict[Policy, str]:
    """One policy for each level of each searched unit, all others full, in the order of the units."""
    found: dict[Policy, str] = {}
    for name in space.searched:
        for level in reversed(space.levels[name][:-1]):
            found[space.policy({name: level})] = "sensitivity"
    return found


def sensitivities(space: SearchSpace, losses: Mapping[Policy, float]) -> dict[str, np.ndarray]:
    """Divergence of every level of every searched unit, `[levels]`, from the losses of `single_unit_policies`.

    Made monotone: a narrower level never loses less. A level without a loss (its trial failed) loses as much as can be.
    """
    largest = max(losses.values(), default=1.0)
    table = {}
    for name in space.searched:
        levels = space.levels[name][:-1]
        raw = [losses.get(space.policy({name: level}), _FAILED_LOSS_FACTOR * largest) for level in levels] + [0.0]
        table[name] = np.maximum.accumulate(np.maximum(raw[::-1], 0.0))[::-1]
    return table


def by_unit(space: SearchSpace, table: Mapping[str, np.ndarray], policies: Sequence[Policy]) -> np.ndarray:
    """Sensitivities of policies by unit, `[P, searched units]`."""
    columns = [table[name] for name in space.searched]
    rows = [[c[place] for c, place in zip(columns, space.places(policy), strict=True)] for policy in policies]
    return np.array(rows, dtype=float).reshape(len(policies), len(space.searched))
