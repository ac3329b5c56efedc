from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

import autoprune
from autoprune.errors import RunFolderError, TaskError, UsageError
from autoprune.runfolder import RunFolder
from tests.conftest import OPTIONS, SPEC
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny

search = partial(autoprune.search, measurer=SimulatedMeasurer())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": "digits"}, "task was"), ({"seed": 3}, "seed was 0 and is 3")],
)
def test_another_run_needs_another_folder(finished: autoprune.Run, options: dict, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        search(run_dir=finished.folder.path, **options)


def test_fresh_refuses_a_run(finished: autoprune.Run) -> None:
    with pytest.raises(RunFolderError, match="already holds a run"):
        search(run_dir=finished.folder.path, fresh=True)


def test_data_that_are_not_finite_stop_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"(?i)nan|finite"):
        search(SPEC.replace("make_task", "not_finite"), run_dir=tmp_path / "nan", **OPTIONS)
    assert not RunFolder(tmp_path / "nan").dense.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fancy"}, "unknown strategy 'fancy'. Known: "),
        ({"sampler": "tp"}, "unknown sampler 'tp'"),
        ({"scores": "l3"}, "unknown scores 'l3'"),
        ({"target": "toaster"}, "unknown target 'toaster'"),
        ({"space": "resent"}, "unknown space 'resent'"),
        ({"task": "mnist"}, "unknown task 'mnist'"),
    ],
)
def test_unknown_names_leave_nothing_behind(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(run_dir=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_another_task_of_the_same_name_is_refused(copied: autoprune.Run, tmp_path: Path) -> None:
    task = tiny.make_task()
    folder = tmp_path / "object"
    options = {"budgets": ["80%"], "strategy": "uniform", "table": str(copied.folder.table)}
    search(task, run_dir=folder, **options)
    x, y = task.train_set.tensors  # pyright: ignore[reportAttributeAccessIssue]
    other = dataclasses.replace(task, train_set=TensorDataset(x + 1, y))
    with pytest.raises(RunFolderError, match="another task"):
        search(other, run_dir=folder)
