"""The baseline of every comparison: one keep ratio for all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.allocation.limits import Predict, excess
from autoprune.budgets import Limit
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.treatments import Level, Treatment

_LATENCY = COSTS.index("latency_ms")
_RATIOS = np.linspace(0, 1, 401)


def uniform_policy(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limit: Limit
) -> Policy | None:
    """The uniform policy that fits the limit and comes nearest to it; None when not even the smallest fits.

    Nearest in the cost that is tightest: with a limit on latency alone, the slowest policy that fits.

    Each searched unit takes the level above 0 nearest to ratio x `dense_widths[unit]` (the wider one when two are as
    near): it removes no branches. Other units stay. All layers are dense, or all have their first treatment,
    whichever leaves wider units. Of policies that come as near the slowest is taken, and of equally
    slow ones the widest.
    """
    treated = [False, True] if space.layer_names else [False]
    policies = list(
        dict.fromkeys(_snapped(space, dense_widths, float(ratio), cheap) for ratio in _RATIOS for cheap in treated)
    )
    costs = predict(policies)
    beyond = excess(costs, limit)
    fitting = np.flatnonzero(beyond <= 0).tolist()
    kept = [sum(policies[i].widths.values()) for i in fitting] if len(treated) > 1 else [0] * len(fitting)
    best = (
        max(zip(kept, fitting, strict=True), key=lambda e: (e[0], beyond[e[1]], costs[e[1], _LATENCY], e[1]))[1]
        if fitting
        else None
    )
    return None if best is None else policies[best]


def baselines(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limits: Sequence[Limit]
) -> dict[Limit, Policy]:
    """The uniform policy of every limit that has one."""
    policies = {limit: uniform_policy(space, dense_widths, predict, limit) for limit in limits}
    return {limit: policy for limit, policy in policies.items() if policy is not None}


def _snapped(space: SearchSpace, dense_widths: Mapping[str, int], ratio: float, cheap: bool) -> Policy:
    choices: dict[str, Level] = {name: space.levels[name][0] for name in space.layer_names} if cheap else {}
    units = [name for name in space.searched if not isinstance(space.levels[name][-1], Treatment)]
    return space.policy(choices | {n: _nearest(space.widths_of(n), ratio * dense_widths[n]) for n in units})


def _nearest(levels: Sequence[int], width: float) -> int:
    return min(reversed([level for level in levels if level]), key=lambda level: abs(level - width))
