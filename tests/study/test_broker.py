from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import RunFolderError
from autoprune.records import SearchSpace
from autoprune.study.broker import WINDOW, Broker
from autoprune.study.spec import StudySpec, objectives
from autoprune.trials import trial_seed
from tests.fakes import LIMITS, PROXY, SPACE, evaluate, latency_ms, predict

SMALL = SPACE.policy(dict.fromkeys(SPACE.searched, 3))
OTHER = SPACE.policy(dict.fromkeys(SPACE.searched, 4))


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


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
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
    results = [r for r in run(other) if r.policy not in {e.policy for e in expected}]
    assert len(results) == 6
    assert all(fits(predict([r.policy]), tighter[0]).all() for r in results)
    assert {t.system_attrs["constraints:budget"] > 0 for t in trials(other)[:12]} == {True, False}
    again = opened(sampler="random", trials=12)
    assert (again.finished, again.ask(), again.results()) == (12, [], expected)


def test_a_file_that_is_no_study_is_refused(tmp_path, opened):
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(RunFolderError, match="cannot be used"):
        opened()


def test_the_file_is_in_write_ahead_mode(tmp_path, opened):
    broker = opened()
    with broker._study._storage._backend.engine.connect() as connection:
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
    study_spec = StudySpec(space=SPACE, fidelity=PROXY, limits=LIMITS, run_seed=1)
    with closing(Broker(tmp_path / "study.db", study_spec, predict)) as broker:
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
