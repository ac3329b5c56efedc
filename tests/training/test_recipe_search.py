import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.task.base import Task
from autoprune.training.held_out import HeldOut
from autoprune.training.recipe_search import expected_passes, find_recipe
from autoprune.training.scoring import predict_outputs
from autoprune.training.terms import Term


class Encoder(nn.Module):
    """A recurrent encoder of normalised embeddings, which a high rate destroys."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.lstm, self.linear = nn.LSTM(6, 12, 2, batch_first=True), nn.Linear(12, 8)

    def forward(self, x):
        _, (hidden, _) = self.lstm(x)
        outputs = torch.relu(self.linear(hidden[-1]))
        return outputs / outputs.norm(dim=1, keepdim=True).clamp_min(1e-6)


def task_and_models():
    torch.manual_seed(0)
    sets = [TensorDataset(torch.randn(count, 7, 6)) for count in (256, 64, 64)]
    task = Task(
        name="encoder",
        build_model=lambda: Encoder(0),
        example_inputs=(torch.zeros(1, 7, 6),),
        train_set=sets[0],
        val_set=sets[1],
        test_set=sets[2],
    )
    dense, repaired = Encoder(0).eval(), Encoder(0).eval()
    with torch.no_grad():
        for p in repaired.parameters():
            p += 0.05 * torch.randn_like(p)
    return task, dense, repaired


def choice_of(task, dense, repaired, seed=0):
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    return find_recipe(repaired, task, teacher=dense, held_out=held_out, seed=seed, relative_cost=0.5)


def test_the_chosen_recipe_improves_and_is_the_best_of_the_last_round():
    task, dense, repaired = task_and_models()
    before = {name: value.clone() for name, value in repaired.state_dict().items()}
    choice = choice_of(task, dense, repaired)
    last = [test for test in choice.tests if test.samples == choice.tests[-1].samples]
    assert choice.improves
    assert choice.tests[-1].recipe == choice.recipe
    assert choice.tests[-1].held_out_loss == min(test.held_out_loss for test in last) < choice.repaired_loss
    assert {test.recipe.optimizer for test in choice.tests} == {"sgd", "adamw"}
    assert all(torch.equal(value, before[name]) for name, value in repaired.state_dict().items())


def test_the_choice_is_the_same_again_and_counted():
    task, dense, repaired = task_and_models()
    first, again = (choice_of(task, dense, repaired) for _ in range(2))
    assert first == again
    trained = sum(test.samples for test in first.tests)
    asked = sum({test.samples for test in first.tests})
    scored = 64 * (len(first.tests) + 1)
    assert abs(first.sample_passes - (0.5 * trained + asked / 3 + 0.5 * scored / 3)) < 1e-6
    assert expected_passes(task, 0.5) == pytest.approx(first.sample_passes)
    assert expected_passes(dataclasses.replace(task, finetune_recipe=first.recipe), 0.5) == 0


def test_a_candidate_that_diverges_loses_and_is_written_as_null():
    task, dense, repaired = task_and_models()
    (images,) = task.train_set.tensors
    images[::2] = torch.nan
    choice = choice_of(task, dense, repaired)
    assert not choice.improves
    value = json.loads(json.dumps(choice.to_json(), allow_nan=False))
    assert {test["held_out_loss"] for test in value["tests"]} == {None}


def test_every_candidate_is_trained_with_the_terms():
    class Steps(Term):
        begun, steps = 0, 0

        def begin(self, model, task):
            self.begun += 1

        def after_step(self, step):
            self.steps += 1
            return False

    task, dense, repaired = task_and_models()
    held_out, told = HeldOut.of(task, predict_outputs(dense, task, task.val_set)), Steps()
    choice = find_recipe(repaired, task, teacher=dense, held_out=held_out, seed=0, terms=[told])
    assert told.begun == len(choice.tests)
    assert told.steps == sum(test.samples // 32 for test in choice.tests)
