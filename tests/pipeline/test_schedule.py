"""The schedule of zeros goes from the options of a search to its workers, and is a part of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

import autoprune
from autoprune.errors import ConfigError, RunFolderError
from autoprune.evaluation import Evaluator
from autoprune.pipeline.expected_work import derived_effort
from autoprune.training.sample_passes import SamplePasses
from autoprune.trials import TrialSpec, trial_seed
from tests.conftest import QUICK, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


def gentle() -> autoprune.Task:
    """A task whose rate bears exchanges of zeros."""
    return dataclasses.replace(tiny.make_task(), finetune_recipe=autoprune.Recipe(batch_size=32, lr=0.01))


def test_full_fine_tunes_of_workers_exchange_zeros(finished: autoprune.Run, tmp_path: Path) -> None:
    space = tmp_path / "zeros.yaml"
    space.write_text("include: []\ntreatments:\n  '*': [fp32, 'sparse:97%']\n")
    options = QUICK | {"budgets": ["bytes:20%"], "space": str(space), "executor": "process", "workers": 1}
    dense = str(finished.folder.dense)
    run = autoprune.search(
        f"{Path(__file__)}:gentle", run_dir=tmp_path / "r", measurer=SimulatedMeasurer(), dense=dense, schedule="rigl",
        **options,
    )  # fmt: skip
    model = run.models[0]
    stored = safetensors.torch.load_file(run.folder.model(model.digest).weights)
    full = derived_effort(run.config, run.open_task()).full
    again = TrialSpec(number=0, policy=model.policy, fidelity=full, seed=trial_seed(run.config.seed, full))
    result = Evaluator(dense_model=run.dense_model, predict_ms=lambda _: 1.0, schedule="rigl")(again)
    assert result.weights is not None
    weights = safetensors.torch.load(result.weights)
    assert all(torch.equal(stored[name], weights[name]) for name in stored)
    cut = run.dense_model.cut(model.policy)
    start = cut.shrink()
    run.dense_model.repair(start, cut, SamplePasses())
    zeros = {name: tensor == 0 for name, tensor in run.dense_model.fitted(start, model.policy).state_dict().items()}
    assert any(not torch.equal(zeros[name], stored[name] == 0) for name in model.policy.treatments), (
        "none has moved: was the fine-tune undone?"
    )
    with pytest.raises(RunFolderError, match="schedule was 'rigl' and is 'set'"):
        autoprune.search(run_dir=run.folder.path, measurer=SimulatedMeasurer(), schedule="set")


def test_a_schedule_for_zeros_needs_a_space_with_zeros(finished: autoprune.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the space widths has none"):
        autoprune.search(
            SPEC, run_dir=tmp_path / "r", measurer=SimulatedMeasurer(), dense=str(finished.folder.dense),
            schedule="rigl", **QUICK | {"space": "widths"},
        )  # fmt: skip
