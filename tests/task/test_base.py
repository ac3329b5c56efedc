import math

import pytest
import torch
from torch.utils.data import TensorDataset

from autoprune.errors import TaskError, UsageError
from autoprune.model.examples import as_tensors
from autoprune.task.base import Task
from autoprune.task.recipe import Recipe
from tests.task.toys import toy_data, toy_task, unlabelled_task


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("build_model", torch.nn.Linear(1, 1).weight),
        ("example_inputs", {"x": 1}),
        ("target", 3),
        ("train_step", "loss"),
        ("outputs", 0),
        ("example_inputs", ()),
        ("example_inputs", (torch.tensor(1.0),)),
        ("train_set", 5),
        ("val_set", "data"),
        ("test_set", {"x": torch.zeros(3)}),
        ("loss", "cross_entropy"),
        ("metric", 1),
        ("augment", True),
        ("recipe", {"epochs": 1}),
        ("finetune_recipe", "sgd"),
    ],
)
def test_an_ill_typed_field_is_named(field, value):
    with pytest.raises(TaskError, match=f"a task's {field} must be"):
        toy_task(**{field: value})


@pytest.mark.parametrize("field", ["build_model", "example_inputs", "train_set", "val_set", "test_set"])
def test_a_missing_mandatory_field_is_named(field):
    given = {name: value for name, value in vars(toy_task()).items() if name != field and name != "classifies"}
    with pytest.raises(TaskError, match=f"a task's {field} must be .*got nothing"):
        Task(**given)


@pytest.mark.parametrize("field", ["train_set", "val_set", "test_set"])
def test_empty_data_is_refused(field):
    with pytest.raises(TaskError, match=f"{field} must hold at least one item"):
        toy_task(**{field: TensorDataset(torch.zeros(0, 1, 6, 6), torch.zeros(0))})


def test_a_recipe_without_a_loss_is_refused():
    with pytest.raises(TaskError, match="needs a loss"):
        unlabelled_task(recipe=Recipe())


def test_split_looks_at_the_target_only_when_there_is_a_loss():
    x, y = torch.zeros(2, 3), torch.zeros(2)
    inputs, target = toy_task().split((x, y))
    assert inputs == (x,)
    assert target is y
    inputs, target = unlabelled_task().split((x, y))
    assert inputs == (x,)
    assert target is None


def test_names_come_from_the_functions():
    assert toy_task(name="").name == "toy_model"
    assert toy_task(name="", build_model=lambda: None).name == "lambda"
    assert toy_task(name="mine").name == "mine"


def test_what_classifies_and_how_the_metric_is_called():
    def mean_error(model, dataset):
        return 0.0

    regression = TensorDataset(torch.zeros(4, 1, 6, 6), torch.zeros(4, 4))
    assert toy_task().classifies
    assert toy_task().metric_name == "accuracy"
    assert not toy_task(val_set=regression).classifies
    assert not unlabelled_task().classifies
    assert unlabelled_task().metric_name == "closeness"
    assert toy_task(metric=mean_error).metric_name == "mean_error"
    assert toy_task(metric=mean_error, metric_name="top1").metric_name == "top1"


def test_targets_may_be_plain_numbers():
    pairs = [(torch.zeros(1, 6, 6), 3)] * 4
    assert toy_task(val_set=pairs).classifies
    assert toy_task(val_set=[(torch.zeros(1, 6, 6), 0.5)] * 4).classifies is False


def test_as_tensors_refuses_what_is_no_number():
    with pytest.raises(TaskError, match=r"\(Tensor, str\)"):
        as_tensors((torch.zeros(1), "cat"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 1),
        ("optimizer", "adam"),
        ("schedule", "step"),
        ("precision", "fp16"),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("momentum", 1.0),
        ("label_smoothing", -0.1),
        ("distill_weight", 1.5),
        ("temperature", 0.0),
    ],
)
def test_a_recipe_outside_its_range_is_refused(field, value):
    with pytest.raises(UsageError, match=f"a recipe's {field}"):
        Recipe(**{field: value})


def test_tasks_are_frozen():
    with pytest.raises(AttributeError):
        toy_task().name = "other"


def test_toy_data_is_what_it_says():
    images, targets = toy_data(8, 0).tensors
    assert images[3, 0, 3:, 3:].min() >= 1.0
    assert targets.tolist() == [0, 1, 2, 3] * 2
