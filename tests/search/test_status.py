"""What onlookers are told about a study."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from autoprune.budgets import Limit
from autoprune.search.controller import run_search
from autoprune.search.executors.inline import InlineExecutor
from autoprune.search.status import _throughput, study_states
from tests.search import fakes

NOON = datetime(2026, 1, 1, 12)


def times(*seconds: tuple[float, float]) -> list[tuple[datetime, datetime]]:
    return [(NOON + timedelta(seconds=begin), NOON + timedelta(seconds=end)) for begin, end in seconds]


@pytest.mark.parametrize(
    ("worked", "per_minute"),
    [
        ([(0, 10)], None),
        ([(0, 10), (10, 20)], 6.0),
        ([(0, 10), (0, 10)], 12.0),  # two workers
        ([(5, 6), (0, 10)], 12.0),
        ([(0, 10), (86_400, 86_410)], 6.0),  # a night in between
        ([(0, 0), (5, 5)], None),
    ],
)
def test_throughput_is_that_of_the_time_that_was_worked(
    worked: list[tuple[float, float]], per_minute: float | None
) -> None:
    assert _throughput(times(*worked)) == per_minute


def test_trials_of_earlier_budgets_are_told_apart(tmp_path: Path) -> None:
    search = fakes.search(tmp_path, strategy="random")
    run_search(search, InlineExecutor(fakes.plain))
    (first, *_) = study_states(tmp_path / "study.db")
    assert first.earlier == 0
    assert first.counts["done"] == sum(first.counts.values())
    tighter = tuple(Limit(most=tuple(0.9 * most for most in limit.most)) for limit in search.limits)
    run_search(fakes.search(tmp_path, strategy="random", limits=tighter), InlineExecutor(fakes.plain))
    again = next(state for state in study_states(tmp_path / "study.db") if state.name == "rung-0.2")
    assert again.earlier == first.counts["done"]
    assert again.counts["done"] > again.earlier
