import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from autoprune.errors import TrialError, UsageError
from autoprune.task.augment import flip
from autoprune.task.recipe import Recipe
from autoprune.training.distillation import divergence
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.scoring import evaluate, predict_outputs
from tests.task.toys import toy_data, toy_model, toy_task, unlabelled_task

RECIPE = Recipe(batch_size=16, lr=0.1, precision="fp32")
TASK = toy_task(finetune_recipe=RECIPE)


def fresh(seed=0):
    torch.manual_seed(seed)
    return toy_model()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns():
    model = fresh()
    before = evaluate(model, TASK, TASK.test_set).score
    result = finetune(model, TASK, samples=600, seed=0)
    assert before < 0.6
    assert evaluate(model, TASK, TASK.test_set).score > 0.95
    assert result.train_loss < 0.5
    assert not model.training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_the_seed_decides_everything(optimizer, schedule):
    recipe = Recipe(batch_size=16, lr=0.01, optimizer=optimizer, schedule=schedule, precision="fp32")
    task = toy_task(augment=flip, build_model=lambda: nn.Sequential(toy_model(), nn.Dropout(0.2)))
    start = nn.Sequential(fresh(), nn.Dropout(0.2))
    trained = []
    for seed in (1, 1, 2):
        model = copy.deepcopy(start)
        torch.manual_seed(len(trained))  # the surrounding random state must not matter
        finetune(model, task, samples=80, seed=seed, recipe=recipe)
        trained.append(weights(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_the_random_state_is_left_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    finetune(toy_model(), TASK, samples=1, seed=0)
    torch.manual_seed(3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 96, 200])
def test_exactly_the_samples_are_used(samples):
    seen: list[tuple[int, int]] = []
    passes = SamplePasses()
    result = finetune(
        fresh(),
        TASK,
        samples=samples,
        seed=0,
        passes=passes,
        relative_cost=0.5,
        on_progress=lambda done, total, loss: seen.append((done, total)),
    )
    assert result.samples == samples
    assert passes.total == pytest.approx(samples * 0.5)
    assert seen[-1] == (samples, samples)
    assert len(seen) == math.ceil(samples / 16)


def test_every_epoch_uses_every_example_once():
    counted = torch.zeros(96)

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 4)

        def forward(self, x):
            if self.training:
                counted.index_add_(0, x.flatten().long(), torch.ones(len(x)))
            return self.fc(x)

    numbers = TensorDataset(torch.arange(96.0)[:, None], torch.arange(96) % 4)
    task = toy_task(train_set=numbers, example_inputs=(torch.zeros(1, 1),))
    finetune(Spy(), task, samples=96 * 2, seed=0, recipe=RECIPE)
    assert counted.tolist() == [2.0] * 96


def test_the_teacher_pulls_and_its_passes_count():
    teacher, passes = fresh(1), SamplePasses()
    recipe = Recipe(batch_size=16, lr=0.05, distill_weight=1.0, temperature=1.0, precision="fp32")
    finetune(teacher, TASK, samples=400, seed=0)
    told = predict_outputs(teacher, TASK, TASK.val_set)
    before = copy.deepcopy(teacher.state_dict())
    model = fresh(2)
    finetune(model, TASK, samples=400, seed=0, recipe=recipe, teacher=teacher, passes=passes, relative_cost=0.5)
    assert divergence(predict_outputs(model, TASK, TASK.val_set), told, classifies=True) < 0.1
    assert passes.total == pytest.approx(400 * 0.5 + 400 / 3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_of_weight_zero_is_not_asked():
    passes = SamplePasses()
    recipe = Recipe(batch_size=16, distill_weight=0.0)
    finetune(fresh(), TASK, samples=16, seed=0, recipe=recipe, teacher=fresh(1), passes=passes)
    assert passes.total == 16


def test_without_a_loss_the_model_learns_the_dense_outputs():
    task, dense, model = unlabelled_task(finetune_recipe=RECIPE), fresh(1), fresh(2)
    told = predict_outputs(dense, task, task.val_set)
    before = evaluate(model, task, task.val_set, dense_outputs=told)
    finetune(model, task, samples=600, seed=0, teacher=dense)
    after = evaluate(model, task, task.val_set, dense_outputs=told)
    assert after.score > max(before.score, 0.8)


def test_without_loss_and_teacher_nobody_knows_what_is_right():
    with pytest.raises(UsageError, match="only a teacher can say"):
        finetune(fresh(), unlabelled_task(), samples=16, seed=0)


def test_no_samples_are_refused():
    with pytest.raises(UsageError, match="at least 1 sample; got 0"):
        finetune(fresh(), TASK, samples=0, seed=0)


def test_label_smoothing_keeps_predictions_soft():
    recipes = [Recipe(batch_size=16, lr=0.1, label_smoothing=s, precision="fp32") for s in (0.0, 0.4)]
    confidence = []
    for recipe in recipes:
        model = fresh()
        finetune(model, TASK, samples=600, seed=0, recipe=recipe)
        outputs = predict_outputs(model, TASK, TASK.val_set)
        confidence.append(F.softmax(outputs, dim=1).max(dim=1).values.mean().item())
    assert confidence[1] < confidence[0] - 0.1


def test_clipping_bounds_a_step():
    # One step of plain SGD moves the weights by rate x gradient, so by the clipped norm at most.
    recipe = Recipe(batch_size=16, lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3, precision="fp32")
    model = fresh()
    before = weights(model)
    finetune(model, TASK, samples=16, seed=0, recipe=recipe)
    assert 0 < (weights(model) - before).norm() <= 1e-3 * 1.01


def test_a_loss_that_is_not_finite_ends_it_with_step_and_value():
    images, targets = toy_data(96, 0).tensors
    images[:, 0, 0, 0] = torch.nan
    task = toy_task(train_set=TensorDataset(images, targets), finetune_recipe=RECIPE)
    model = fresh()
    with pytest.raises(TrialError, match=r"it is nan in step 1 of 3"):
        finetune(model, task, samples=48, seed=0)
    assert not model.training


def test_weights_stay_contiguous():
    model = fresh()
    finetune(model, TASK, samples=16, seed=0, teacher=fresh(1))
    assert all(p.is_contiguous() for p in model.parameters())


def test_bf16_learns_as_well():
    model = fresh()
    finetune(model, TASK, samples=600, seed=0, recipe=Recipe(batch_size=16, lr=0.1, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert evaluate(model, TASK, TASK.test_set).score > 0.9


def test_a_loss_of_the_users_own():
    task = toy_task(
        loss=lambda outputs, targets: F.mse_loss(outputs, F.one_hot(targets, 4).float()), finetune_recipe=RECIPE
    )
    model = fresh()
    finetune(model, task, samples=600, seed=0)
    assert evaluate(model, task, task.test_set).score > 0.9


def test_one_example_over_does_not_ruin_batch_norms():
    vectors = TensorDataset(torch.randn(33, 8), torch.arange(33) % 4)
    task = toy_task(train_set=vectors, example_inputs=(torch.zeros(1, 8),), finetune_recipe=RECIPE)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    assert finetune(model, task, samples=33, seed=0).samples == 33
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_filters_of_three_dimensions_run_contiguous():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), nn.Flatten(1, 2), nn.Conv2d(2, 4, 4), nn.Flatten()
    )
    before = weights(model)
    finetune(model, TASK, samples=16, seed=0, teacher=copy.deepcopy(model))
    assert not torch.equal(weights(model), before)
    assert all(p.is_contiguous() for p in model.parameters())


def test_what_a_fine_tuning_cost_counts_even_when_it_fails():
    passes = SamplePasses()
    recipe = Recipe(batch_size=16, lr=1e30, clip_norm=0.0, precision="fp32")
    with pytest.raises(TrialError, match="in step 2 of 6"):
        finetune(fresh(), TASK, samples=96, seed=0, recipe=recipe, teacher=fresh(1), passes=passes, relative_cost=0.5)
    assert passes.total == pytest.approx(32 * 0.5 + 32 / 3)


def test_a_training_step_counts_every_question_to_the_teacher():
    task = toy_task(train_step=lambda model, batch: (model(batch[0]) - model(batch[0] + 1)).square().mean())
    passes = SamplePasses()
    finetune(fresh(), task, samples=32, seed=0, recipe=RECIPE, teacher=fresh(1), passes=passes)
    assert passes.total == pytest.approx(32 + 2 * 32 / 3)
