"""The search space that goes with a latency table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.config import RunConfig
from autoprune.errors import ConfigError
from autoprune.pipeline.tables import _efficient
from autoprune.structure import Structure, analyze


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), (torch.zeros(1, 4),))


def config(*budgets: str) -> RunConfig:
    return RunConfig(task="digits", budgets=list(budgets))


def test_all_widths_are_searched_when_none_is_faster_and_no_budget_is_a_latency(structure: Structure) -> None:
    useful = {"0": [16]}
    assert _efficient(config("params:50%"), structure, useful).levels["0"] == tuple(range(2, 17))
    assert _efficient(config("params:50%"), structure, useful, {"0": [4, 16]}).levels["0"] == (4, 16)
    with pytest.raises(ConfigError, match="measurably faster on this target; `levels` of its own searches all"):
        _efficient(config("50%", "params:50%"), structure, useful)


def test_useful_widths_are_searched_where_there_are_some(structure: Structure) -> None:
    assert _efficient(config("params:50%"), structure, {"0": [8, 16]}, {"0": [4, 16]}).levels["0"] == (8, 16)
