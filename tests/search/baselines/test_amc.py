from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.search.baselines.amc import Walk
from autoprune.search.effort import Effort
from tests import fakes
from tests.search.baselines.instant import explored

LIMIT = fakes.LIMITS[1]


def with_trials(trials):
    return Effort(**vars(fakes.EFFORT) | {"trials": trials})


def walk(limit=LIMIT):
    return Walk(fakes.search(Path("unused")), limit)


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.7, 1.0])
def test_the_wall_keeps_the_limit_within_reach(keep):
    policy = walk().policy(lambda state: keep)
    assert fits(fakes.predict([policy])[0], LIMIT)
    if keep <= 0.4:
        assert {policy.widths[name] for name in fakes.SPACE.searched} == {max(2, round(8 * keep))}


def test_a_greedy_agent_leaves_little_to_later_units():
    # Of 7 ms, 2 are fixed. The six units cost 0.3, 0.05, 0.2, 0.1, 0.25 and 0.1 ms a channel, and keep at least two.
    policy = walk(fakes.LIMITS[0]).policy(lambda state: 1.0)
    assert [policy.widths[name] for name in fakes.SPACE.searched] == [8, 8, 6, 3, 2, 2]


def test_the_steps_of_a_policy_are_what_led_to_it():
    seen = []
    rng = np.random.default_rng(0)

    def choose(state):
        seen.append(state)
        return rng.uniform()

    policy = walk().policy(choose)
    states, actions = walk().steps(policy)
    assert np.array_equal(states, seen)
    assert actions.tolist() == [policy.widths[name] / 8 for name in fakes.SPACE.searched]


def test_states_by_hand():
    states, _ = walk(Limit.of(latency_ms=1)).steps(fakes.SPACE.policy({"unit0": 4}))
    dense, price = fakes.DENSE_MS, fakes.COST_MS
    later = 6 * (sum(price[f"unit{i}"] for i in range(1, 6)))
    saved = 4 * price["unit0"]
    assert states[1] == pytest.approx([1 / 6, 1, 6 * price["unit1"] / dense, saved / dense, later / dense, 0.5])


@pytest.mark.parametrize(("trials", "episodes"), [(1, 2), (30, 30), (500, 400)])
def test_the_limits_share_the_episodes(trials, episodes):
    explorer = explored("amc", lambda policy: None, effort=with_trials(trials))
    calls = explorer.asked[1:]
    assert len(calls) == 2 * -(-episodes // 2 // 8)
    assert max(map(len, calls)) <= 8


def test_it_gets_better_than_its_random_start():
    explorer = explored("amc", effort=with_trials(96), limits=(LIMIT,))
    losses = [np.mean([np.log(fakes.loss_of(policy)) for policy in asked]) for asked in explorer.asked[1:]]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
