"""Contract of every baseline."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.executors.inline import InlineExecutor
from autoprune.records import SearchSpace
from autoprune.search.controller import run_search
from autoprune.search.effort import Effort
from autoprune.search.strategies import NEEDS_IMPORTANCE
from tests import fakes
from tests.search.baselines.instant import explored

BASELINES = ("global-magnitude", "global-taylor", "fastnas", "halp", "netadapt", "amc")
EFFORT = Effort(**vars(fakes.EFFORT) | {"trials": 40})


def own_policies(explorer):
    """Results of a limit after the uniform policies."""
    return [policy for asked in explorer.asked[1:] for policy in asked if policy in explorer.results]


@pytest.mark.parametrize("strategy", BASELINES)
def test_the_uniform_policies_come_first_and_then_one_at_least_within_every_limit(strategy):
    explorer = explored(strategy)
    assert list(explorer.results)[:2] == list(explorer.uniform.values())
    costs = fakes.predict(own_policies(explorer))
    assert all(fits(costs, limit).any() for limit in fakes.LIMITS)


@pytest.mark.parametrize("strategy", ["fastnas", "halp", "netadapt", "amc"])
def test_measured_or_weighed_widths_beat_uniform_ones(strategy):
    explorer = explored(strategy, effort=EFFORT)
    for limit, uniform in explorer.uniform.items():
        within = [p for p in explorer.results if fits(fakes.predict([p])[0], limit)]
        assert min(map(fakes.loss_of, within)) < fakes.loss_of(uniform)


@pytest.mark.parametrize("strategy", BASELINES)
def test_limits_on_other_costs_than_latency(strategy):
    limits = (
        Limit.of(latency_ms=0.7 * fakes.DENSE_MS, params=0.5 * fakes.DENSE_PARAMS),
        Limit.of(activation_bytes=500, latency_ms=0.9 * fakes.DENSE_MS),
    )
    explorer = explored(strategy, limits=limits)
    costs = fakes.predict(own_policies(explorer))
    assert all(fits(costs, limit).any() for limit in limits)


@pytest.mark.parametrize("strategy", BASELINES)
def test_a_limit_that_only_the_smallest_policy_fits(strategy):
    floor = fakes.latency_ms(fakes.SPACE.smallest())
    assert set(explored(strategy, limits=(Limit.of(latency_ms=floor),)).results) == {fakes.SPACE.smallest()}


@pytest.mark.parametrize("strategy", BASELINES)
def test_units_that_can_go_altogether(strategy):
    levels = {name: (0, *levels) if name != "fixed" else levels for name, levels in fakes.SPACE.levels.items()}
    explorer = explored(strategy, space=SearchSpace(id="fake-0", levels=levels))
    costs = fakes.predict(own_policies(explorer))
    assert all(fits(costs, limit).any() for limit in fakes.LIMITS)


@pytest.mark.parametrize("strategy", BASELINES)
def test_it_survives_trials_that_fail(strategy):
    def fragile(policy):
        return None if policy.widths["unit2"] in (3, 5) else fakes.loss_of(policy)

    assert own_policies(explored(strategy, fragile))


@pytest.mark.parametrize("strategy", BASELINES)
def test_the_same_seed_asks_the_same(strategy):
    assert explored(strategy).asked == explored(strategy).asked


@pytest.mark.parametrize("strategy", BASELINES)
def test_running_it_again_changes_nothing_and_evaluates_nothing(tmp_path, strategy):
    search = fakes.search(tmp_path, strategy=strategy, limits=fakes.LIMITS[:1])
    first = run_search(search, InlineExecutor(fakes.plain))
    log = tmp_path / "log"
    again = run_search(search, InlineExecutor(lambda: fakes.logging_to(log)))
    assert again == first
    assert not log.exists()


@pytest.mark.parametrize("strategy", NEEDS_IMPORTANCE)
@pytest.mark.parametrize("given", [None, {}, fakes.IMPORTANCE | {"unit1": np.ones(7)}])
def test_a_strategy_that_goes_by_importance_refuses_to_do_without(strategy, given):
    with pytest.raises(UsageError, match=rf"'{strategy}' goes by one importance for each channel.*'unit[01]'"):
        explored(strategy, importance=given)
