import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.task.recipe import Recipe
from autoprune.training.finetune import finetune
from autoprune.training.held_out import HeldOut
from autoprune.training.safeguard import Safeguard
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import predict_outputs
from autoprune.training.update import Updates
from tests.task.toys import toy_model, toy_task, unlabelled_task

GENTLE = Recipe(batch_size=16, lr=0.01, precision="fp32")
RUINOUS = dataclasses.replace(GENTLE, lr=50.0, clip_norm=0.0)


def fresh(seed):
    torch.manual_seed(seed)
    return toy_model()


def near(dense, *, noise=0.02):
    """A model like the dense one, as a repaired model is."""
    model = copy.deepcopy(dense)
    torch.manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p += noise * torch.randn_like(p)
    return model


def guarded(model, task, dense, recipe, *, samples=600, seed=0, **options):
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    before = held_out.loss(model, recipe)
    result = finetune(
        model, task, samples=samples, seed=seed, recipe=recipe, teacher=dense, held_out=held_out, **options
    )
    return result, before, held_out.loss(model, recipe)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("make", [toy_task, unlabelled_task])
def test_a_ruinous_rate_never_ends_worse_than_it_began(optimizer, make):
    task, dense = make(), fresh(1)
    model = near(dense)
    _, before, after = guarded(model, task, dense, dataclasses.replace(RUINOUS, optimizer=optimizer))
    assert after <= before
    assert not model.training


def test_a_model_that_nothing_improves_is_given_back_as_it_was():
    task, dense = unlabelled_task(), fresh(1)
    model = copy.deepcopy(dense)
    result, before, after = guarded(model, task, dense, RUINOUS)
    assert result.undone
    assert before == after
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_gentle_rate_is_kept_and_improves():
    task, dense = unlabelled_task(), fresh(1)
    result, before, after = guarded(near(dense, noise=0.1), task, dense, GENTLE)
    assert after < 0.7 * before
    assert (result.undone, result.rate_scale) == (False, 1.0)


def test_without_improvement_over_the_last_state_the_guard_changes_nothing():
    task, dense = unlabelled_task(), fresh(1)
    plain, watched = near(dense, noise=0.1), near(dense, noise=0.1)
    finetune(plain, task, samples=320, seed=0, recipe=GENTLE, teacher=dense)
    guarded(watched, task, dense, GENTLE, samples=320)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in watched.state_dict().items())


def test_a_loss_that_is_never_finite_gives_up_and_is_undone():
    images = torch.full((96, 1, 6, 6), torch.nan)
    task, dense = unlabelled_task(train_set=TensorDataset(images)), fresh(1)
    model, passes = near(dense), SamplePasses()
    result, before, after = guarded(model, task, dense, GENTLE, passes=passes)
    assert result.undone
    assert before == after
    assert result.samples == 160  # ten halvings
    assert passes.total > 160


def test_checks_cost_at_most_a_tenth_of_the_training_beside_those_at_its_ends():
    task, dense = unlabelled_task(), fresh(1)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    for samples in (96, 600, 5_000):
        model, passes = near(dense), SamplePasses()
        finetune(
            model, task, samples=samples, seed=0, recipe=GENTLE, teacher=dense, held_out=held_out,
            passes=passes, relative_cost=0.5,
        )  # fmt: skip
        ends = 2 * held_out.examples / 3 * 0.5
        teacher = samples / 3
        assert samples * 0.5 < passes.total - teacher - ends + 1e-6 <= 1.1 * samples * 0.5 + 1e-6 or samples == 96


def test_a_rise_halves_the_rate_and_goes_back_to_the_best_state():
    task, dense = unlabelled_task(), fresh(1)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    model = near(dense)
    kept = copy.deepcopy(model.state_dict())
    guard = Safeguard(model=model, held_out=held_out, recipe=GENTLE, samples=640)
    updates = Updates(model, torch.optim.SGD(model.parameters(), lr=0.1), GENTLE)
    for step in range(3):
        guard.after_step(16 * step, 0.1, updates)
    with torch.no_grad():
        next(model.parameters()).normal_(std=10)
    for step in range(3, 10):
        guard.after_step(16 * step, 1.0, updates)
    assert guard.rate_scale == 0.5
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("last_noise", "kept"), [(0.0202, "last"), (0.04, "best"), (0.3, "best")])
def test_an_earlier_state_is_taken_only_where_it_is_clearly_better(last_noise, kept):
    task, dense = unlabelled_task(), fresh(1)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    model = near(dense, noise=0.1)
    guard = Safeguard(model=model, held_out=held_out, recipe=GENTLE, samples=640)
    updates = Updates(model, torch.optim.SGD(model.parameters(), lr=0.1), GENTLE)
    states = {"best": near(dense, noise=0.02).state_dict(), "last": near(dense, noise=last_noise).state_dict()}
    model.load_state_dict(states["best"])
    guard.after_step(320, 0.1, updates)
    model.load_state_dict(states["last"])
    assert not guard.finish(640)
    assert all(torch.equal(value, states[kept][name]) for name, value in model.state_dict().items())


def test_batches_of_very_different_losses_are_no_rise():
    task, dense = unlabelled_task(), fresh(1)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    model = near(dense)
    guard = Safeguard(model=model, held_out=held_out, recipe=GENTLE, samples=10_000)
    updates = Updates(model, torch.optim.SGD(model.parameters(), lr=0.1), GENTLE)
    for step, loss in enumerate([0.01] * 20 + [1.0] * 40):
        guard.after_step(16 * step, loss, updates)
    assert guard.rate_scale == 1


def test_a_task_with_labels_is_judged_by_its_loss_too():
    task, dense = toy_task(), fresh(1)
    held_out = HeldOut.of(task, predict_outputs(dense, task, task.val_set))
    distance, both = (held_out.loss(dense, dataclasses.replace(GENTLE, distill_weight=w)) for w in (1.0, 0.5))
    assert distance == pytest.approx(0, abs=1e-6)
    assert both > 0.01


def test_an_own_step_is_judged_by_the_distance_or_not_at_all():
    task = toy_task(train_step=lambda model, batch: model(batch[0]).square().mean())
    held_out = HeldOut.of(task, predict_outputs(fresh(1), task, task.val_set))
    assert held_out.judges(GENTLE)
    assert not held_out.judges(dataclasses.replace(GENTLE, distill_weight=0.0))
    assert held_out.loss(fresh(1), GENTLE) == pytest.approx(0, abs=1e-6)


def test_a_loss_that_is_not_a_number_is_infinite():
    task, dense = unlabelled_task(), fresh(1)
    held_out, model = HeldOut.of(task, predict_outputs(dense, task, task.val_set)), nn.Sequential(fresh(2))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert held_out.loss(model.train(), GENTLE) == float("inf")
    assert model.training


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"ema": 0.9}])
def test_one_bad_batch_spoils_neither_later_gradients_nor_the_average(changes):
    task, dense = unlabelled_task(), fresh(1)
    images = task.train_set.tensors[0].repeat(8, 1, 1, 1)
    images[5] = torch.nan
    task, recipe = unlabelled_task(train_set=TensorDataset(images)), dataclasses.replace(GENTLE, **changes)
    result, before, after = guarded(near(dense, noise=0.1), task, dense, recipe, samples=384)
    assert result.rate_scale == 0.5
    assert not result.undone
    assert after < before
