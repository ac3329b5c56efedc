"""Times of trials agree with the rungs that were measured."""

import pytest

from autoprune.search.trial_times import MeasuredTrials, TrialTimes

PRIOR = TrialTimes(fixed_s=0.2, tuned_fixed_s=1.0, pass_s=0.001)
TRUE = TrialTimes(fixed_s=0.5, tuned_fixed_s=3.0, pass_s=0.004)


def rung(passes, *, tuned, count=4, times=TRUE):
    return MeasuredTrials(count=count, seconds=times.seconds(passes, tuned=tuned), passes=passes, tuned=tuned)


def test_without_measurements_expectations_stay():
    assert PRIOR.corrected([]) == PRIOR


def test_two_tuned_rungs_and_a_cheap_one_tell_everything():
    found = PRIOR.corrected([rung(200, tuned=False), rung(1_000, tuned=True), rung(5_000, tuned=True)])
    assert vars(found) == pytest.approx(vars(TRUE))


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_one_rung_scales_all_that_a_tuned_trial_takes(factor):
    slower = TrialTimes(fixed_s=0.2, tuned_fixed_s=factor * 1.0, pass_s=factor * 0.001)
    found = PRIOR.corrected([rung(1_000, tuned=True, times=slower)])
    assert found.seconds(50_000, tuned=True) == pytest.approx(slower.seconds(50_000, tuned=True))


def test_trials_without_fine_tuning_say_how_busy_the_workers_are():
    busy = TrialTimes(fixed_s=0.3, tuned_fixed_s=1.5, pass_s=0.0015)
    found = PRIOR.corrected([rung(200, tuned=False, times=busy)])
    assert vars(found) == pytest.approx(vars(busy))
