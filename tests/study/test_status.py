"""The state of a study, read from outside."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from autoprune.budgets import Limit
from autoprune.executors.base import lost
from autoprune.executors.inline import InlineExecutor
from autoprune.search.controller import run_search
from autoprune.study.broker import Broker
from autoprune.study.spec import StudySpec
from autoprune.study.status import _throughput, study_states
from autoprune.trials import TrialSpec
from tests import fakes

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


def test_policies_that_were_tried_again_with_a_longer_limit_have_not_failed(tmp_path: Path) -> None:
    study_spec = StudySpec(space=fakes.SPACE, fidelity=fakes.PROXY, limits=fakes.LIMITS, run_seed=1)
    path = tmp_path / "study.db"
    with closing(Broker(path, study_spec, fakes.predict, sampler="random", trials=4, timeout_s=1.0)) as broker:
        for spec in broker.ask():
            late: TrialSpec | None = spec
            while late is not None:
                late = broker.finish(lost(late, "it took longer", seconds=1.5))
    (state,) = study_states(path)
    assert (state.counts, state.lost) == ({"failed": 4}, 20)
    with closing(Broker(path, study_spec, fakes.predict, sampler="random", trials=4)) as broker:
        for spec in broker.ask():
            broker.finish(fakes.evaluate(spec))
    (state,) = study_states(path)
    assert (state.counts, state.lost, state.failures) == ({"done": 4}, 0, [])


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
