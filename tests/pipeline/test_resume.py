"""What a run folder takes from a later call, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import autoprune
from autoprune.errors import LatencyError, RunFolderError
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.commands import verify_again
from autoprune.pipeline.configuration import resolve
from autoprune.pipeline.identity import task_fingerprint
from autoprune.runfolder import RunFolder, samples_beside
from autoprune.structure import analyze
from tests.conftest import OPTIONS, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny


def test_another_table_for_a_run_that_has_begun_is_refused(copied: autoprune.Run, tmp_path: Path) -> None:
    table = LatencyTable.load(copied.folder.table)
    table.save(tmp_path / "same.json")
    assert autoprune.search(run_dir=copied.folder.path, table=str(tmp_path / "same.json")).models
    samples = tuple(dataclasses.replace(s, measured_ms=1.1 * s.measured_ms) for s in table.samples)
    dataclasses.replace(table, samples=samples).save(tmp_path / "other.json")
    samples_beside(copied.folder.table).touch()
    with pytest.raises(RunFolderError, match="has begun with another latency table"):
        autoprune.search(run_dir=copied.folder.path, table=str(tmp_path / "other.json"))
    assert autoprune.search(run_dir=copied.folder.path).models, "the table that was refused is not kept"
    assert not samples_beside(copied.folder.table).exists(), "what a kill after the table has left goes"


def test_a_table_says_what_it_was_measured_with(copied: autoprune.Run, tmp_path: Path) -> None:
    table = LatencyTable.load(copied.folder.table)
    wide = dataclasses.replace(table, target=dict(table.target) | {"cpu": "another", "batch": 8})
    wide.save(tmp_path / "wide.json")
    options = {"table": str(tmp_path / "wide.json"), "allow_foreign_table": True}
    assert resolve(RunFolder(tmp_path / "new"), None, options).batch == 8
    with pytest.raises(LatencyError, match="search with --batch 8 as it was measured"):
        autoprune.search(SPEC, run_dir=tmp_path / "run", batch=1, **OPTIONS | options)


def test_other_budgets_that_were_not_searched_do_not_spoil_what_is_there(copied: autoprune.Run) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoprune.pipeline.main.search_prepared", stopped)
        with pytest.raises(KeyboardInterrupt):
            autoprune.search(run_dir=copied.folder.path, budgets=["90%"])
    digest = copied.models[0].digest
    assert verify_again(copied.folder.path, digest, SimulatedMeasurer())["score"] == copied.models[0].score


def test_data_that_draw_at_random_do_not_hinder_a_resumption() -> None:
    class Augmented(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __init__(self, own: bool) -> None:
            self.rng = np.random.default_rng(0) if own else None

        def __len__(self) -> int:
            return 20

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            noise = self.rng.normal() if self.rng else np.random.normal() + float(torch.rand(()))  # noqa: NPY002
            return torch.full((1, 8, 8), noise, dtype=torch.float32), torch.tensor(row % 10)

    task = tiny.make_task()
    structure = analyze(task.build_model().eval(), task.example_inputs)
    for own in (False, True):
        data = Augmented(own)
        drawing = dataclasses.replace(task, train_set=data)
        assert task_fingerprint(drawing, structure) == task_fingerprint(drawing, structure)
