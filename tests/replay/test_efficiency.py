"""The guided search must stay as quick as it is: replayed on the table, it may not need more evaluations.

Measured on 100 seeds with `scripts/benchmark_replay.py run --strategies guided`; bounds leave room for another Optuna.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ablations import SolverAlone
from replay import replay
from replay_table import ReplayTable

from autoprune.search import guided

TABLE = ReplayTable.load(Path(__file__).parent / "resnet8.csv")
BUDGETS = (0.33, 0.25)
MOST_EVALUATIONS = {0.33: 80, 0.25: 70}
SEEDS = range(3)


def evaluations() -> dict[float, float]:
    """Median number of evaluations until 95 % of the best loss, by budget."""
    limits = [TABLE.limit(budget) for budget in BUDGETS]
    best = [min(one.loss for one in TABLE.within(limit, "proxy").values()) for limit in limits]
    found = [
        [c.reached(b / 0.95) for c, b in zip(replay(TABLE, "guided", limits, s), best, strict=True)] for s in SEEDS
    ]
    return dict(zip(BUDGETS, np.median(np.array(found, dtype=float), axis=0), strict=True))


def within(found: dict[float, float]) -> bool:
    return all(found[budget] <= most for budget, most in MOST_EVALUATIONS.items())


def test_the_guided_search_is_as_quick_as_it_was():
    found = evaluations()
    assert within(found), found


def test_one_that_does_not_refine_is_caught(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guided, "Refinement", SolverAlone)
    assert not within(evaluations())
