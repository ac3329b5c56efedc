from __future__ import annotations

import pytest

from autoprune.config import RunConfig
from autoprune.errors import UsageError
from autoprune.executors.inline import InlineExecutor
from autoprune.pruning import SCORES
from autoprune.search.controller import run_search
from autoprune.search.strategies import NEEDS_IMPORTANCE, STRATEGIES, find_strategy
from tests import fakes
from tests.search.baselines.instant import explored


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_scores_the_baselines_first(strategy):
    explorer = explored(strategy)
    assert explorer.asked[0] == list(explorer.results)[:2] == list(explorer.uniform.values())


def test_the_guided_strategy_is_the_default():
    assert next(iter(STRATEGIES)) == RunConfig(task="digits").strategy == "guided"


def test_an_unknown_strategy_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"unknown strategy 'halb'. Did you mean 'halp'\? Known: amc, direct"):
        find_strategy("halb")
    with pytest.raises(UsageError, match="unknown strategy 'magic'"):
        run_search(fakes.search(tmp_path, strategy="magic"), InlineExecutor(fakes.plain))


def test_importance_is_a_score_of_channels():
    assert set(NEEDS_IMPORTANCE) <= set(STRATEGIES)
    assert set(NEEDS_IMPORTANCE.values()) <= set(SCORES)
