from __future__ import annotations

from contextlib import closing

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution

from autoprune.allocation.limits import excess, fits
from autoprune.budgets import Limit
from autoprune.errors import PolicyError, UsageError
from autoprune.records import Policy, SearchSpace
from autoprune.study import samplers
from autoprune.study.broker import Broker
from autoprune.study.proposals import Proposals
from autoprune.study.samplers import SAMPLERS, decode, distributions, encode, make_sampler
from autoprune.study.spec import StudySpec
from autoprune.treatments import Treatment
from tests.fakes import LIMITS, PROXY, SPACE, costs_of, evaluate, predict


def proposals(path, name, trials):
    study_spec = StudySpec(space=SPACE, fidelity=PROXY, limits=LIMITS, run_seed=0)
    with closing(Broker(path / "study.db", study_spec, predict, sampler=name, trials=trials)) as broker:
        while specs := broker.ask():
            for spec in specs:
                broker.finish(evaluate(spec))
        return [result.policy for result in broker.results()]


# A GP starts to model after ten trials, and then takes a second for each of the next two.
@pytest.mark.parametrize(("name", "trials"), [("tpe", 14), ("nsga2", 20), ("random", 10), ("gp", 12)])
def test_every_sampler_proposes_distinct_policies_on_the_limits(tmp_path, name, trials):
    policies = proposals(tmp_path, name, trials)
    assert len(set(policies)) == len(policies) == trials
    costs = predict(policies)
    near = [fits(costs, limit) & (excess(costs, limit) > -0.1) for limit in LIMITS]
    assert (near[0] | near[1]).all()
    assert min(near[0].sum(), near[1].sum()) >= trials // 3


def test_the_names_are_tested_here():
    assert set(SAMPLERS) == {"tpe", "nsga2", "random", "gp"}
    with pytest.raises(UsageError, match="gp, nsga2, random, tpe"):
        make_sampler("cma", 0)


def test_policies_survive_encoding():
    policy = SPACE.policy({"unit0": 3, "unit4": 7})
    assert decode(encode(policy, SPACE), SPACE) == policy
    with pytest.raises(PolicyError):
        encode(Policy(space_id="fake", widths={"unit0": 99}), SPACE)


def test_treatments_are_names_and_studies_with_their_indices_go_on():
    levels = {"unit": (2, 4), "a.weight": tuple(map(Treatment.parse, ("rank:8", "int8", "fp32")))}
    space = SearchSpace(id="joint", levels=levels)
    policy = space.policy({"unit": 2, "a.weight": Treatment.parse("int8")})
    assert encode(policy, space) == {"unit": 0, "a.weight": "int8"}
    assert decode({"unit": 0, "a.weight": "int8"}, space) == decode({"unit": 0, "a.weight": 1}, space) == policy
    old = optuna.trial.create_trial(
        params={"unit": 0, "a.weight": 1},
        distributions={"unit": IntDistribution(0, 1), "a.weight": IntDistribution(0, 2)},
        values=[0.0, 0.0],
    )
    limit = Limit.of(latency_ms=1.0)
    spec = StudySpec(space=space, fidelity=PROXY, limits=(limit,), run_seed=0)
    drawn = Proposals([old], {}, spec, lambda policies: costs_of(lambda _: 0.5, policies), "tpe").draw(0, 1, (), None)
    assert drawn.policy == space.largest()  # which fits


def test_tpe_reads_the_newest_trials_and_the_front_of_the_older_ones(monkeypatch):
    monkeypatch.setattr(samplers, "_REMEMBERED", 12)
    rng, parameters = np.random.default_rng(0), distributions(SPACE)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=make_sampler("tpe", 3))
    drawn = [{name: int(rng.integers(d.high + 1)) for name, d in parameters.items()} for _ in range(30)]
    # The older half: a front of three, and twelve that its second policy beats; one of the twelve failed.
    values = [[1.0, 4.0], [2.0, 2.0], [4.0, 1.0], *rng.uniform(2.1, 3.9, (27, 2)).tolist()]
    for params, value in zip(drawn, values, strict=True):
        study.add_trial(optuna.trial.create_trial(params=params, distributions=parameters, values=value))

    def proposed(known):
        other = optuna.create_study(directions=["minimize", "minimize"], sampler=make_sampler("tpe", 3))
        other.add_trials([study.trials[number] for number in known])
        return other.ask(parameters).params

    full = study.ask(parameters).params
    assert full == proposed([0, 1, 2, *range(18, 30)]) != proposed(range(18, 30))
