"""A search of a task without a fine-tuning recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import autoprune
from autoprune.config import RunConfig
from autoprune.evaluation.evaluator import EvaluatorFactory
from autoprune.pipeline.exploration import search_plan
from autoprune.pipeline.preparation import prepare
from autoprune.pipeline.recipe import with_recipe
from autoprune.pipeline.run import open_task
from autoprune.pipeline.studies import study_location
from autoprune.runfolder import RunFolder, read_json
from tests.conftest import QUICK
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


class Notes:
    """Events that remember stages and notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, title: str) -> None:
        self.lines.append(title)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        pass


def without_recipe() -> autoprune.Task:
    return dataclasses.replace(tiny.make_task(), finetune_recipe=None)


@pytest.fixture(scope="module")
def searched(finished: autoprune.Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[autoprune.Run, Notes]:
    folder, notes = tmp_path_factory.mktemp("run") / "tiny", Notes()
    spec = f"{Path(__file__)}:without_recipe"
    known = {"dense": str(finished.folder.dense), "table": str(finished.folder.table)}
    return autoprune.search(spec, run_dir=folder, measurer=SimulatedMeasurer(), events=notes, **known, **QUICK), notes


def test_the_recipe_is_found_once_reported_counted_and_used(searched: tuple[autoprune.Run, Notes]) -> None:
    run, notes = searched
    stored = read_json(run.folder.recipe)
    assert notes.lines.count("Fine-tuning recipe") == 1
    assert any(f"rate {stored['recipe']['lr']:g}: held-out loss" in line for line in notes.lines)
    assert run.document["search_sample_passes"]["recipe"] == stored["sample_passes"] > 0
    assert run.document["finetune_recipe"] == stored["recipe"]
    assert run.dense_model.task.finetune_recipe == autoprune.Recipe(**stored["recipe"])


def test_a_resumed_run_and_its_workers_take_the_stored_recipe(searched: tuple[autoprune.Run, Notes]) -> None:
    run, _ = searched
    before, notes = run.folder.recipe.read_bytes(), Notes()
    autoprune.search(run_dir=run.folder.path, measurer=SimulatedMeasurer(), events=notes)
    assert run.folder.recipe.read_bytes() == before
    assert "Fine-tuning recipe" not in notes.lines
    factory = EvaluatorFactory(task=run.config.task, model=None, data_dir=None, run_dir=str(run.folder.path)).packed()
    dense_model = dataclasses.replace(factory, run_dir="elsewhere")().dense_model
    assert dense_model.task.finetune_recipe == run.dense_model.task.finetune_recipe


def test_a_task_with_a_recipe_is_not_tested(finished: autoprune.Run) -> None:
    assert not finished.folder.recipe.exists()
    assert "recipe" not in finished.document["search_sample_passes"]


def test_the_recipe_is_tested_on_a_model_with_the_zeros_of_a_policy(finished: autoprune.Run, tmp_path: Path) -> None:
    (tmp_path / "zeros.yaml").write_text("include: []\ntreatments:\n  '*': [fp32, 'sparse:95%']\n")
    config = RunConfig(
        task=f"{Path(__file__)}:without_recipe", dense=str(finished.folder.dense), space=str(tmp_path / "zeros.yaml"),
        budgets=("bytes:30%",),
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.create()
    ready = prepare(config, folder, open_task(config), Notes(), SimulatedMeasurer())
    plan = search_plan(
        config, study_location(config, folder), ready.space, ready.dense_model, ready.costs, ready.effort
    )
    dense_model = with_recipe(ready.dense_model, plan, ready.costs, folder, Notes())
    dense_loss = dense_model.held_out.loss(dense_model.module, autoprune.Recipe())
    assert read_json(folder.recipe)["repaired_loss"] > dense_loss + 0.01
