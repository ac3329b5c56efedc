from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.records import SearchSpace
from autoprune.search.baselines.netadapt import proposals
from tests import fakes
from tests.search.baselines.instant import explored

TIGHT = (*fakes.LIMITS, Limit.of(latency_ms=0.45 * fakes.DENSE_MS))


def steps_of(explorer):
    """The proposals of every step: what is scored for a limit comes in calls of one policy."""
    return [asked for asked in explorer.asked[1:] if not set(asked) <= set(explorer.results)]


def test_the_walk_takes_the_least_loss_and_only_ever_narrows():
    explorer = explored("netadapt", limits=TIGHT)
    taken = [min(asked, key=fakes.loss_of) for asked in steps_of(explorer)]
    path = [fakes.SPACE.largest(), *taken]
    for before, asked in zip(path, steps_of(explorer), strict=False):
        for policy in asked:
            (changed,) = [n for n in fakes.SPACE.searched if policy.widths[n] != before.widths[n]]
            assert policy.widths[changed] < before.widths[changed]
    latencies = [fakes.latency_ms(policy) for policy in path]
    assert latencies == sorted(latencies, reverse=True)
    assert 10 < len(taken) <= 25


def test_the_first_policy_of_the_walk_that_fits_is_scored_for_each_limit():
    explorer = explored("netadapt", limits=TIGHT)
    path = [min(asked, key=fakes.loss_of) for asked in steps_of(explorer)]
    first = [next(p for p in path if fits(fakes.predict([p])[0], limit)) for limit in TIGHT]
    assert list(explorer.results)[3:] == first


def search_of(space, latency_ms, limit):
    def predict(policies):
        return fakes.costs_of(latency_ms, policies)

    dense = {name: levels[-1] for name, levels in space.levels.items()}
    return fakes.search(Path("unused"), space=space, dense_widths=dense, predict=predict, limits=(limit,))


def test_proposals_by_hand():
    """The first step shall save 6.25 % of the 16 ms that are too many, which is 1 ms."""
    space = SearchSpace(id="s", levels={"a": (1, 2, 3, 4), "b": (1, 2, 4), "c": (3, 4)})
    price = {"a": 0.6, "b": 8.0, "c": 0.1}
    rest = 32 - sum(4 * p for p in price.values())
    limit = Limit.of(latency_ms=16)
    search = search_of(space, lambda policy: rest + sum(price[n] * w for n, w in policy.widths.items()), limit)
    policies = proposals(search, space.largest(), [limit], step=0)
    assert policies == [space.policy({"a": 2}), space.policy({"b": 2})]


def test_what_meets_a_limit_need_save_no_more():
    space = SearchSpace(id="s", levels={"a": tuple(range(1, 33))})
    limits = (Limit.of(latency_ms=16), Limit.of(latency_ms=31.5))
    search = search_of(space, lambda policy: policy.widths["a"], limits[0])
    assert proposals(search, space.largest(), limits[:1], step=0)[0].widths["a"] == 30
    assert proposals(search, space.largest(), limits, step=0)[0].widths["a"] == 31


def test_where_no_unit_saves_enough_alone_each_proposes_its_next_level():
    space = SearchSpace(id="s", levels={"a": (1, 2, 4), "b": (1, 4), "c": (4,)})
    limit = Limit.of(latency_ms=2)
    search = search_of(space, lambda policy: max(policy.widths["a"], policy.widths["b"]), limit)
    assert proposals(search, space.largest(), [limit], step=0) == [space.policy({"a": 2}), space.policy({"b": 1})]


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_a_limit_that_the_largest_policy_fits_takes_no_step(share):
    explorer = explored("netadapt", limits=(Limit.of(latency_ms=share * fakes.DENSE_MS),))
    assert not explorer.apart
    assert fakes.SPACE.largest() in explorer.results
