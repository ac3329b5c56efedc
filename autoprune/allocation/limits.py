"""Whether a policy fits a limit, and by how much it does not; one definition for every file of the search.

Cost arrays are float64 `[..., K]`, in the order of `records.COSTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.budgets import Limit
from autoprune.errors import BudgetError
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.treatments import DENSE

_SETTERS = 3
_LATENCY = COSTS.index("latency_ms")
_PASSES = 2
"""Passes over all layers in which each takes its fastest treatment beside the others."""

Predict = Callable[[Sequence[Policy]], npt.NDArray[np.float64]]
"""Predicted costs of policies, `[P, K]`; a cost that no limit of the search is about may be 0, latency never."""

# A predictor may round latency differently for one policy than for a hundred at once; all other costs are exact.
_TOLERANCE = np.array([1e-6 if name == "latency_ms" else 0.0 for name in COSTS])


def excess(costs: npt.ArrayLike, limit: Limit) -> npt.NDArray[np.float64]:
    """How far costs are beyond a limit, `[...]`: the largest share of a maximum; 0 or less when all fit."""
    return (np.asarray(costs, dtype=float) / np.array(limit.most) - 1 - _TOLERANCE).max(axis=-1)


def violation(costs: npt.ArrayLike, limits: Sequence[Limit]) -> float:
    """How far one policy's costs are beyond the loosest limit; 0 or less when they fit one, and without limits."""
    return min((float(excess(costs, limit)) for limit in limits), default=0.0)


def fits(costs: npt.ArrayLike, limit: Limit) -> npt.NDArray[np.bool_]:
    """Mask `[...]` of the costs that fit the limit in every respect."""
    return excess(costs, limit) <= 0


def fastest(space: SearchSpace, predict: Predict) -> Policy:
    """Return about the policy of least latency: the smallest widths, every layer in its fastest treatment there.

    Narrow layers are slower in int8, so that the first treatment of a layer need not be its fastest.
    """
    dense = dict.fromkeys(space.layer_names, DENSE)
    starts = [space.smallest(), space.policy({**space.smallest().choices, **dense})]
    policy = starts[int(predict(starts)[:, _LATENCY].argmin())]
    for name in [name for _ in range(_PASSES) for name in space.layer_names]:
        options = [space.policy({**policy.choices, name: level}) for level in space.levels[name]]
        policy = options[int(predict(options)[:, _LATENCY].argmin())]
    return policy


def require_reachable(
    space: SearchSpace, predict: Predict, limits: Mapping[str, Limit], additive: Additive | None = None
) -> None:
    """Raise `BudgetError` unless the smallest policy of the space, or its fastest, fits every limit.

    The error states the floors and, with `additive` costs, the decisions that set them. `limits` are named as their
    budgets were written.
    """
    if not limits:
        raise BudgetError("a search needs at least one budget; got none")
    policies = dict.fromkeys([space.smallest(), fastest(space, predict)])
    *floors, ceiling = predict([*policies, space.largest()])
    for name, limit in limits.items():
        policy, floor = min(zip(policies, floors, strict=True), key=lambda pair: float(excess(pair[1], limit)))
        if not fits(floor, limit):
            raise BudgetError(
                f"the budget {name} (at most {limit}) cannot be reached: the smallest policy of the space takes "
                f"{limit.shown(floor)}, {_shares(floor, ceiling, limit)} of the largest"
                f"{_setters(space, limit, policy, floor, additive or {})}. "
                "Raise the budget, or allow smaller widths in the search space."
            )


def _shares(floor: npt.NDArray[np.float64], ceiling: npt.NDArray[np.float64], limit: Limit) -> str:
    return ", ".join(f"{a / b:.1%}" for name, a, b in zip(COSTS, floor, ceiling, strict=True) if name in limit.limited)


def _setters(
    space: SearchSpace, limit: Limit, policy: Policy, floor: npt.NDArray[np.float64], additive: Additive
) -> str:
    """The decisions whose operators cost most in a policy, of the cost that is farthest beyond its maximum."""
    beyond = floor / np.array(limit.most)
    name = COSTS[int(beyond.argmax())]
    if name not in additive:
        return ""
    shares = dict.fromkeys(space.searched, 0.0)
    for table in additive[name].tables:
        places = tuple(space.levels[unit].index(policy.level(unit)) for unit in table.units)
        for unit in set(table.units) & shares.keys():
            shares[unit] += float(table.values[places]) / float(floor[COSTS.index(name)])
    largest = sorted(shares, key=lambda unit: -shares[unit])[:_SETTERS]
    units = ", ".join(f"{unit} at {policy.level(unit)} ({shares[unit]:.0%})" for unit in largest)
    return f", most of it in operators of {units}" if units else ""
