from __future__ import annotations

import dataclasses
import sys
from typing import Any, NoReturn

import pytest
import torch
from torch.utils.data import Dataset

import autoprune
from autoprune.errors import TaskError
from autoprune.executors.base import guarded
from autoprune.records import Policy
from autoprune.task.check import check_task
from autoprune.task.faults import task_faults
from autoprune.trials import Fidelity, TrialSpec
from tests.pipeline import tiny


@pytest.fixture(scope="module")
def task() -> autoprune.Task:
    return tiny.make_task()


def leaves(*_: Any) -> NoReturn:
    sys.exit(0)


def breaks(*_: Any) -> NoReturn:
    raise LookupError("of the user")


class Leaving(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> NoReturn:
        sys.exit()


@pytest.mark.parametrize("name", ["build_model", "loss", "augment", "outputs"])
@pytest.mark.parametrize("function", [leaves, breaks])
def test_a_callback_that_ends_the_program_is_one_message(task: autoprune.Task, name: str, function: Any) -> None:
    with pytest.raises(TaskError, match=rf"{name}.*(SystemExit: 0|LookupError: of the user)"):
        check_task(dataclasses.replace(task, **{name: function}))


def test_data_that_end_the_program_are_one_message(task: autoprune.Task) -> None:
    classifies = dataclasses.replace(task, metric=lambda model, data: 0.0)
    object.__setattr__(classifies, "val_set", Leaving())
    with pytest.raises(TaskError, match=r"val_set of the task \(test_faults\.py, line \d+\) raised SystemExit"):
        check_task(classifies)


def test_other_errors_are_left_alone(task: autoprune.Task) -> None:
    with pytest.raises(ZeroDivisionError), task_faults(task):
        _ = 1 / 0
    measured = dataclasses.replace(task, metric=breaks)
    named = pytest.raises(TaskError, match=r"metric of the task \(test_faults\.py, line \d+\) raised LookupError")
    with named, task_faults(measured):
        measured.metric(None, None)  # pyright: ignore[reportOptionalCall, reportArgumentType]


def test_a_trial_that_ends_the_program_has_failed() -> None:
    spec = TrialSpec(number=0, policy=Policy(space_id="", widths={}), fidelity=Fidelity(name="proxy", rung=0), seed=0)
    result = guarded(leaves, spec)
    assert (result.status, result.error) == ("failed", "SystemExit: 0")


def test_labels_beyond_the_first_items_are_seen(task: autoprune.Task) -> None:
    x, y = (tensor.clone() for tensor in task.train_set.tensors)  # pyright: ignore[reportAttributeAccessIssue]
    y[217] = 10
    with pytest.raises(TaskError, match=r"targets of train_set must be class indices below 10 .* got 0 to 10"):
        check_task(dataclasses.replace(task, train_set=torch.utils.data.TensorDataset(x, y)))


def test_a_data_set_without_end_is_refused(task: autoprune.Task) -> None:
    class Endless(Leaving):
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, row: int) -> Any:
            return task.train_set[0]

    with pytest.raises(TaskError, match=r"train_set has 1,000,000,000,000 items, .* at most 1,000,000,000"):
        check_task(dataclasses.replace(task, train_set=Endless()))
