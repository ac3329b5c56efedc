"""The baseline of every comparison: one keep ratio for all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.allocation.limits import Predict, excess
from autoprune.budgets import Limit
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.treatments import Level

_LATENCY = COSTS.index("latency_ms")
_RATIOS = np.linspace(0, 1, 401)


def uniform_policy(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limit: Limit
) -> Policy | None:
    """The uniform policy that fits the limit and comes nearest to it; None when not even the smallest fits.

    Nearest in the cost that is tightest: with a limit on latency alone, the slowest policy that fits.

    Each searched unit takes the level above 0 nearest to ratio x `dense_widths[unit]` (the wider one when two are as
    near): it removes no branches. Other units stay. Of policies that come as near the slowest is taken, and of equally
    slow ones the widest.

    Where layers may be treated, all are dense or all have their cheapest treatment, whichever keeps more channels.
    """
    fitting = uniform_policies(space, dense_widths, predict, limit)
    return max(fitting, key=lambda policy: sum(policy.widths.values()), default=None)


def uniform_policies(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limit: Limit
) -> list[Policy]:
    """The policies that `uniform_policy` chooses from: with all layers dense, and with all of them treated."""
    treated: dict[str, Level] = {name: space.levels[name][0] for name in space.layer_names}
    nearest = [
        _nearest_to(limit, predict, [_snapped(space, dense_widths, float(ratio), chosen) for ratio in _RATIOS])
        for chosen in ([{}, treated] if treated else [{}])
    ]
    return list(dict.fromkeys(policy for policy in nearest if policy is not None))


def _nearest_to(limit: Limit, predict: Predict, candidates: Sequence[Policy]) -> Policy | None:
    policies = list(dict.fromkeys(candidates))
    costs = predict(policies)
    beyond = excess(costs, limit)
    fitting = np.flatnonzero(beyond <= 0).tolist()
    return policies[max(fitting, key=lambda i: (beyond[i], costs[i, _LATENCY], i))] if fitting else None


def baselines(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limits: Sequence[Limit]
) -> dict[Limit, Policy]:
    """The uniform policy of every limit that has one."""
    policies = {limit: uniform_policy(space, dense_widths, predict, limit) for limit in limits}
    return {limit: policy for limit, policy in policies.items() if policy is not None}


def _snapped(
    space: SearchSpace, dense_widths: Mapping[str, int], ratio: float, treatments: Mapping[str, Level]
) -> Policy:
    units = [name for name in space.unit_names if len(space.levels[name]) > 1]
    widths = {name: _nearest(space.widths_of(name), ratio * dense_widths[name]) for name in units}
    return space.policy({**treatments, **widths})


def _nearest(levels: Sequence[int], width: float) -> int:
    return min(reversed([level for level in levels if level]), key=lambda level: abs(level - width))
