from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoprune.records import SearchSpace
from autoprune.search.baselines.global_scores import policies_by_threshold
from tests import fakes
from tests.search.baselines.instant import explored


def widths(space, importance):
    return [tuple(policy.widths.values()) for policy in policies_by_threshold(space, importance)]


def test_thresholds_by_hand():
    space = SearchSpace(id="s", levels={"a": (1, 2, 4), "b": (1, 3), "fixed": (5,)})
    # Of their means, 2.5 and 20: 1.6, 1.2, 0.8, 0.4 and 1.5, 1.0, 0.5.
    importance = {"a": np.array([4.0, 3.0, 2.0, 1.0]), "b": np.array([30.0, 20.0, 10.0])}
    assert widths(space, importance) == [(4, 3, 5), (2, 3, 5), (2, 1, 5), (1, 1, 5)]


def test_a_unit_goes_when_none_of_its_channels_reaches_the_threshold():
    space = SearchSpace(id="s", levels={"a": (0, 2, 4), "b": (2, 4)})
    importance = {"a": np.array([1.3, 1.2, 0.8, 0.7]), "b": np.array([1.9, 1.7, 0.3, 0.1])}
    # At 1.25 a single channel of `a` is left: it keeps two. Above 1.3 there is none.
    assert widths(space, importance) == [(4, 4), (4, 2), (2, 2), (0, 2)]


def test_equal_importance_is_cut_together():
    space = SearchSpace(id="s", levels={"a": (1, 2), "b": (1, 2)})
    assert widths(space, {"a": np.ones(2), "b": np.zeros(2)}) == [(2, 2), (2, 1), (1, 1)]


@given(st.lists(st.lists(st.integers(0, 6).map(float), min_size=6, max_size=6), min_size=1, max_size=4))
def test_policies_are_nested_from_the_largest_to_the_smallest(scores):
    space = SearchSpace(id="s", levels={str(i): ((0, 2, 3, 6), (1, 4, 6))[i % 2] for i in range(len(scores))})
    importance = {str(i): np.sort(row)[::-1] for i, row in enumerate(scores)}
    policies = policies_by_threshold(space, importance)
    assert (policies[0], policies[-1]) == (space.largest(), space.smallest())
    for wider, narrower in pairwise(policies):
        assert all(narrower.widths[name] <= wider.widths[name] for name in space.levels)


def test_the_order_in_which_importance_is_given_does_not_matter():
    shuffled = {n: np.random.default_rng(0).permutation(v) for n, v in fakes.IMPORTANCE.items()}
    assert explored("global-taylor", importance=shuffled).asked == explored("global-taylor").asked
