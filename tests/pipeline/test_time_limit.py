"""A search with a limit of time plans what fits, and is refused before anything is spent where nothing fits."""

from dataclasses import replace

import pytest

import autoprune
from autoprune.errors import UsageError
from autoprune.pipeline.events import Silent
from autoprune.pipeline.time_limit import allows, planned_effort, table_limit, with_full_in_time
from autoprune.pipeline.time_parts import Work
from autoprune.pipeline.timed_events import TimedEvents
from autoprune.runfolder import RunFolder
from autoprune.search.effort import Effort
from autoprune.search.trial_times import TrialTimes
from tests.conftest import SPEC
from tests.measurers import SimulatedMeasurer

EFFORT = Effort.derive("small", train_examples=3_500, val_examples=500)
WORK = Work(
    effort=EFFORT, budgets=2, share=0.5, apart=10, val_examples=500, slots=2, guided=True, taught=True,
    table_models=300, table_model_s=0.2, dense_passes=10_000, recipe_passes=0, basis="a guess", pass_s=0.001,
    times=TrialTimes(fixed_s=0.2, tuned_fixed_s=1.0, pass_s=0.002), order_s=5.0, export_s=3.0, start_s=6.0,
)  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def timed_events(folder, clock, minutes):
    events = TimedEvents(Silent(), folder, None if minutes is None else 60 * minutes, clock)
    events.expect(WORK)
    return events


def table_seconds(most_s):
    return max(10.0, min(60.0, most_s))


def test_without_a_limit_nothing_is_left_out(folder, clock):
    events = timed_events(folder, clock, None)
    assert table_limit(events, table_seconds) == 60
    assert planned_effort(events, EFFORT, folder) == EFFORT
    assert allows(events, 1e9)
    assert not folder.effort.exists()


@pytest.mark.parametrize("minutes", [60, 6, 4, 3, 2, 1.5])
def test_what_is_planned_fits(folder, clock, minutes):
    events = timed_events(folder, clock, minutes)
    most_s = table_limit(events, table_seconds)
    assert 5 <= most_s <= 60
    events.expect(replace(WORK, table_models=0, dense_passes=0))
    clock.now = most_s + 10
    effort = planned_effort(events, EFFORT, folder)
    assert events.seconds_of(replace(events.work, effort=effort)) <= events.left_s
    assert effort.trials <= EFFORT.trials
    assert effort.full.finetune_samples <= EFFORT.full.finetune_samples
    assert (effort == EFFORT) == (minutes == 60)
    folder.study.touch()
    other = replace(EFFORT, trials=3)
    assert planned_effort(events, other, folder) == effort, "a search that has begun keeps its plan"
    assert events.work.effort == effort
    assert planned_effort(Silent(), other, folder) == effort


def test_less_time_is_less_effort(folder, clock):
    samples = []
    for minutes in (10, 5, 3, 2):
        events = timed_events(folder, clock, minutes)
        samples.append(planned_effort(events, EFFORT, folder).full.finetune_samples)
    assert samples == sorted(samples, reverse=True)
    assert samples[0] > samples[-1]


def test_the_least_is_named_when_it_does_not_fit(folder, clock):
    with pytest.raises(
        UsageError, match=r"leaves 30 s, and the least of this search takes about .*: Latency table 1\d s"
    ):
        table_limit(timed_events(folder, clock, 0.5), table_seconds)


def test_full_fine_tunes_get_shorter_when_the_rungs_took_longer(folder, clock):
    events = timed_events(folder, clock, 8)
    effort = planned_effort(events, EFFORT, folder)
    clock.now = 400.0
    events.stage("Rung longer")
    late = with_full_in_time(effort, events, folder)
    assert late.full.finetune_samples < effort.full.finetune_samples
    assert late.rungs == effort.rungs
    folder.study.touch()
    assert planned_effort(events, EFFORT, folder) == late
    assert not allows(events, 1_000.0)


def test_full_fine_tunes_stay_alike_and_corrections_are_not_kept(folder, clock):
    events = timed_events(folder, clock, 8)
    planned = planned_effort(events, EFFORT, folder)
    clock.now = 400.0
    widened = replace(planned, trials=planned.trials + 32)  # as after a correction of the table
    late = with_full_in_time(widened, events, folder)
    assert late.trials == widened.trials
    for watch in (events, timed_events(folder, clock, 60), timed_events(folder, clock, None), Silent()):
        assert with_full_in_time(widened, watch, folder) == late, "the next latency, a later call"
    folder.study.touch()
    assert planned_effort(events, EFFORT, folder) == replace(planned, full=late.full)


def test_a_call_without_a_limit_settles_the_full_fine_tunes_too(folder, clock):
    planned = planned_effort(timed_events(folder, clock, 8), EFFORT, folder)
    assert with_full_in_time(planned, Silent(), folder) == planned
    clock.now = 400.0
    assert with_full_in_time(planned, timed_events(folder, clock, 8), folder) == planned


def test_a_plan_is_made_again_until_the_search_begins(folder, clock):
    short = planned_effort(timed_events(folder, clock, 3), EFFORT, folder)
    wanted = replace(EFFORT, trials=12)
    assert planned_effort(timed_events(folder, clock, 60), wanted, folder) == wanted != short
    planned_effort(timed_events(folder, clock, 3), EFFORT, folder)
    assert planned_effort(Silent(), wanted, folder) == wanted
    assert not folder.effort.exists()


def test_nothing_is_measured_for_a_search_that_does_not_fit(tmp_path):
    with pytest.raises(UsageError, match="the least of this search takes about"):
        autoprune.search(SPEC, run_dir=tmp_path, measurer=SimulatedMeasurer(), max_minutes=0.01)
    assert not RunFolder(tmp_path).table.exists()
