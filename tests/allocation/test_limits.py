from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoprune.allocation.limits import excess, fits, require_reachable
from autoprune.budgets import Limit
from autoprune.errors import BudgetError
from autoprune.records import COSTS
from tests.fakes import ADDITIVE, DENSE_MS, SPACE, latency_ms, predict

TOLERANCES = [1e-6 if name == "latency_ms" else 0.0 for name in COSTS]
"""Predicted latencies are rounded: they may be a millionth above their maximum, and no other cost may."""

amounts = st.lists(st.integers(1, 10**9).map(float), min_size=len(COSTS), max_size=len(COSTS))
limits = st.builds(Limit.of, **{name: st.integers(1, 10**9).map(float) | st.just(float("inf")) for name in COSTS})


@given(st.lists(amounts, min_size=1, max_size=5), limits)
@example([[2_000_001.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2_000_001.0, 1.0, 1.0, 1.0]], Limit(most=(2e6,) * 5))
def test_fitting_means_no_cost_is_above_its_maximum(costs, limit):
    expected = [
        all(cost / most - 1 <= tolerance for cost, most, tolerance in zip(row, limit.most, TOLERANCES, strict=True))
        for row in costs
    ]
    assert fits(costs, limit).tolist() == expected
    assert excess(costs, limit).shape == (len(costs),)


def test_the_excess_is_that_of_the_tightest_cost():
    limit = Limit.of(latency_ms=2, bytes=100)
    assert excess([1, 5, 5, 150, 5], limit) == pytest.approx(0.5)
    assert excess([3, 5, 5, 120, 5], limit) == pytest.approx(0.5, rel=1e-5)
    assert excess([1, 5, 5, 25, 5], limit) == pytest.approx(-0.5, rel=1e-5)


def test_rounding_is_forgiven_in_latency_alone():
    limit = Limit.of(latency_ms=1, params=10_000_000)
    assert fits([1 + 1e-9, 10_000_000, 1, 1, 1], limit)
    assert not fits([1, 10_000_001, 1, 1, 1], limit)


def test_a_limit_below_the_floor_is_an_error_that_states_every_floor():
    floor = latency_ms(SPACE.smallest())
    require_reachable(SPACE, predict, {"100%": Limit.of(latency_ms=DENSE_MS), "floor": Limit.of(latency_ms=floor)})
    with pytest.raises(BudgetError, match=rf"the budget low .* takes {floor:.4g} ms, .*% of the largest"):
        require_reachable(SPACE, predict, {"low": Limit.of(latency_ms=floor * 0.99)})
    (costs,) = predict([SPACE.smallest()])
    params, peak = int(costs[1]), int(costs[4])
    limit = Limit.of(latency_ms=DENSE_MS, params=params - 1, activation_bytes=peak)
    with pytest.raises(BudgetError, match=rf"takes {floor:.4g} ms, {params} params, {peak} activation bytes"):
        require_reachable(SPACE, predict, {"small": limit})
    with pytest.raises(BudgetError, match="at least one"):
        require_reachable(SPACE, predict, {})


def test_the_error_names_the_units_that_set_the_floor():
    floor = latency_ms(SPACE.smallest())
    with pytest.raises(BudgetError, match=r"operators of unit0 at 2 \(\d+%\), unit4 at 2 \(\d+%\), unit2 at 2"):
        require_reachable(SPACE, predict, {"low": Limit.of(latency_ms=floor * 0.9)}, ADDITIVE)
    with pytest.raises(BudgetError, match=r"of the largest\. Raise"):
        require_reachable(SPACE, predict, {"low": Limit.of(activation_bytes=1)}, ADDITIVE)


def test_costs_of_one_policy_and_of_many_have_the_same_verdict():
    costs = predict([SPACE.largest(), SPACE.smallest()])
    limit = Limit.of(latency_ms=0.9 * DENSE_MS, params=1e6)
    assert fits(costs, limit).tolist() == [bool(fits(row, limit)) for row in costs] == [False, True]
    assert np.ndim(fits(costs[0], limit)) == 0
