from collections import Counter

import pytest
import torch
from torch.utils.data import TensorDataset

from autoprune import memory_limits
from autoprune.task.recipe import Recipe
from autoprune.training import batch_schedule
from autoprune.training.batch_schedule import TrainingBatch, repeated, repeats_per_batch, shuffled
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from tests.task.toys import toy_model, toy_task

NUMBERS = TensorDataset(torch.arange(96.0)[:, None], torch.arange(96) % 4)


def numbered(count):
    return [TrainingBatch((torch.tensor([float(number)]),)) for number in range(count)]


def order(shown):
    return [int(batch.tensors[0]) for batch in shown]


@pytest.mark.parametrize(
    ("relative_cost", "repeats"), [(2.0, 1), (1.0, 1), (0.45, 1), (0.19, 2), (0.11, 3), (0.05, 4), (0.0, 4)]
)
def test_smaller_models_repeat_a_batch_more_often(relative_cost, repeats):
    assert repeats_per_batch(relative_cost) == repeats


@pytest.mark.parametrize(("samples", "augmented"), [(96 * 3, 96 * 2), (100, 4), (96, 0), (10, 0)])
def test_the_last_epoch_is_plain(samples, augmented):
    task = toy_task(train_set=NUMBERS, augment=lambda x, generator: x + 1000, example_inputs=(torch.zeros(1, 1),))
    shown = [batch[0] for batch in shuffled(task, 4, samples, seed=0, plain_epochs=1)]
    values = torch.cat(shown).flatten()
    assert len(values) == samples
    assert (values[:augmented] >= 1000).all()
    assert (values[augmented:] < 1000).all()


def test_without_plain_epochs_everything_is_augmented():
    task = toy_task(train_set=NUMBERS, augment=lambda x, generator: x + 1000, example_inputs=(torch.zeros(1, 1),))
    assert all((batch[0] >= 1000).all() for batch in shuffled(task, 4, 50, seed=0))


def test_all_batches_are_repeated_in_windows_and_new_orders(monkeypatch):
    monkeypatch.setattr(batch_schedule, "_WINDOW", 8)
    numbers = order(repeated(numbered(20), 3, seed=0))
    assert Counter(numbers) == dict.fromkeys(range(20), 3)
    assert numbers[:8] == list(range(8))
    assert sorted(numbers[8:16]) == sorted(numbers[16:24]) == list(range(8))
    assert numbers[8:16] != numbers[16:24]
    assert numbers[24:32] == list(range(8, 16))
    assert sorted(numbers[48:52]) == [16, 17, 18, 19]


def test_a_window_holds_no_more_than_memory_allows(monkeypatch):
    monkeypatch.setattr(memory_limits, "REPEATED_BATCHES_BYTES", 8)  # two numbers in float32
    numbers = order(repeated(numbered(7), 2, seed=0))
    assert numbers[:3] == [0, 1, 2]
    assert sorted(numbers[3:6]) == [0, 1, 2]
    assert numbers[6:9] == [3, 4, 5]


def test_batches_that_are_not_repeated_keep_their_order():
    assert order(repeated(numbered(5), 1, seed=0)) == list(range(5))


def test_the_teacher_of_a_small_model_runs_once_for_a_repeated_batch():
    asked = []

    class Teacher(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = toy_model()

        def forward(self, x):
            asked.append(len(x))
            return self.model(x)

    passes = SamplePasses()
    recipe = Recipe(batch_size=16, precision="fp32", channels_last=False)
    result = finetune(
        toy_model(), toy_task(), samples=100, seed=0, recipe=recipe, teacher=Teacher(), passes=passes, relative_cost=0.1
    )
    assert result.samples == 102  # 34 examples, three times each
    assert sum(asked) == 34
    assert passes.total == pytest.approx(102 * 0.1 + 34 / 3)


@pytest.mark.parametrize(("weight", "taught", "augmented"), [(0.9, True, 0), (0.0, True, 96), (0.9, False, 96)])
def test_one_epoch_is_plain_only_when_a_teacher_helps(weight, taught, augmented):
    seen = []

    def augment(x, generator):
        seen.append(len(x))
        return x

    recipe = Recipe(batch_size=16, precision="fp32", channels_last=False, distill_weight=weight)
    teacher = toy_model() if taught else None
    finetune(toy_model(), toy_task(augment=augment), samples=96, seed=0, recipe=recipe, teacher=teacher)
    assert sum(seen) == augmented


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [
        (97, 32, [32, 32, 31, 2]),
        (98, 32, [32, 32, 32, 2]),
        (96, 32, [32, 32, 32]),
        (33, 32, [31, 2]),
        (4, 3, [2, 2]),
        (5, 2, [2, 3]),
        (3, 2, [3]),
        (1, 2, [1]),
        (1, 32, [1]),
        (2, 1, [1, 1]),
    ],
)
def test_no_batch_is_of_one_where_it_need_not_be(samples, batch_size, sizes):
    task = toy_task(train_set=NUMBERS, example_inputs=(torch.zeros(1, 1),))
    shown = [batch[0] for batch in shuffled(task, batch_size, samples, seed=0)]
    assert [len(each) for each in shown] == sizes
    if samples <= 96:
        assert len(set(torch.cat(shown).flatten().tolist())) == samples
