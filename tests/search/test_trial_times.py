"""Times of trials agree with the rungs that were measured."""

from dataclasses import replace

import pytest

from autoprune.search.trial_times import MeasuredTrials, TrialLog, TrialTimes

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


def test_trials_without_fine_tuning_say_nothing_about_others():
    slow = TrialTimes(fixed_s=0.45, tuned_fixed_s=2.25, pass_s=0.00225)
    corrected = PRIOR.corrected([rung(200, tuned=False, times=slow)])
    assert corrected.seconds(200, tuned=False) == pytest.approx(slow.seconds(200, tuned=False))
    assert corrected.seconds(200, tuned=True) == pytest.approx(PRIOR.seconds(200, tuned=True))


def test_rehearsed_times_keep_their_proportions():
    rehearsed = replace(PRIOR, teach_s=0.0005, rehearsed=True)
    slower = replace(rehearsed, tuned_fixed_s=1.5, pass_s=0.0015, teach_s=0.00075)
    rungs = [
        MeasuredTrials(count=2, seconds=slower.seconds(n, tuned=True, taught=n), passes=n, tuned=True, taught=n)
        for n in (500, 3_000)
    ]
    assert vars(rehearsed.corrected(rungs)) == pytest.approx(vars(slower), rel=0.1)


def test_a_brief_rung_that_is_mostly_the_fixed_part_says_little_about_the_passes():
    """Measured twice as long as expected, which full fine-tunes are not."""
    rehearsed = TrialTimes(fixed_s=0.2, tuned_fixed_s=1.0, pass_s=0.0005, rehearsed=True)
    true = replace(rehearsed, tuned_fixed_s=2.5)
    brief, longer = (rung(passes, tuned=True, times=true) for passes in (1_000, 3_000))
    whole_s = true.seconds(20_000, tuned=True)
    assert whole_s < rehearsed.corrected([brief]).seconds(20_000, tuned=True) < 1.3 * whole_s
    assert rehearsed.corrected([brief, longer]).seconds(20_000, tuned=True) == pytest.approx(whole_s, rel=0.15)


def test_passes_that_are_faster_than_rehearsed_leave_both_parts_some_time():
    rehearsed = TrialTimes(fixed_s=0.2, tuned_fixed_s=1.0, pass_s=0.0005, rehearsed=True)
    quick = [MeasuredTrials(count=9, seconds=0.05, passes=n, tuned=True) for n in (1_000, 3_000)]
    times = rehearsed.corrected(quick)
    assert min(times.tuned_fixed_s, times.pass_s) > 0


def test_the_first_trials_of_workers_say_little():
    rehearsed = replace(PRIOR, rehearsed=True)
    cold = MeasuredTrials(count=2, seconds=30.0, passes=1_000, tuned=True, warm=False)
    assert rehearsed.corrected([cold]) == rehearsed
    assert PRIOR.corrected([cold]).pass_s == pytest.approx(0.015), "better than nothing where none were rehearsed"


def test_a_rung_is_told_by_its_warm_trials_and_by_those_that_ask_the_teacher():
    log = TrialLog(slots=2, cold=2)

    def told(rung, seconds, finished):
        learned = log.add(rung, seconds, 100.0, finished=finished, tuned=True, samples=600)
        return learned.seconds, learned.taught, learned.warm, learned.count

    assert [told("brief", s, n) for n, s in enumerate((9.0, 7.0, 1.0, 3.0), start=1)] == [
        (9.0, 600, False, 1), (8.0, 600, False, 2), (1.0, 0, True, 3), (2.0, 0, True, 4)
    ]  # fmt: skip
    assert told("longer", 5.0, 1) == (5.0, 600, True, 1)
    assert told("longer", 6.0, 2) == (5.5, 600, True, 2)
    assert told("longer", 4.0, 3) == (5.0, 400, True, 3)
