from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autoprune.budgets import Limit
from autoprune.errors import RunFolderError
from autoprune.records import SearchSpace
from autoprune.search.attempts import MAX_LOSSES
from autoprune.search.broker import WINDOW, Broker
from autoprune.search.executors.base import failed, lost
from autoprune.search.limits import fits
from autoprune.search.question import Question, objectives
from autoprune.trials import trial_seed
from tests.search.fakes import LIMITS, PROXY, SPACE, evaluate, latency_ms, predict

SMALL = SPACE.policy(dict.fromkeys(SPACE.searched, 3))
OTHER = SPACE.policy(dict.fromkeys(SPACE.searched, 4))


@pytest.fixture
def opened(tmp_path):
    brokers = []

    def open_broker(space=SPACE, limits=LIMITS, run_seed=1, name="study.db", **options):
        question = Question(space=space, fidelity=PROXY, limits=limits, run_seed=run_seed)
        brokers.append(Broker(tmp_path / name, question, predict, **options))
        return brokers[-1]

    yield open_broker
    for broker in brokers:
        broker.close()


def trials(broker):
    return broker._study.get_trials()


def run(broker, evaluate=evaluate):
    while specs := broker.ask():
        for spec in specs:
            broker.finish(evaluate(spec))
    return broker.results()


def test_a_finished_rung(opened):
    broker = opened(sampler="random", trials=12)
    broker.enqueue({SMALL: "uniform"})
    assert (broker.finished, broker.total) == (0, 12)
    results = run(broker)
    assert (broker.finished, broker.total) == (12, 12)
    assert len({r.policy for r in results}) == 12
    first = trials(broker)[0]
    assert results[0].policy == SMALL
    assert first.user_attrs["origin"] == "uniform"
    assert first.values == list(objectives(results[0].measurement))
    assert {t.user_attrs["origin"] for t in trials(broker)[1:]} <= {"sampler", "repair"}
    assert all(t.system_attrs["constraints:budget"] <= 0 for t in trials(broker) if t.state == TrialState.COMPLETE)


def test_seeds_come_from_policy_and_fidelity(opened):
    broker = opened(run_seed=9)
    broker.enqueue({SMALL: "uniform"})
    (spec,) = broker.ask()
    assert spec.seed == trial_seed(9, PROXY)


def test_a_proposal_waits_for_the_results_a_window_before_it(opened):
    broker = opened(sampler="random", trials=WINDOW + 3)
    broker.enqueue({SMALL: "uniform"})
    first = broker.ask()
    assert (len(first), broker.ask()) == (WINDOW, [])
    for spec in first[1:]:
        broker.finish(evaluate(spec))
    assert broker.ask() == [], "the oldest one still runs"
    assert {t.state for t in trials(broker)} == {TrialState.RUNNING}
    broker.finish(evaluate(first[0]))
    assert len(broker.ask()) == 3
    told = [t.number for t in trials(broker) if t.state == TrialState.COMPLETE]
    assert told == [0, 1, 2, 3], "one more for each proposal, and for the next"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_neither_the_order_of_results_nor_deaths_change_the_proposals(opened, sampler):
    expected = {r.policy for r in run(opened(sampler=sampler, trials=30))}
    rng = np.random.default_rng(0)
    waiting, broker = {}, opened(sampler=sampler, trials=30, name="again.db")
    while True:
        waiting |= {spec.number: spec for spec in broker.ask()}
        if not waiting:
            break
        number = int(rng.choice(list(waiting)))
        broker.finish(evaluate(waiting.pop(number)))
        if rng.random() < 0.2:
            broker, waiting = opened(sampler=sampler, trials=30, name="again.db"), {}
    assert {r.policy for r in broker.results()} == expected
    assert {t.state for t in trials(broker)} <= {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}


def test_many_workers_have_a_wider_window(opened):
    assert len(opened(sampler="random", trials=100, window=40).ask()) == 40


def test_a_policy_over_budget_never_runs_and_does_not_count(opened):
    broker = opened(sampler="random", trials=2)
    broker.enqueue({SPACE.largest(): "solver"})
    results = run(broker)
    assert [r.status for r in results] == ["infeasible", "done", "done"]
    assert "beyond the loosest limit" in results[0].error
    assert trials(broker)[0].state == TrialState.PRUNED
    assert trials(broker)[0].system_attrs["constraints:budget"] > 0
    assert broker.finished == 2


def test_a_policy_on_the_limit_is_feasible_in_the_study_too(opened):
    broker = opened(limits=(Limit.of(latency_ms=latency_ms(SMALL)),))
    broker.enqueue({SMALL: "uniform"})
    assert [r.status for r in run(broker)] == ["done"]
    assert [t.number for t in broker._study.best_trials] == [0]


def test_enqueueing_twice_is_once(opened):
    broker = opened()
    broker.enqueue({SMALL: "uniform", OTHER: "promoted"})
    broker.enqueue({SMALL: "promoted"})
    specs = broker.ask()
    broker.enqueue({SMALL: "promoted"})
    for spec in specs:
        broker.finish(evaluate(spec))
    broker.enqueue({SMALL: "promoted"})
    assert [s.policy for s in specs] == [SMALL, OTHER]
    assert broker.ask() == []


def test_duplicates_are_answered_from_the_cache_and_a_space_that_is_used_up_ends_the_rung(opened):
    tiny = SearchSpace(id="tiny", levels={n: w[-2:] if n == "unit0" else w[-1:] for n, w in SPACE.levels.items()})
    broker = opened(space=tiny, limits=(Limit.of(latency_ms=100),), sampler="random", trials=50)
    results = run(broker)
    assert broker.total == broker.finished == len(results) == 1
    cached = [t for t in trials(broker) if "cached_from" in t.user_attrs]
    assert cached
    assert all(t.values == trials(broker)[t.user_attrs["cached_from"]].values for t in cached)


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
        specs = opened().ask()
        assert {s.policy for s in specs} == {SMALL, OTHER}
    broker = opened()
    assert len(run(broker)) == 2
    assert TrialState.RUNNING not in {t.state for t in trials(broker)}


def test_a_result_that_was_written_but_not_told_is_told(opened):
    first = opened()
    first.enqueue({SMALL: "uniform"})
    (spec,) = first.ask()
    first._write(first._running[spec.number].trial_id, evaluate(spec))
    second = opened()
    assert second.ask() == []
    assert second.results() == [evaluate(spec)]
    assert trials(second)[0].state == TrialState.COMPLETE


def test_death_between_queueing_again_and_giving_up_queues_once(opened):
    first = opened()
    first.enqueue({SMALL: "uniform"})
    (spec,) = first.ask()
    first._study.enqueue_trial(
        trials(first)[0].params, user_attrs={"origin": "uniform", "slot": 0, "retry_of": spec.number}
    )
    second = opened()
    assert [s.policy for s in second.ask()] == [SMALL]


def test_death_in_the_middle_of_asking(tmp_path, opened):
    """A proposal that was not handed out is drawn again, an enqueued policy is not lost."""
    broker = opened(sampler="random", trials=5)
    broker.enqueue({SMALL: "uniform"})
    broker._study.ask()
    broker._study.ask()
    resumed = opened(sampler="random", trials=5)
    assert SMALL in {r.policy for r in run(resumed)}
    assert resumed.finished == 5
    assert TrialState.RUNNING not in {t.state for t in trials(resumed)}


@pytest.mark.parametrize("changes", [{"space": SearchSpace(id="b", levels=SPACE.levels)}, {"run_seed": 2}])
def test_a_study_of_another_question_is_refused(opened, changes):
    opened()
    with pytest.raises(RunFolderError, match="answers another question"):
        opened(**changes)


def test_other_limits_begin_with_what_was_scored_and_the_former_come_back(opened):
    first = opened(sampler="random", trials=12)
    expected = run(first)
    tighter = (Limit.of(latency_ms=LIMITS[0].most[0] * 0.9),)
    other = opened(limits=tighter, sampler="random", trials=6)
    assert [r.policy for r in other.results()] == [r.policy for r in expected]
    assert (other.finished, other.total) == (0, 6)
    assert all(trials(other)[r.number].user_attrs["digest"] == r.policy.digest() for r in other.results())
    found = [r for r in run(other) if r.policy not in {e.policy for e in expected}]
    assert len(found) == 6
    assert all(fits(predict([r.policy]), tighter[0]).all() for r in found)
    assert {t.system_attrs["constraints:budget"] > 0 for t in trials(other)[:12]} == {True, False}
    again = opened(sampler="random", trials=12)
    assert (again.finished, again.ask(), again.results()) == (12, [], expected)


def test_a_file_that_is_no_study_is_refused(tmp_path, opened):
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(RunFolderError, match="cannot be used"):
        opened()


def test_the_file_is_in_write_ahead_mode(tmp_path, opened):
    broker = opened()
    with broker._storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_optuna_can_read_the_study(tmp_path, opened):
    broker = opened(sampler="random", trials=4)
    run(broker)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.load_study(study_name="rung-0", storage=storage)
    assert len(study.trials) == 4
    storage.remove_session()
    storage.engine.dispose()


def test_no_connection_is_left_open(tmp_path):
    question = Question(space=SPACE, fidelity=PROXY, limits=LIMITS, run_seed=1)
    with closing(Broker(tmp_path / "study.db", question, predict)) as broker:
        broker.enqueue({SMALL: "uniform"})
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    connection.close()


def test_a_limit_on_another_cost_holds_for_every_trial(opened):
    limits = (Limit.of(latency_ms=100, params=90), Limit.of(bytes=400))
    broker = opened(limits=limits, sampler="random", trials=10)
    broker.enqueue({SPACE.largest(): "solver"})
    refused, *done = run(broker)
    assert refused.status == "infeasible"
    assert re.search(r"predicted [\d,]+ bytes: .*% beyond the loosest limit, 400 bytes", refused.error)
    assert len(done) == 10
    assert all(any(fits(r.measurement.costs(), limit) for limit in limits) for r in done)
    assert all(len(t.values) == 2 for t in trials(broker) if t.state == TrialState.COMPLETE)
