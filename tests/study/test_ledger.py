from __future__ import annotations

import optuna
from sqlalchemy import event

from autoprune.study.samplers import encode
from tests.fakes import SPACE, evaluate
from tests.study.test_broker import SMALL, run, trials


def test_the_sampler_knows_what_the_study_holds(opened):
    broker = opened(sampler="nsga2", trials=40)
    broker.enqueue({SMALL: "uniform", SPACE.largest(): "too dear"})
    run(broker)
    copies = broker._ledger._proposals._copy.get_trials()
    assert [(t.number, t.state, t.params, t.values) for t in copies] == [
        (t.number, t.state, t.params, t.values) for t in trials(broker)
    ]
    assert all(
        t.system_attrs.items() <= copy.system_attrs.items() for t, copy in zip(trials(broker), copies, strict=True)
    )


def written(steps):
    """How many of the transactions wrote something."""
    parts = " ".join(steps).split("COMMIT")
    return sum("INSERT" in part or "UPDATE" in part for part in parts)


def test_a_trial_is_recorded_in_one_transaction_and_its_result_in_another(opened):
    broker = opened()
    broker.enqueue({SMALL: "uniform"})
    steps = []
    engine = broker._study._storage._backend.engine
    event.listen(engine, "before_cursor_execute", lambda _, __, statement, *rest: steps.append(statement.split()[0]))
    event.listen(engine, "commit", lambda _: steps.append("COMMIT"))
    (spec,) = broker.ask()
    assert written(steps) == 1
    broker.finish(evaluate(spec))
    assert written(steps) == 3, "the result, and then the state"


def test_all_parameters_are_written_by_one_statement_and_read_by_optuna_as_its_own(opened, tmp_path):
    broker, steps = opened(), []
    engine = broker._study._storage._backend.engine
    event.listen(engine, "before_cursor_execute", lambda _, __, statement, *rest: steps.append(statement))
    broker.enqueue({SMALL: "uniform", SPACE.policy({}): "dense"})
    broker.ask()
    assert sum("INTO trial_params" in statement for statement in steps) == 2, "one for each trial"
    plain = optuna.load_study(study_name=broker._study.study_name, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [(t.params, t.distributions) for t in plain.trials] == [(t.params, t.distributions) for t in trials(broker)]
    assert plain.trials[0].params == encode(SMALL, SPACE)
