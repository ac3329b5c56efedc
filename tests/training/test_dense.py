import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.task.recipe import Recipe
from autoprune.training.dense import build_dense, load_dense, train_dense, weights_to_bytes
from autoprune.training.scoring import evaluate
from tests.task.toys import toy_task

TASK = toy_task(recipe=Recipe(epochs=6, batch_size=16, lr=0.1, precision="fp32"))


def same(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_training_reaches_the_goal_and_depends_on_the_seed_alone():
    calls: list[int] = []
    model = train_dense(TASK, seed=1, on_progress=lambda done, total, loss: calls.append(total))
    assert evaluate(model, TASK, TASK.test_set).score > 0.95
    assert set(calls) == {96 * 6}
    torch.manual_seed(99)
    assert same(model, train_dense(TASK, seed=1))
    assert not same(model, train_dense(TASK, seed=2))


def test_a_trained_model_is_taken_as_it_is():
    given = toy_task().build_model()
    assert train_dense(toy_task(build_model=lambda: given)) is given
    assert not given.training


def test_weights_survive_the_disk(tmp_path):
    path = tmp_path / "dense.safetensors"
    model = build_dense(TASK, seed=5)
    path.write_bytes(weights_to_bytes(model))
    assert same(model, load_dense(TASK, path))
    assert not load_dense(TASK, path).training


def test_tied_weights_survive_the_disk(tmp_path):
    def tied():
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        return nn.Sequential(first, second)

    task = toy_task(build_model=tied)
    path = tmp_path / "dense.safetensors"
    path.write_bytes(weights_to_bytes(build_dense(task, seed=5)))
    assert same(build_dense(task, seed=5), load_dense(task, path))


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(weights_to_bytes(nn.Sequential(nn.Conv2d(1, 9, 3), nn.BatchNorm2d(9))))
    with pytest.raises(TaskError, match=r"must fit the model; \d+ do not: 0.bias is not in the model"):
        load_dense(TASK, path)


def test_absent_and_damaged_files_are_named(tmp_path):
    with pytest.raises(TaskError, match="there is no weights file"):
        load_dense(TASK, tmp_path / "absent.safetensors")
    path = tmp_path / "damaged.safetensors"
    for content in (b"", b"not safetensors at all"):
        path.write_bytes(content)
        with pytest.raises(TaskError, match="not a readable safetensors file"):
            load_dense(TASK, path)


class Versioned(nn.Linear):
    """A layer that refuses a state without its version."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("the state has no version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_layers_that_ask_for_the_version_of_their_state_load(tmp_path):
    task = toy_task(build_model=lambda: nn.Sequential(nn.Flatten(), Versioned(192, 3)))
    model, path = build_dense(task, seed=5), tmp_path / "dense.safetensors"
    path.write_bytes(weights_to_bytes(model))
    assert same(model, load_dense(task, path))
