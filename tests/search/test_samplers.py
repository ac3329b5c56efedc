from __future__ import annotations

from contextlib import closing

import pytest

from autoprune.errors import PolicyError, UsageError
from autoprune.records import Policy
from autoprune.search.broker import Broker
from autoprune.search.limits import excess, fits
from autoprune.search.question import Question
from autoprune.search.samplers import SAMPLERS, decode, encode, make_sampler
from tests.search.fakes import LIMITS, PROXY, SPACE, evaluate, predict


def proposals(path, name, trials):
    question = Question(space=SPACE, fidelity=PROXY, limits=LIMITS, run_seed=0)
    with closing(Broker(path / "study.db", question, predict, sampler=name, trials=trials)) as broker:
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
