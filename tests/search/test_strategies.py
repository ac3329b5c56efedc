from __future__ import annotations

import pytest

from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.search.strategies import STRATEGIES, start_of
from tests.search.fakes import SPACE

UNIFORM = {Limit.of(latency_ms=2): SPACE.largest(), Limit.of(latency_ms=1): SPACE.smallest()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_scores_the_baselines_first(strategy):
    assert start_of(strategy, "tpe", UNIFORM).fixed == {SPACE.largest(): "uniform", SPACE.smallest(): "uniform"}


def test_samplers():
    assert {name: start_of(name, "gp", UNIFORM).sampler for name in STRATEGIES} == {
        "direct": "gp",
        "random": "random",
        "uniform": None,
    }


def test_an_unknown_strategy_is_refused():
    with pytest.raises(UsageError, match="direct, random, uniform"):
        start_of("magic", "tpe", UNIFORM)
