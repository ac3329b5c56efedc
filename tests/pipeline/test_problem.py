"""A study of one's own on a run, to its front."""

from __future__ import annotations

import optuna
import pytest

import autoprune
from autoprune.errors import UsageError


def test_the_front_of_a_study_is_that_of_its_policies(copied, measurer):
    front = [model for model in copied.models if model.strategy != "uniform"]
    problem = autoprune.prepare(run_dir=copied.folder.path, measurer=measurer)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=autoprune.GuidedSampler(problem))
    with pytest.raises(UsageError, match="no scored policy"):
        problem.finish(study)
    space = problem.prepared.space
    for model in front:
        study.enqueue_trial(dict(zip(space.searched, space.places(model.policy), strict=True)))
    study.optimize(problem.objective, n_trials=len(front) + 1)
    assert [t.user_attrs["digest"] for t in study.trials[:-1]] == [model.digest for model in front]
    assert study.trials[-1].user_attrs["origin"] == "uniform"
    run = problem.finish(study)
    assert {m.digest for m in run.models if m.strategy == "study"} <= {model.digest for model in front}
    assert {m.digest: m.score for m in run.models} == {m.digest: m.score for m in copied.models}
    assert run.candidate(front[0].digest).onnx_path.exists()


def test_policies_may_be_scored_at_a_dearer_rung(copied, measurer):
    problem = autoprune.prepare(run_dir=copied.folder.path, measurer=measurer)
    assert problem.at("brief").spec.to_json()["fidelity"]["finetune_samples"] > 0
    with pytest.raises(UsageError, match="brief, longer, proxy"):
        problem.at("full")
