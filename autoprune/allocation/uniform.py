"""The baseline of every comparison: one keep ratio for all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.allocation.limits import Predict, excess
from autoprune.budgets import Limit
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.sparsity.patterns import Pattern
from autoprune.treatments import DENSE, Level, Treatment, timed_levels

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

    Where layers may be treated, all are dense or all are treated alike, whichever keeps more channels.
    """
    fitting = uniform_policies(space, dense_widths, predict, limit)
    return max(fitting, key=lambda policy: sum(policy.widths.values()), default=None)


def uniform_policies(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limit: Limit
) -> list[Policy]:
    """The policies that `uniform_policy` chooses from.

    Those with all layers dense, with all of them treated in the cheapest way without zeros, and, for each precision
    of weights that the space offers with zeros, with the same zeros in all layers that can have them.
    """
    nearest = [
        _nearest_to(limit, predict, [_snapped(space, dense_widths, float(ratio), chosen)
                                     for chosen in alike for ratio in (_RATIOS if space.unit_names else _RATIOS[-1:])])
        for alike in _alike(space)
    ]  # fmt: skip
    return list(dict.fromkeys(policy for policy in nearest if policy is not None))


def uniform_kinds(space: SearchSpace) -> int:
    """Return about how many uniform policies a limit has: narrower in fp32, all treated, and zeros by precision."""
    has_widths = any(len(space.levels[name]) > 1 for name in space.unit_names)
    return max(len(_alike(space)) - (not has_widths), 1)


def _alike(space: SearchSpace) -> list[list[dict[str, Level]]]:
    """Return the treatments that uniform policies choose from: all dense, all treated, and zeros by precision."""
    timed = {name: timed_levels(space.levels[name]) for name in space.layer_names}
    cheapest: dict[str, Level] = {name: levels[0] for name, levels in timed.items()}
    treated = {name: level for name, level in cheapest.items() if level in space.levels[name] and level != DENSE}
    groups: list[list[dict[str, Level]]] = [[{}], *([[treated]] if treated else [])]
    zeros: dict[str, dict[Pattern, dict[str, Level]]] = {}
    for name in space.layer_names:
        for level in space.levels[name]:
            if isinstance(level, Treatment) and level.pattern is not None:
                alike = zeros.setdefault(level.weights_precision, {}).setdefault(level.pattern, {})
                alike.setdefault(name, level)
    return [*groups, *([*patterns.values()] for patterns in zeros.values())]


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
