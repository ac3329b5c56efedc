"""Failures, losses and dead controllers: what is tried again, and what counts."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from autoprune.budgets import Limit
from autoprune.executors.base import failed, lost
from autoprune.records import SearchSpace
from autoprune.study.attempts import MAX_LOSSES
from autoprune.study.samplers import encode
from tests.fakes import SPACE, evaluate
from tests.study.test_broker import OTHER, SMALL, run, trials


def tried(broker, spec, *statuses):
    """Finish attempts of a trial with these statuses; returns what each `finish` gave."""
    given = []
    for status in statuses:
        result = failed(spec, "because") if status == "failed" else lost(spec, "killed")
        given.append(broker.finish(result))
        spec = given[-1] or spec
    return given


def test_a_policy_that_fails_twice_has_failed_and_is_not_proposed_again(opened):
    tiny = SearchSpace(id="tiny", levels={n: w[-1:] for n, w in SPACE.levels.items()})
    broker = opened(space=tiny, limits=(Limit.of(latency_ms=100),), sampler="random", trials=9)
    (spec,) = broker.ask()
    again, nothing = tried(broker, spec, "failed", "failed")
    assert (again.number, again.seed, again.attempt) == (spec.number, spec.seed, 2)
    assert nothing is None
    assert [(r.status, r.error) for r in broker.results()] == [("failed", "because (2 times)")]
    assert broker.ask() == []
    assert {t.state for t in trials(broker)} == {TrialState.FAIL}
    assert trials(broker)[-1].user_attrs["reason"] == "failed before: because (2 times)"
    assert opened(space=tiny, limits=(Limit.of(latency_ms=100),), sampler="random", trials=9).ask() == []


def test_a_policy_that_failed_once_may_still_work(opened):
    broker = opened()
    broker.enqueue({SMALL: "uniform"})
    (spec,) = broker.ask()
    (again,) = tried(broker, spec, "failed")
    assert broker.finish(evaluate(again)) is None
    assert [(r.status, r.attempt) for r in broker.results()] == [("done", 2)]
    assert [a["reason"] for a in trials(broker)[0].user_attrs["attempts"]] == ["because"]


def test_losses_are_counted_apart_from_failures_and_have_an_end(opened):
    broker = opened()
    broker.enqueue({SMALL: "uniform", OTHER: "uniform"})
    small, other = broker.ask()
    *_, again = tried(broker, small, "failed", *["lost"] * (MAX_LOSSES - 1))
    assert broker.finish(evaluate(again)) is None
    assert tried(broker, other, *["lost"] * MAX_LOSSES)[-1] is None
    assert [(r.status, r.error) for r in broker.results()] == [
        ("done", None),
        ("failed", f"lost {MAX_LOSSES} times, last: killed"),
    ]


@pytest.mark.parametrize(("timeout_s", "tried_again"), [(None, True), (40.0, True), (30.0, False), (20.0, False)])
def test_policies_that_took_too_long_are_tried_again_with_a_longer_limit(opened, timeout_s, tried_again):
    first = opened(timeout_s=30.0)
    first.enqueue({SMALL: "solver", OTHER: "uniform"})
    small, other = first.ask()
    for _ in range(MAX_LOSSES):
        small = first.finish(lost(small, "it took longer", seconds=30.1))
    assert tried(first, other, *["lost"] * MAX_LOSSES)[-1] is None, "killed after no time at all"
    second = opened(timeout_s=timeout_s)
    assert second.knows(SMALL) is not tried_again
    assert second.knows(OTHER)
    second.enqueue({SMALL: "solver", OTHER: "uniform"})
    specs = second.ask()
    assert [(s.policy, s.attempt) for s in specs] == ([(SMALL, 1)] if tried_again else [])
    if tried_again:
        assert trials(second)[-1].user_attrs["origin"] == "solver"
        second.finish(evaluate(specs[0]))
        third = opened(timeout_s=60.0)
        assert (third.ask(), [(r.policy, r.status) for r in third.results()]) == (
            [],
            [(OTHER, "failed"), (SMALL, "done")],
        )


def test_a_sampler_goes_on_after_policies_that_took_too_long(opened):
    """As many policies are scored in the end as without, whether or not their results were told to the sampler."""
    first = opened(timeout_s=30.0, sampler="random", trials=12)
    specs = first.ask()
    for spec in specs[1:]:
        for _ in range(MAX_LOSSES):
            spec = first.finish(lost(spec, "it took longer", seconds=30.1))
    assert first.ask() == [], "the window is full"
    second = opened(sampler="random", trials=12)
    assert (second.finished, second.results()) == (0, [])
    results = run(second)
    assert len(results) == 12
    assert {r.status for r in results} == {"done"}
    assert {spec.policy for spec in specs} < {r.policy for r in results}
    assert (second.finished, second.total) == (12, 12)
    third = opened(timeout_s=90.0, sampler="random", trials=12)
    assert (third.ask(), third.results()) == ([], results)


def test_losses_under_a_shorter_limit_do_not_count(opened):
    first = opened(timeout_s=30.0)
    first.enqueue({SMALL: "uniform"})
    (spec,) = first.ask()
    for _ in range(MAX_LOSSES - 1):
        spec = first.finish(lost(spec, "it took longer", seconds=30.1))
    second = opened(timeout_s=300.0)
    (spec,) = second.ask()
    assert tried(second, spec, *["lost"] * (MAX_LOSSES - 1))[-1] is not None
    third = opened(timeout_s=300.0)
    (spec,) = third.ask()
    assert tried(third, spec, "lost")[-1] is None
    assert [r.error for r in third.results()] == [f"lost {MAX_LOSSES} times, last: killed"]
    assert opened(timeout_s=900.0).ask() == []


def test_the_result_of_an_attempt_that_was_given_up_is_ignored(opened):
    kept = []
    broker = opened(keep=kept.append)
    broker.enqueue({SMALL: "uniform"})
    (spec,) = broker.ask()
    (again,) = tried(broker, spec, "lost")
    assert broker.finish(evaluate(spec)) is None
    assert broker.results() == kept == []
    broker.finish(evaluate(again))
    assert broker.results() == kept
    assert [r.attempt for r in kept] == [2]


def test_attempts_are_remembered_by_the_next_controller(opened):
    first = opened()
    first.enqueue({SMALL: "uniform"})
    tried(first, first.ask()[0], "failed")
    second = opened()
    (spec,) = second.ask()
    assert spec.attempt == 2
    assert tried(second, spec, "failed") == [None]
    assert [r.status for r in second.results()] == ["failed"]


def test_a_late_result_is_ignored(opened):
    broker = opened()
    broker.enqueue({SMALL: "uniform"})
    (spec,) = broker.ask()
    broker.finish(evaluate(spec))
    broker.finish(failed(spec, "late"))
    assert [r.status for r in broker.results()] == ["done"]
    assert broker.finished == 1


def test_running_trials_of_a_dead_controller_are_handed_out_again(opened):
    first = opened(sampler="random", trials=10)
    first.enqueue({SMALL: "uniform"})
    specs = first.ask()
    first.finish(evaluate(specs[2]))
    second = opened(sampler="random", trials=10)
    second.enqueue({SMALL: "uniform"})
    assert (second.finished, second.total) == (1, 10)
    again = second.ask()
    assert {s.policy for s in again} == {s.policy for s in specs} - {specs[2].policy}
    assert {s.seed for s in again} <= {s.seed for s in specs}
    assert {s.number for s in again} == {s.number for s in specs} - {specs[2].number}
    for spec in again:
        second.finish(evaluate(spec))
    assert len(second.ask()) == 2
    assert not any("attempts" in t.user_attrs for t in trials(second)), "a lost controller is not the policy's fault"


def test_a_queue_survives_several_deaths_in_a_row(opened):
    opened().enqueue({SMALL: "uniform", OTHER: "promoted"})
    for _ in range(3):
        broker = opened()
        broker.enqueue({SMALL: "uniform", OTHER: "promoted"})
        assert {s.policy for s in broker.ask()} == {SMALL, OTHER}
    broker = opened()
    assert len(run(broker)) == 2
    assert TrialState.RUNNING not in {t.state for t in trials(broker)}


def test_a_result_that_was_written_but_not_told_is_told(opened):
    first = opened()
    first.enqueue({SMALL: "uniform"})
    (spec,) = first.ask()
    first._write(evaluate(spec))
    second = opened()
    assert second.ask() == []
    assert second.results() == [evaluate(spec)]
    assert trials(second)[0].state == TrialState.COMPLETE


def test_what_waits_in_a_study_or_was_not_handed_out_is_given_up_and_proposed_again(opened):
    first = opened(sampler="random", trials=5)
    first._study.enqueue_trial(encode(SMALL, SPACE), user_attrs={"origin": "uniform"})
    first._study.enqueue_trial(encode(OTHER, SPACE), user_attrs={"origin": "uniform"})
    first._study.ask()
    resumed = opened(sampler="random", trials=5)
    resumed.enqueue({SMALL: "uniform", OTHER: "uniform"})
    assert {SMALL, OTHER} < {r.policy for r in run(resumed)}
    assert resumed.finished == 5
    assert [t.state for t in trials(resumed)] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 5
