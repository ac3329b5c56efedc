"""HALP: hardware-aware latency pruning (Shen et al., Structural pruning via latency-saliency knapsack, NeurIPS 2022).

A knapsack keeps the channels of most summed Taylor importance within a latency, over and over: the budget shrinks
exponentially from the dense latency to the limit, and each time the latency of every level is looked up again with all
other widths as they are then. Channels that were removed do not come back.

Differences: importance is that of the dense network, where the original averages it again while training between the
steps. A step is a multiple-choice knapsack over levels, solved exactly, as in SMCP (Humble et al., Soft masking for
cost-constrained channel pruning, ECCV 2022), not an augmented 0-1 knapsack over groups of channels. The latency of a
level includes what it saves in the layers that read the unit, where the original counts that in the next step. Other
limited costs get a row of their own. A last answer beyond the limit is repaired.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.allocation.limits import fits
from autoprune.allocation.solver import Solver
from autoprune.budgets import Limit
from autoprune.records import COSTS, Policy
from autoprune.search.baselines.shared import Array, fitted, score_baselines, sorted_importance
from autoprune.search.explore import Explorer, Search

_STEPS = 8


def halp(explorer: Explorer) -> None:
    """Score the policy that the knapsacks end with, for every limit."""
    search = explorer.search
    lost = lost_importance(search)
    score_baselines(explorer)
    explorer.score({halp_policy(search, lost, limit): search.strategy for limit in search.limits})


def lost_importance(search: Search) -> dict[str, Array]:
    """Summed importance of the channels that every level of every searched unit removes, `[levels]`."""
    return {
        name: np.array([values[level:].sum() for level in search.space.levels[name]])
        for name, values in sorted_importance(search).items()
    }


def halp_policy(search: Search, lost: Mapping[str, Array], limit: Limit, steps: int = _STEPS) -> Policy:
    """The policy after `steps` knapsacks on the way to the limit; a step without an answer is left out."""
    policy = search.space.largest()
    (dense,) = search.predict([policy])
    for step in range(1, steps + 1):
        policy = _knapsack(search, lost, policy, _budget(dense, limit, step / steps)) or policy
    if fits(search.predict([policy])[0], limit):
        return policy
    return fitted(search, policy, limit, np.random.default_rng(search.run_seed))


def _budget(dense: Array, limit: Limit, share: float) -> Limit:
    """A limit on the exponential way from the dense costs `[K]` to `limit`, at a share above 0 of it."""
    most = np.array(limit.most)
    limited = np.isfinite(most)
    start, target = dense[limited], most[limited]
    most[limited] = np.maximum(start ** (1 - share) * target**share, target)
    return Limit(most=tuple(most.tolist()))


def _knapsack(search: Search, lost: Mapping[str, Array], current: Policy, limit: Limit) -> Policy | None:
    """The policy of least lost importance, no unit wider than now, as if each changed its costs by itself."""
    space = search.space
    (now,) = search.predict([current])
    changes, values = {}, {}
    for name in space.searched:
        levels = space.levels[name]
        changes[name] = search.predict([space.policy({**current.widths, name: level}) for level in levels]) - now
        values[name] = np.where(np.array(levels) <= current.widths[name], lost[name], np.inf)
    costs = {
        cost: AdditiveCost(
            constant=float(now[place]),
            tables=tuple(CostTable(units=(name,), values=change[:, place]) for name, change in changes.items()),
        )
        for place, cost in enumerate(COSTS)
        if cost in limit.limited
    }
    return Solver(space, costs).solve(values, limit)
