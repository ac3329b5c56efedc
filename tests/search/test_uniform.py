from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.errors import BudgetError
from autoprune.records import SearchSpace
from autoprune.search.limits import require_reachable
from autoprune.search.uniform import baselines, uniform_policy
from tests.search.fakes import DENSE, DENSE_MS, SPACE, predict


def test_it_is_the_slowest_uniform_policy_that_fits():
    policy = uniform_policy(SPACE, DENSE, predict, 0.7 * DENSE_MS)
    assert policy == SPACE.policy(dict.fromkeys(SPACE.searched, 5)), "6 of 8 would be beyond 70 %"


@settings(max_examples=30)
@given(st.floats(0.3, 1.2))
def test_it_fits_and_the_next_wider_one_does_not(ratio):
    policy = uniform_policy(SPACE, DENSE, predict, ratio * DENSE_MS)
    widths = {policy.widths[n] for n in SPACE.searched} if policy else {1}
    assert len(widths) == 1, "equal units are cut equally"
    width = widths.pop()
    assert policy is None or predict([policy])[0] <= ratio * DENSE_MS * 1.001
    if width < 8:
        assert predict([SPACE.policy(dict.fromkeys(SPACE.searched, width + 1))])[0] > ratio * DENSE_MS


def test_widths_snap_to_the_nearest_level_and_fixed_units_stay():
    space = SearchSpace(id="s", levels={"a": (8, 16, 32), "b": (4, 12, 16), "c": (3,)})
    total = {"a": 32, "b": 16, "c": 10}
    policy = uniform_policy(space, total, lambda ps: np.array([sum(p.widths.values()) for p in ps]), 33)
    assert policy
    assert dict(policy.widths) == {"a": 16, "b": 12, "c": 3}


def test_of_equally_fast_policies_the_widest_is_taken():
    policy = uniform_policy(SPACE, DENSE, lambda policies: np.ones(len(policies)), 1)
    assert policy == SPACE.largest()


def test_baselines_leave_out_a_limit_that_nothing_fits():
    found = baselines(SPACE, DENSE, predict, [DENSE_MS, 0.01])
    assert found == {DENSE_MS: SPACE.largest()}


def test_a_limit_below_the_floor_is_an_error_that_states_it():
    floor = float(predict([SPACE.smallest()])[0])
    require_reachable(SPACE, predict, [DENSE_MS, floor])
    with pytest.raises(BudgetError, match=f"{floor:.4g} ms"):
        require_reachable(SPACE, predict, [DENSE_MS, floor * 0.99])
    with pytest.raises(BudgetError, match="at least one"):
        require_reachable(SPACE, predict, [])
