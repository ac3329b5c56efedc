"""Choosing a model of a run as people say it: limits on costs, and scores relative to the dense model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from autoprune.budgets import BUDGET_TOLERANCE, Limit, most_of
from autoprune.errors import UsageError

Amount = str | float
"""The most of a cost: a share of the dense model's (`50%`), a number with a unit (`1.2ms`, `1MB`), or a bare number."""


def cost_limit(dense: Mapping[str, Any], amounts: Mapping[str, Amount | None]) -> Limit | None:
    """Return the maxima of some costs; `None` when none is limited.

    A latency may pass its limit by the tolerance of a budget, `BUDGET_TOLERANCE`: a model that met a budget of 50 % is
    picked with `50%`, too.

    Args:
        dense: entry of the dense model in `front.json`.
        amounts: by the cost as budgets name it: `latency`, `params`, `macs`, `bytes` or `activation_bytes`.

    Raises:
        BudgetError: for an amount that cannot be read.
    """
    most: dict[str, float] = {}
    for cost, amount in amounts.items():
        if amount is None:
            continue
        timed = cost == "latency"
        of_dense = dense["latency_ms_measured"] if timed else dense.get(cost)
        maximum = most_of(cost, amount, math.nan if of_dense is None else of_dense)
        if math.isnan(maximum):
            raise UsageError(
                f"this run does not know the {cost} of its dense model, so a share of it says nothing: give an amount"
            )
        most["latency_ms" if timed else cost] = maximum * (1 + BUDGET_TOLERANCE) if timed else maximum
    return Limit.of(**most) if most else None


def least_score(dense_score: float, min_score: float | None, max_drop: Amount | None) -> float | None:
    """Return the score that a model must have; `None` when any will do.

    Args:
        dense_score: score of the dense model on validation data.
        min_score: the least score.
        max_drop: how far the score may lie below the dense model's: `0.01`, or `1%` of the dense model's score.

    Raises:
        UsageError: for a drop that is no number of 0 or more and no share.
    """
    least = [] if min_score is None else [float(min_score)]
    if max_drop is not None:
        least.append(dense_score - _drop(dense_score, max_drop))
    return max(least, default=None)


def _drop(dense_score: float, max_drop: Amount) -> float:
    rule = "max_drop is how far the score may lie below the dense model's, as in 0.01, or 1% of the dense score"
    text = str(max_drop).strip()
    if text.endswith("%"):
        return abs(dense_score) * _number(text[:-1], rule) / 100
    if isinstance(max_drop, bool) or not isinstance(max_drop, (str, Real)):
        raise UsageError(f"{rule}; got {max_drop!r}")
    return _number(text, rule)


def _number(text: str, rule: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UsageError(f"{rule}; got {text!r}")
    return number
