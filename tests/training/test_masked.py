"""Masks that hold in every kind of training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.errors import UsageError
from autoprune.pruning import prune
from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.held_out import HeldOut
from autoprune.training.masked import MaskedWeights
from autoprune.training.scoring import predict_outputs
from tests.task.toys import toy_model, toy_task
from tests.training.test_own_trainer import elsewhere, loop, wrapped

RECIPE = Recipe(batch_size=16, lr=0.1, precision="fp32")


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return toy_model()


def half_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return {name: p.abs() > p.abs().median() for name, p in weights.items()}


@pytest.mark.parametrize("trainer", [None, loop, elsewhere, wrapped])
@pytest.mark.parametrize("native", [True, False])
def test_masked_weights_stay_zero_and_the_others_train(trainer, native):
    task = toy_task(finetune=trainer, finetune_recipe=RECIPE)
    model = prune(fresh(), task.example_inputs, keep=1.0, native=native)
    masks, before = half_masks(model), copy.deepcopy(model.state_dict())
    finetune(model, task, samples=96, seed=0, terms=[MaskedWeights(masks)])
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert not torch.equal(weight[mask], before[name][mask])


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"accumulate": 2}, {"lr": 50.0, "clip_norm": 0.0}])
def test_masks_hold_with_averages_accumulation_and_a_return_to_an_earlier_state(changes):
    task, dense = toy_task(), fresh()
    model = copy.deepcopy(dense)
    masks = half_masks(model)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    recipe = Recipe(**{"batch_size": 16, "lr": 0.1, "precision": "fp32"} | changes)
    finetune(
        model, task, samples=200, seed=0, recipe=recipe, teacher=dense, held_out=held_out, terms=[MaskedWeights(masks)]
    )
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())


def test_a_trainer_is_told_of_once_a_step_and_of_its_share():
    from autoprune.training.terms import Step, Term

    class Log(Term):
        def __init__(self) -> None:
            self.steps: list[Step] = []

        def after_step(self, step: Step) -> bool:
            self.steps.append(step)
            return False

    logs = []
    for trainer in (None, loop):
        logs.append(Log())
        finetune(fresh(), toy_task(finetune=trainer, finetune_recipe=None), samples=96, seed=0, terms=[logs[-1]])
        other = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        F.mse_loss(other(torch.ones(1, 1)), torch.ones(1, 1)).backward()
        optimizer.step()  # after the training, and of another model
    assert [len(log.steps) for log in logs] == [3, 6]
    assert all(log.steps[-1].share == 1.0 and log.steps[0].number == 1 for log in logs)
    assert logs[1].steps[0].rate == 0.1


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_training_goes_on_from_the_masked_state_and_zeros_do_not_count_in_the_norm(clip_norm):
    task, dense = toy_task(), fresh()
    finetune(dense, task, samples=320, seed=0, recipe=RECIPE)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    recipe = Recipe(batch_size=16, lr=0.1, precision="fp32", clip_norm=clip_norm)
    masks = {name: p.abs() > p.abs().quantile(0.8) for name, p in dense.named_parameters() if p.dim() > 1}
    masked, trained = copy.deepcopy(dense), copy.deepcopy(dense)
    MaskedWeights(masks).begin(masked, task)
    options = {"recipe": recipe, "teacher": dense, "held_out": held_out, "terms": [MaskedWeights(masks)]}
    result = finetune(trained, task, samples=320, seed=0, **options)
    assert not result.undone
    assert held_out.loss(trained, recipe) < 0.5 * held_out.loss(masked, recipe)


def test_masks_that_do_not_fit_are_one_message():
    for masks, message in (({"7.weight": torch.ones(1)}, "it has no 7.weight"), ({"0.bias": None}, "it has no 0.bias")):
        with pytest.raises(UsageError, match=message):
            finetune(fresh(), toy_task(), samples=1, seed=0, terms=[MaskedWeights(masks)])
    with pytest.raises(UsageError, match=r"that of '0.weight' is \(3,\), the weight is \(8, 1, 3, 3\)"):
        finetune(fresh(), toy_task(), samples=1, seed=0, terms=[MaskedWeights({"0.weight": torch.ones(3)})])
