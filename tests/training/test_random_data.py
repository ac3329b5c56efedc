"""Data sets that augment by themselves: the seed decides the result, and every picture has its own teacher outputs."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from autoprune.task.base import Task
from autoprune.task.recipe import Recipe
from autoprune.training.batch_schedule import TrainingBatch, shuffled
from autoprune.training.finetune import finetune
from autoprune.training.objective import LossTerm, Objective
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.teacher import TeacherMemory
from tests.task.toys import toy_data, toy_model, toy_task

RECIPE = Recipe(batch_size=16, lr=0.05, precision="fp32", channels_last=False)
DATA = toy_data(96, 0)
OWN = random.Random(0)
"""A random state that nobody else can seed."""

GLOBAL: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "random": random.random,
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
}


class Flipped(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, target = DATA[row]
        return image.flip(2) if self.draw() < 0.5 else image, target


def flipping_loader(draw: Callable[[], float]) -> DataLoader[tuple[Tensor, Tensor]]:
    def collate(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        images, targets = default_collate(items)
        return [images.flip(3) if draw() < 0.5 else images, targets]

    return DataLoader(DATA, batch_size=8, collate_fn=collate)  # pyright: ignore[reportArgumentType]


def task_with(data: object) -> Task:
    return toy_task(train_set=data, finetune_recipe=RECIPE)


def model_of(width: int) -> nn.Module:
    """A student that draws: the wider, the more."""
    torch.manual_seed(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Dropout(0.2), nn.Linear(width, 4))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Inputs of every step, and the teacher outputs that it is trained with."""
    steps: list[tuple[Tensor, Tensor]] = []
    terms = Objective.terms

    def spied(self: Objective, model: nn.Module, batch: TrainingBatch, share: float) -> list[LossTerm]:
        assert batch.teacher_outputs is not None
        steps.append((batch.tensors[0], batch.teacher_outputs))
        return terms(self, model, batch, share)

    monkeypatch.setattr(Objective, "terms", spied)
    return steps


def require_right(shown: list[tuple[Tensor, Tensor]], teacher: nn.Module) -> None:
    assert shown
    for inputs, teacher_outputs in shown:
        assert torch.allclose(teacher(inputs), teacher_outputs, atol=1e-6)


@pytest.mark.parametrize("source", GLOBAL)
@pytest.mark.parametrize("make", [Flipped, flipping_loader])
def test_the_seed_decides_what_data_draw(source: str, make: Callable[..., object]) -> None:
    task, trained = task_with(make(GLOBAL[source])), []
    for seed in (1, 1, 2):
        GLOBAL[source]()  # the surrounding random state must not matter
        model = model_of(8)
        finetune(model, task, samples=96, seed=seed)
        trained.append(weights(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_the_seed_decides_what_an_augmentation_draws_from_global_states() -> None:
    task = toy_task(augment=lambda images, generator: images * random.random())
    first, again = ([batch[0] for batch in shuffled(task, 16, 40, seed=3)] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert len({float(images.max()) for images in first}) == 3


@pytest.mark.parametrize("source", GLOBAL)
def test_models_that_draw_differently_share_the_teacher(source: str, shown: list[tuple[Tensor, Tensor]]) -> None:
    teacher, memory, asked = toy_model().eval(), TeacherMemory(), []
    teacher.register_forward_hook(lambda *_: asked.append(None))
    for width in (8, 16):
        finetune(
            model_of(width), task_with(Flipped(GLOBAL[source])), samples=96, seed=0, teacher=teacher, memory=memory
        )
    assert len(asked) == 6
    require_right(shown, teacher)


def test_the_teacher_is_asked_again_about_other_pictures(shown: list[tuple[Tensor, Tensor]]) -> None:
    teacher, memory, task = toy_model().eval(), TeacherMemory(), task_with(Flipped(OWN.random))
    counts = []
    for _ in range(2):
        passes = SamplePasses()
        finetune(model_of(8), task, samples=96, seed=0, teacher=teacher, memory=memory, passes=passes)
        counts.append(passes.total)
    require_right(shown, teacher)
    assert counts == [pytest.approx(96), pytest.approx(96 + 96 / 3)]
