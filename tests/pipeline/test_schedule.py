"""The schedule of zeros goes from the options of a search to its workers, and is a part of the run."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest
import safetensors.torch
import torch

import autoprune
from autoprune.errors import ConfigError, RunFolderError
from autoprune.evaluation import Evaluator, EvaluatorFactory
from autoprune.pipeline import executors
from autoprune.pipeline.expected_work import derived_effort
from autoprune.training.sample_passes import SamplePasses
from autoprune.treatments import Treatment
from autoprune.trials import TrialSpec, trial_seed
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


def gentle() -> autoprune.Task:
    """A task whose rate bears exchanges of zeros."""
    return dataclasses.replace(tiny.make_task(), finetune_recipe=autoprune.Recipe(batch_size=32, lr=0.01))


def test_full_fine_tunes_of_workers_exchange_zeros(finished: autoprune.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"task": f"{Path(__file__)}:gentle", "executor": "process", "workers": 1, "schedule": "rigl"}
    config = finished.config.model_copy(update=changed)
    monkeypatch.setattr(executors, "ProcessExecutor", lambda factory, **options: nullcontext(factory))
    with executors.executor_of(config, finished.folder, unused) as factory:
        evaluator = cast(EvaluatorFactory, factory)()
    evaluator = dataclasses.replace(evaluator, predict_ms=lambda _: 1.0)  # the table knows widths alone
    layers = [layer.name for layer in evaluator.dense_model.structure.layers]
    treatments = dict.fromkeys(layers[1:], Treatment.parse("sparse:97%"))
    policy = dataclasses.replace(evaluator.dense_model.structure.dense_policy(), treatments=treatments)
    full = derived_effort(config, evaluator.dense_model.task).full
    result = evaluator(TrialSpec(number=0, policy=policy, fidelity=full, seed=trial_seed(config.seed, full)))
    assert not result.undone
    assert result.weights is not None
    stored = safetensors.torch.load(result.weights)
    cut = evaluator.dense_model.cut(policy)
    start = cut.shrink()
    evaluator.dense_model.repair(start, cut, SamplePasses())
    begun = evaluator.dense_model.fitted(start, policy).state_dict()
    for name in treatments:
        assert int((begun[name] == 0).sum()) == int((stored[name] == 0).sum())
    assert any(not torch.equal(begun[name] == 0, stored[name] == 0) for name in treatments)


def unused() -> Evaluator:
    raise AssertionError("workers make their evaluators")


def test_the_schedule_is_a_part_of_the_run(copied: autoprune.Run) -> None:
    with pytest.raises(RunFolderError, match="schedule was 'one-shot' and is 'set'"):
        autoprune.search(run_dir=copied.folder.path, measurer=SimulatedMeasurer(), schedule="set")


def test_a_schedule_for_zeros_needs_a_space_with_zeros(finished: autoprune.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the space widths has none"):
        autoprune.search(
            SPEC, run_dir=tmp_path / "r", measurer=SimulatedMeasurer(), dense=str(finished.folder.dense),
            schedule="rigl", **QUICK | {"space": "widths"},
        )  # fmt: skip
