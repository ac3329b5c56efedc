"""Fine-tuning by a trainer of the user's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from autoprune.errors import TaskError, TrialError
from autoprune.pruning import prune
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate
from tests.task.toys import toy_task


def loop(model, samples, seed):
    """A loop in place, as anybody writes it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < samples:
        for x, y in DataLoader(toy_task().train_set, 16, shuffle=True, generator=generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            done += len(x)


def elsewhere(model, samples, seed):
    """A trainer that works on a copy inside a wrapper."""
    twin = nn.DataParallel(copy.deepcopy(model))
    loop(twin.module, samples, seed)
    return twin


def wrapped(model, samples, seed):
    """A trainer that returns the module around the model."""
    loop(model, samples, seed)
    return nn.ModuleDict({"net": model})


@pytest.mark.parametrize("trainer", [loop, elsewhere, wrapped])
def test_it_trains_pruned_models_and_its_budget_counts(trainer):
    task = toy_task(loss=None, finetune=trainer, metric=lambda model, data: 0.0)
    labelled = toy_task()
    torch.manual_seed(0)
    small = prune(task.build_model(), task.example_inputs, multiple_of=1)
    dense = task.build_model()
    before, passes = torch.get_rng_state(), SamplePasses()
    result = finetune(small, task, samples=960, seed=3, teacher=dense, passes=passes, relative_cost=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.samples == 960
    assert passes.total == 480
    assert not small.training
    assert all(parameter.grad is None for parameter in small.parameters())
    assert evaluate(small, labelled, labelled.val_set).score > 0.9


def test_the_dense_model_is_trained_by_its_recipe():
    def never(model, samples, seed):
        raise AssertionError

    task = toy_task(finetune=never, recipe=Recipe(batch_size=16, lr=0.1))
    assert finetune(task.build_model(), task, samples=16, seed=0, recipe=task.recipe).samples == 16


def spoil(model, samples, seed):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(
    ("trainer", "error", "message"),
    [
        (lambda model, samples, seed: 1 / 0, TaskError, "failed: ZeroDivisionError"),
        (lambda model, samples, seed: 0.9, TaskError, "must return the trained model, or None .* returned float"),
        (lambda model, samples, seed: nn.Linear(2, 2), TaskError, "with the weights of the one that it is given"),
        (spoil, TrialError, "must stay finite"),
    ],
)
def test_what_a_trainer_may_not_do(trainer, error, message):
    task = toy_task(finetune=trainer)
    with pytest.raises(error, match=message):
        finetune(task.build_model(), task, samples=16, seed=0)
