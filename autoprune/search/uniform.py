"""The baseline of every comparison: one keep ratio for all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.records import Policy, SearchSpace
from autoprune.search.limits import Predict, fits

_RATIOS = np.linspace(0, 1, 401)


def uniform_policy(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limit_ms: float
) -> Policy | None:
    """The uniform policy with the largest predicted latency that fits the limit; None when not even the smallest does.

    Each searched unit takes the level nearest to ratio x `dense_widths[unit]` (the wider one when two are as near);
    other units stay. Of policies with equal latency the widest one is taken.
    """
    policies = list(dict.fromkeys(_snapped(space, dense_widths, float(ratio)) for ratio in _RATIOS))
    latency_ms = np.asarray(predict(policies), dtype=float)
    fitting = np.flatnonzero(fits(latency_ms, limit_ms)).tolist()
    return policies[max(fitting, key=lambda i: (latency_ms[i], i))] if fitting else None


def baselines(
    space: SearchSpace, dense_widths: Mapping[str, int], predict: Predict, limits_ms: Sequence[float]
) -> dict[float, Policy]:
    """The uniform policy of every limit that has one."""
    found = {limit: uniform_policy(space, dense_widths, predict, limit) for limit in limits_ms}
    return {limit: policy for limit, policy in found.items() if policy is not None}


def _snapped(space: SearchSpace, dense_widths: Mapping[str, int], ratio: float) -> Policy:
    return space.policy({name: _nearest(space.levels[name], ratio * dense_widths[name]) for name in space.searched})


def _nearest(levels: Sequence[int], width: float) -> int:
    return min(reversed(levels), key=lambda level: abs(level - width))
