from __future__ import annotations

import numpy as np
import pytest

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.records import SearchSpace
from autoprune.search.baselines.fastnas import policies_by_bound
from autoprune.search.sensitivity import single_unit_policies
from tests import fakes
from tests.search.baselines.instant import explored


def test_bounds_by_hand():
    space = SearchSpace(id="s", levels={"a": (2, 4, 8), "b": (1, 3), "fixed": (5,)})
    degradations = {"a": np.array([0.3, 0.1, 0.0]), "b": np.array([0.2, 0.0])}
    widths = [tuple(policy.widths.values()) for policy in policies_by_bound(space, degradations)]
    assert widths == [(8, 3, 5), (4, 3, 5), (4, 1, 5), (2, 1, 5)]


def test_the_lowest_bound_whose_policy_fits_is_taken():
    explorer = explored("fastnas")
    space = fakes.SPACE
    lost = {p: fakes.loss_of(p) - fakes.loss_of(space.largest()) for p in single_unit_policies(space)}
    for limit, policy in zip(fakes.LIMITS, list(explorer.results)[2:], strict=True):
        bound = max(lost[space.policy({n: policy.widths[n]})] for n in space.searched if policy.widths[n] < 8)
        for name in space.searched:
            below = [level for level in space.levels[name] if level < policy.widths[name]]
            assert all(lost[space.policy({name: level})] > bound for level in below)
        # A little less for everyone, and it would not fit.
        least = {
            name: min((v for v in space.levels[name][:-1] if lost[space.policy({name: v})] < bound - 1e-12), default=8)
            for name in space.searched
        }
        assert not fits(fakes.predict([space.policy(least)])[0], limit)


def test_every_level_is_scored_alone_beside_the_largest_policy():
    assert set(explored("fastnas").apart) == {fakes.SPACE.largest(), *single_unit_policies(fakes.SPACE)}


def test_levels_that_lose_nothing_are_taken_where_dense_fits_too():
    limits = (Limit.of(latency_ms=fakes.DENSE_MS),)
    (policy,) = [p for p in explored("fastnas", lambda policy: 0.1, limits=limits).results if p.widths["unit0"] < 8]
    assert policy == fakes.SPACE.smallest()


def test_without_a_dense_score_there_are_no_degradations():
    def broken(policy):
        return None if policy == fakes.SPACE.largest() else 0.1

    with pytest.raises(TrialError, match="largest policy could not be scored: it broke"):
        explored("fastnas", broken)
