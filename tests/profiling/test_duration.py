"""How far a profile is, told by its stages, and how long it may take."""

import pytest

from autoprune.device.connect import make_target
from autoprune.latency.table import FIT, HELD_OUT, SCAN
from autoprune.profiling import duration
from autoprune.profiling.duration import (
    HELD_OUT_POLICIES,
    OPERATORS,
    REMEASURED,
    REMEASURING,
    ROUND,
    STAGES,
    ProfileProgress,
    patient_clock,
)


def expected_in_all(rounds, *, each_s, scanned=60):
    """Seconds expected in all after every model of a profile that makes `rounds`, and how many there were."""
    progress, seconds, totals = ProfileProgress(), 0.0, []
    stages = [(OPERATORS, 24), (STAGES[SCAN], scanned), (STAGES[HELD_OUT], HELD_OUT_POLICIES)]
    for stage, total in (*stages, *[(STAGES[FIT], ROUND)] * rounds, (REMEASURING, REMEASURED)):
        for done in range(1, total + 1):
            seconds += each_s
            totals.append(progress(stage, done, total, seconds))
    return totals, scanned + HELD_OUT_POLICIES + rounds * ROUND + REMEASURED


def test_nothing_is_known_before_widths_are_scanned():
    totals, _ = expected_in_all(5, each_s=0.01)
    assert totals[:24] == [None] * 24


def test_the_usual_number_of_rounds_is_expected():
    totals, models = expected_in_all(5, each_s=0.01)
    assert {of_all for _, of_all in totals[24:]} == {models}
    assert totals[-1] == (models, models)


def test_time_limits_the_rounds():
    totals, models = expected_in_all(1, each_s=0.4)
    assert all(abs(of_all / models - 1) < 0.5 for _, of_all in totals[30:])
    assert totals[-1] == (models, models)


@pytest.mark.parametrize(
    ("threads", "wall_s", "cpu_s", "seconds"),
    [(1, 30.0, 30.0, 30.0), (1, 30.0, 15.0, 15.0), (1, 30.0, 1.0, 10.0), (2, 30.0, 1.0, 30.0)],
)
def test_other_work_takes_at_most_two_thirds_of_the_time_of_a_profile(monkeypatch, threads, wall_s, cpu_s, seconds):
    """A busy host once left a table so little time that a budget had nine policies, none of them good."""
    now = {"monotonic": 1000.0, "process_time": 7.0}
    monkeypatch.setattr(duration.time, "monotonic", lambda: now["monotonic"])
    monkeypatch.setattr(duration.time, "process_time", lambda: now["process_time"])
    clock = patient_clock(make_target("ort-cpu", threads))
    begun = clock()
    now["monotonic"] += wall_s
    now["process_time"] += cpu_s
    assert clock() - begun == pytest.approx(seconds)
