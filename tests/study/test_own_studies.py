"""Studies that users begin themselves, in the small world: the objective, and the guided proposals as a sampler."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.trial import TrialState

from autoprune.allocation.uniform import baselines
from autoprune.errors import UsageError
from autoprune.executors.base import failed
from autoprune.executors.inline import InlineExecutor
from autoprune.records import SearchSpace
from autoprune.search.controller import run_search
from autoprune.search.explore import first_scored
from autoprune.search.guided import GuidedProposals
from autoprune.study.own_studies import PolicyObjective, ProblemSpec, scored_policies
from autoprune.study.round_sampler import RoundSampler
from autoprune.study.samplers import distributions
from autoprune.study.spec import StudySpec, objectives
from autoprune.treatments import Treatment
from tests import fakes

TRIALS = 30
PROBLEM = ProblemSpec(
    study_spec=StudySpec(space=fakes.SPACE, fidelity=fakes.PROXY, limits=fakes.LIMITS, run_seed=3), weights="a"
)
OBJECTIVE = PolicyObjective(
    problem=PROBLEM,
    predict=fakes.predict,
    score=fakes.evaluate,
    dense_ms=fakes.DENSE_MS,
    budgets=dict(zip(("70%", "55%"), fakes.LIMITS, strict=True)),
)


def guided():
    search = fakes.search(Path("nowhere"))
    uniform = baselines(search.space, search.dense_widths, search.predict, search.limits)
    return RoundSampler(PROBLEM, partial(GuidedProposals, search, first_scored(search, uniform), endless=True), seed=3)


def new_study(sampler=None, **options):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler or guided(), **options)


def digests(study):
    return [trial.user_attrs["digest"] for trial in study.trials]


@pytest.fixture(scope="module")
def undisturbed():
    study = new_study()
    study.optimize(OBJECTIVE, n_trials=TRIALS)
    return study


def test_the_sampler_proposes_what_the_guided_search_of_a_run_does(undisturbed, tmp_path):
    search = fakes.search(tmp_path, strategy="guided", effort=replace(fakes.EFFORT, trials=2 * TRIALS))
    results = run_search(search, InlineExecutor(fakes.plain)).results
    uniform = len(fakes.LIMITS)
    expected = [*results["proxy"][:uniform], *results["sensitivity"], *results["proxy"][uniform:]]
    count = min(len(expected), TRIALS)
    assert digests(undisturbed)[:count] == [result.policy.digest() for result in expected][:count]
    assert undisturbed.trials[0].values == list(objectives(results["proxy"][0].measurement))


def test_a_trial_says_what_was_scored(undisturbed):
    for trial, result in zip(undisturbed.trials, scored_policies(undisturbed), strict=True):
        attributes = trial.user_attrs
        assert attributes["widths"] == dict(result.policy.widths)
        assert attributes["score"] == result.measurement.score
        assert attributes["latency_share"] == pytest.approx(fakes.latency_ms(result.policy) / fakes.DENSE_MS)
        assert ("70%" in attributes["meets"]) == (trial.constraints["budget"] <= 0)
    assert {trial.user_attrs["origin"] for trial in undisturbed.trials} >= {"uniform", "sensitivity", "solver"}
    assert all(trial.user_attrs["meets"] for trial in undisturbed.best_trials)


@pytest.mark.parametrize("sampler", [TPESampler(seed=0), NSGAIISampler(population_size=8, seed=0)])
def test_other_samplers_search_with_the_same_objective(sampler):
    study = new_study(sampler)
    study.optimize(OBJECTIVE, n_trials=25)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    for trial in study.trials:  # a study says what was scored, so that a policy beyond the budgets is marked
        assert (
            fakes.SPACE.at([trial.params[name] for name in fakes.SPACE.searched]).digest() == trial.user_attrs["digest"]
        )


def test_a_policy_is_scored_once_and_one_that_fails_is_stopped():
    asked = []

    def score(spec):
        asked.append(spec.policy)
        return failed(spec, "no") if spec.policy.widths["unit0"] == 2 else fakes.evaluate(spec)

    study = new_study(TPESampler(seed=0))
    for width in (3, 3, 2, 2):
        study.enqueue_trial(dict.fromkeys(fakes.SPACE.searched, 4) | {"unit0": width - 2})
    study.optimize(replace(OBJECTIVE, score=score), n_trials=4)
    assert len(asked) == 2
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[0].values == study.trials[1].values
    assert study.trials[3].user_attrs["error"] == "no"
    assert [result.policy for result in scored_policies(study)] == asked[:1]


def test_a_trial_that_was_enqueued_keeps_its_parameters_and_takes_no_proposal(undisturbed):
    study = new_study()
    study.enqueue_trial({"unit0": 1})
    study.optimize(OBJECTIVE, n_trials=3)
    assert study.trials[0].params["unit0"] == 1
    assert digests(study)[1:] == digests(undisturbed)[:2]


def test_an_interrupted_study_goes_on_with_the_same_policies(undisturbed):
    study = new_study()
    study.optimize(OBJECTIVE, n_trials=17)

    def interrupted(trial):
        trial.suggest_int(fakes.SPACE.searched[0], 0, 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.optimize(interrupted, n_trials=1)
    study.sampler = guided()  # as in another process: all that it knows is in the study, as JSON values
    assert all(json.loads(json.dumps(trial.system_attrs)) == trial.system_attrs for trial in study.trials)
    study.optimize(OBJECTIVE, n_trials=TRIALS - 17)
    assert digests_of_complete(study) == digests(undisturbed)


def test_a_trial_whose_process_was_killed_is_proposed_again():
    study = new_study()
    trials = [study.ask(distributions(fakes.SPACE)) for _ in range(3)]  # the last one will never end
    for trial in trials[:2]:
        study.tell(trial, OBJECTIVE(trial))
    study.optimize(OBJECTIVE, n_trials=TRIALS)
    lost = trials[2].params
    assert next(trial.number for trial in study.trials if trial.params == lost and trial.values) == 2 + 12
    assert len(digests_of_complete(study)) == len(set(digests_of_complete(study))) == TRIALS + 2


def digests_of_complete(study):
    return [trial.user_attrs["digest"] for trial in study.trials if trial.state == TrialState.COMPLETE]


def test_several_workers_share_a_study_and_score_no_policy_twice_but_at_one_border(undisturbed):
    study = new_study()
    samplers = [study.sampler, guided(), guided()]
    under_way = []
    for number in range(45):
        study.sampler = samplers[number % 3]
        under_way.append(study.ask(distributions(fakes.SPACE)))
        if len(under_way) == 3:
            trial = under_way.pop(number % 2)
            study.tell(trial, OBJECTIVE(trial))
    finished = digests_of_complete(study)
    assert len(finished) - len(set(finished)) <= 4  # the last sensitivities, which all that follows waits for
    assert len(set(finished) & set(digests(undisturbed))) >= 16
    assert {"solver", "surrogate"} <= {trial.user_attrs["origin"] for trial in study.trials}


OTHER = SearchSpace(id="fake", levels={"unit0": (2, 3), "other": (1, 2)})


@pytest.mark.parametrize("sampler", [None, TPESampler(seed=0)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("directions", r"minimises two values.*\['maximize'\]"),
        ("weights", "another problem: weights was b and is a"),
        ("space", "parameters of another space"),
    ],
)
def test_a_study_of_something_else_is_refused_by_one_sentence(sampler, change, message):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = ["maximize"] if change == "directions" else ["minimize"] * 2
    study = optuna.create_study(directions=directions, sampler=TPESampler(seed=0))
    if change == "weights":
        other = replace(OBJECTIVE, problem=replace(PROBLEM, weights="b"))
        study.optimize(other, n_trials=1)
    if change == "space":
        study.tell(study.ask(distributions(OTHER)), [0.0, 0.0])
    study.sampler = sampler or guided()
    with pytest.raises(UsageError, match=message):
        study.optimize(OBJECTIVE, n_trials=1)
    if sampler is None:
        with pytest.raises(UsageError, match=message):
            study.ask(distributions(fakes.SPACE))


def test_treatments_are_categories():
    levels = {"unit": (2, 4, 8), "a.weight": tuple(map(Treatment.parse, ("rank:8", "int8", "fp32")))}
    space = SearchSpace(id="joint", levels=levels)
    problem = replace(PROBLEM, study_spec=replace(PROBLEM.study_spec, space=space, limits=()))
    predict = lambda policies: fakes.costs_of(lambda policy: 1.0 + len(policy.treatments), policies)  # noqa: E731

    def score(spec):
        return replace(fakes.evaluate(fakes.spec()), policy=spec.policy)

    study = new_study(TPESampler(seed=0))
    study.enqueue_trial({"unit": 1, "a.weight": "rank:8"})
    study.optimize(replace(OBJECTIVE, problem=problem, predict=predict, score=score), n_trials=12)
    assert study.trials[0].user_attrs["treatments"] == {"a.weight": "rank:8"}
    assert study.trials[0].user_attrs["widths"] == {"unit": 4}
    assert {trial.params["a.weight"] for trial in study.trials} == {"rank:8", "int8", "fp32"}
