"""The estimate of a simulated search comes close to the truth as soon as something was measured."""

import pytest

from autoprune.search.time_estimate import Part, TimeEstimate
from autoprune.search.trial_times import MeasuredTrials, TrialTimes

PRIOR = TrialTimes(fixed_s=0.1, tuned_fixed_s=0.5, pass_s=0.002)
TRUE = TrialTimes(fixed_s=0.3, tuned_fixed_s=2.0, pass_s=0.005)
PARTS = [
    Part(name="table", group=0, units=100, unit_s=0.2),
    Part(name="alone", group=1, units=8, passes=100, slots=2),
    Part(name="cheap", group=1, units=20, passes=80, slots=2),
    Part(name="brief", group=2, units=8, passes=800, tuned=True, slots=2),
    Part(name="full", group=3, units=4, passes=12_000, tuned=True, slots=2),
    Part(name="proof", group=4, units=4, unit_s=2.0),
]


def told(estimate, *, table_s=0.4, passes_ratio=0.8):
    """Yield (seconds, estimated rest) of a search on two slots whose trials take `TRUE` and fewer passes."""
    now = 0.0
    for part in PARTS:
        estimate.begin(part.name, now)
        for done in range(1, int(part.units) + 1):
            if part.passes is None:
                now += table_s if part.name == "table" else 2.5
            else:
                passes = passes_ratio * part.passes
                seconds = TRUE.seconds(passes, tuned=part.tuned)
                now += seconds * (done % part.slots)  # two end together
                trials = MeasuredTrials(count=done, seconds=seconds, passes=passes, tuned=part.tuned)
                estimate.learn(part.name, trials)
            estimate.advance(done, part.units, now)
            yield now, estimate.remaining(now).seconds


def test_the_rest_is_known_within_a_factor_of_a_half_from_a_third_on():
    *steps, (end, last) = told(TimeEstimate.of(PARTS, PRIOR, "nothing"))
    ratios = [left / (end - now) for now, left in steps if now > end / 3 and end - now > 3]
    assert len(ratios) > 8
    assert 1 / 1.5 < min(ratios) <= max(ratios) < 1.5
    assert last == 0


def test_nothing_measured_is_the_sum_of_what_is_expected():
    estimate = TimeEstimate.of(PARTS, PRIOR, "a guess")
    expected = 20 + 4 * 0.3 + 10 * 0.26 + 4 * 2.1 + 2 * 24.5 + 8
    assert estimate.remaining(0.0).seconds == pytest.approx(expected)
    assert estimate.remaining(0.0).basis == "from a guess"


@pytest.mark.parametrize(("once", "share"), [(1000, 1.0), (0, 2.2)])
def test_more_passes_than_expected_are_neither_all_of_every_trial_once_nor_all_in_proportion(once, share):
    """Calibration is as long in every trial, a model that costs more takes longer in proportion."""
    times = TrialTimes(fixed_s=0.0, tuned_fixed_s=0.0, pass_s=0.001, rehearsed=True)
    estimate = TimeEstimate.of(PARTS, times, "a rehearsal")
    estimate.begin("brief", 0.0)
    for done in range(1, 9):
        passes = once + share * 800
        estimate.learn("brief", MeasuredTrials(count=done, seconds=0.001 * passes, passes=passes, tuned=True))
        estimate.advance(done, 8, 0.001 * passes * (done + done % 2) / 2)
    estimate.begin("full", 8.0)
    truth = 2 * 0.001 * (once + share * 12_000)
    assert 1 / 1.55 < estimate.remaining(8.0).seconds_by_part["full"] / truth < 1.55


def test_earlier_parts_are_over_when_a_later_one_begins_and_ahead_again_when_one_comes_again():
    estimate = TimeEstimate.of(PARTS, PRIOR, "a guess")
    estimate.begin("brief", 0.0)
    assert set(estimate.remaining(0.0).seconds_by_part) == {"brief", "full", "proof"}
    estimate.begin("cheap", 1.0)
    assert set(estimate.remaining(1.0).seconds_by_part) == {"alone", "cheap", "brief", "full", "proof"}


def test_parts_that_alternate_are_not_over():
    estimate = TimeEstimate.of(PARTS, PRIOR, "a guess")
    estimate.begin("cheap", 0.0)
    estimate.advance(2, 2, 1.0)
    estimate.begin("alone", 1.0)
    assert estimate.remaining(1.0).seconds_by_part["cheap"] == pytest.approx(9 * 0.26)


def test_a_rung_has_few_more_trials_than_the_one_before_it():
    estimate = TimeEstimate.of(PARTS, PRIOR, "a guess")
    estimate.begin("cheap", 0.0)
    estimate.advance(3, 3, 1.0)
    estimate.begin("measuring", 1.0)
    before = estimate.remaining(1.0).seconds_by_part["brief"]
    estimate.parts["measuring"] = Part(name="measuring", group=2)
    estimate.parts["brief"] = Part(name="brief", group=3, units=8, passes=800, tuned=True, slots=2)
    estimate.begin("measuring", 1.0)
    assert before == pytest.approx(4 * 2.1)
    assert estimate.remaining(1.0).seconds_by_part["brief"] == pytest.approx(2 * 2.1)


def test_a_resumed_part_goes_on_at_the_pace_of_its_new_trials():
    estimate = TimeEstimate.of([Part(name="cheap", group=0, units=20, passes=0.0)], PRIOR, "a guess")
    estimate.begin("cheap", 0.0)
    estimate.learn("cheap", MeasuredTrials(count=11, seconds=2.0, passes=0.0, tuned=False))
    estimate.advance(11, 20, 2.0)
    assert estimate.remaining(2.0).seconds == pytest.approx(9 * 2.0, rel=0.5)


def test_a_part_that_takes_longer_than_expected_is_never_said_to_be_over():
    estimate = TimeEstimate.of(PARTS, PRIOR, "a guess")
    estimate.begin("table", 0.0)
    assert estimate.remaining(1_000.0).seconds_by_part["table"] > 0


def test_trials_that_run_are_nearly_over_while_others_have_to_begin():
    full = Part(name="full", group=0, units=3, passes=0.0, tuned=True, slots=2)
    estimate = TimeEstimate.of([full], TrialTimes(fixed_s=0.1, tuned_fixed_s=20.0, pass_s=0.0), "a guess")
    estimate.begin("full", 0.0)
    assert estimate.remaining(5.0).seconds == pytest.approx(35.0)
    estimate.advance(1, 3, 20.0)
    assert estimate.remaining(20.0).seconds == pytest.approx(20.0)
    assert estimate.remaining(30.0).seconds == pytest.approx(10.0)
    estimate.advance(2, 3, 30.0)  # the second one took longer
    assert estimate.remaining(30.0).seconds == pytest.approx(15.0, abs=3)


def test_a_trial_that_ends_early_does_not_shorten_those_that_run_longer():
    """Of three fine-tunes in two slots one harms its model and ends after 30 s; the others take 90 s as expected."""
    full = Part(name="full", group=0, units=3, passes=9_000, tuned=True, slots=2, announced=True)
    estimate = TimeEstimate.of([full], TrialTimes(fixed_s=0.1, tuned_fixed_s=0.0, pass_s=0.01), "a guess")
    estimate.begin("full", 0.0)
    estimate.learn("full", MeasuredTrials(count=1, seconds=30.0, passes=3_000, tuned=True))
    estimate.advance(1, 3, 30.0)
    left = {now: estimate.remaining(now).seconds for now in (30.0, 60.0, 75.0, 89.0)}
    assert all(1 / 1.5 < seconds / (120.0 - now) < 1.5 for now, seconds in left.items()), left


def test_the_number_of_announced_trials_and_of_what_follows_each_is_known_when_they_begin():
    full = Part(name="full", group=0, units=4, passes=0.0, tuned=True, announced=True)
    proof = Part(name="proof", group=1, units=4, unit_s=1.0, one_for_each="full")
    estimate = TimeEstimate.of([full, proof], TrialTimes(fixed_s=0.1, tuned_fixed_s=1.0, pass_s=0.0), "a guess")
    assert estimate.remaining(0.0).seconds == pytest.approx(8.0)
    estimate.begin("full", 0.0)
    estimate.advance(0, 2, 0.0)
    assert estimate.remaining(0.0).seconds_by_part == pytest.approx({"full": 2.0, "proof": 2.0})
