from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.records import SearchSpace
from autoprune.search.baselines.halp import halp_policy, lost_importance
from tests import fakes

LEVELS = (0, 1, 2, 4)
SPACE = SearchSpace(id="tiny", levels=dict.fromkeys("abc", LEVELS))


def tiny_search(predict, importance, **changes):
    world = {"space": SPACE, "dense_widths": dict.fromkeys("abc", 4), "predict": predict, "importance": importance}
    return fakes.search(Path("unused"), strategy="halp", **world | changes)


def least_lost(search, limit):
    policies = [SPACE.policy(dict(zip("abc", widths, strict=True))) for widths in itertools.product(LEVELS, repeat=3)]
    fitting = [p for p, fit in zip(policies, fits(search.predict(policies), limit), strict=True) if fit]
    return min(lost_by(search, policy) for policy in fitting)


def lost_by(search, policy):
    lost = lost_importance(search)
    return sum(lost[name][LEVELS.index(policy.widths[name])] for name in "abc")


def by_unit(values):
    return st.fixed_dictionaries(dict.fromkeys("abc", values))


PRICES = by_unit(st.integers(1, 9))
IMPORTANCE = by_unit(st.lists(st.floats(0, 1), min_size=4, max_size=4).map(np.array))


@settings(max_examples=25)
@given(prices=PRICES, importance=IMPORTANCE, share=st.floats(0.05, 1))
def test_one_knapsack_over_additive_latency_is_optimal(prices, importance, share):
    def predict(policies):
        return fakes.costs_of(lambda policy: 1 + sum(prices[n] * w for n, w in policy.widths.items()), policies)

    search = tiny_search(predict, importance)
    limit = Limit.of(latency_ms=1 + share * 4 * sum(prices.values()))
    policy = halp_policy(search, lost_importance(search), limit, steps=1)
    assert fits(search.predict([policy])[0], limit)
    assert lost_by(search, policy) == pytest.approx(least_lost(search, limit), abs=1e-5)


def test_what_is_lost_is_the_importance_of_the_worst_channels():
    lost = lost_importance(tiny_search(fakes.predict, dict.fromkeys("abc", np.array([1.0, 8.0, 2.0, 4.0]))))
    assert lost["a"].tolist() == [15.0, 7.0, 3.0, 0.0]


def test_each_step_looks_latency_up_at_the_widths_of_the_moment():
    """Latency is a product: halving both widths saves less than twice the saving of halving one."""

    def predict(policies):
        return fakes.costs_of(lambda policy: 1 + policy.widths["a"] * policy.widths["b"], policies)

    def policies(steps):
        importance = {"a": np.array([9.0, 9.0, 1.0, 1.0]), "b": np.array([99.0, 99.0, 1.0, 1.0]), "c": np.ones(4)}
        searches = [tiny_search(predict, importance, run_seed=seed) for seed in range(8)]
        return {halp_policy(search, lost_importance(search), Limit.of(latency_ms=4), steps) for search in searches}

    assert policies(8) == {SPACE.policy({"a": 1, "b": 2})}
    # A single step ends at two and two, which costs 5 ms, and is repaired at random.
    assert len(policies(1)) > 1


def test_a_last_answer_beyond_the_limit_is_repaired():
    """No unit saves anything alone, so that no knapsack has an answer."""

    def predict(policies):
        return fakes.costs_of(lambda policy: 1 + max(policy.widths.values()), policies)

    search = tiny_search(predict, dict.fromkeys("abc", np.ones(4)))
    policy = halp_policy(search, lost_importance(search), Limit.of(latency_ms=3))
    assert policy == SPACE.policy(dict.fromkeys("abc", 2))
