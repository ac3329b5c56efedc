"""A remembered teacher teaches the same as one that is asked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from autoprune import memory_limits
from autoprune.training.dense import build_dense
from autoprune.training.finetune import finetune
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.teacher import TeacherMemory
from tests.pipeline import tiny


class Counting(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.model(x)


@pytest.fixture
def teacher() -> Counting:
    return Counting(build_dense(tiny.make_task()))


def tuned(teacher: Counting, memory: TeacherMemory | None, *, seed: int = 3, samples: int = 40) -> torch.Tensor:
    model = build_dense(tiny.make_task(), seed=1)
    finetune(model, tiny.make_task(), samples=samples, seed=seed, teacher=teacher, memory=memory)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_second_fine_tuning_asks_nothing_and_ends_the_same(teacher: Counting) -> None:
    memory = TeacherMemory()
    wanted = tuned(teacher, None)
    first, asked = tuned(teacher, memory), teacher.calls
    assert torch.equal(first, wanted)
    assert torch.equal(tuned(teacher, memory), wanted)
    assert teacher.calls <= asked + 1  # the trial pass that tells whether the model runs channels last


def test_other_batches_are_asked_anew(teacher: Counting) -> None:
    memory = TeacherMemory()
    tuned(teacher, memory)
    for other in ({"seed": 4}, {"samples": 30}):
        assert torch.equal(tuned(teacher, memory, **other), tuned(copy.deepcopy(teacher), None, **other))


def test_outputs_that_take_too_much_memory_are_asked_again(teacher: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limits, "TEACHER_BYTES", 600)
    memory = TeacherMemory()
    wanted = tuned(teacher, None)
    assert torch.equal(tuned(teacher, memory), wanted)
    assert torch.equal(tuned(teacher, memory), wanted)


def test_a_shared_teacher_is_charged_by_those_who_share_it(teacher: Counting) -> None:
    counts = []
    for memory in (None, TeacherMemory()):
        passes = SamplePasses()
        finetune(
            build_dense(tiny.make_task()),
            tiny.make_task(),
            samples=30,
            seed=0,
            teacher=teacher,
            passes=passes,
            memory=memory,
        )
        counts.append(passes.total)
    assert counts == [pytest.approx(40), pytest.approx(30)]


def test_what_does_not_fit_is_charged_by_those_who_ask(teacher: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny.make_task()
    size = task.tuning_recipe.batch_size
    monkeypatch.setattr(memory_limits, "TEACHER_BYTES", teacher(task.example_inputs[0]).nbytes * size)  # one batch
    memory, counts = TeacherMemory(), []
    for _ in range(2):
        passes = SamplePasses()
        finetune(build_dense(task), task, samples=3 * size, seed=0, teacher=teacher, passes=passes, memory=memory)
        counts.append(passes.total)
    assert counts == [pytest.approx(3 * size + 2 * size / 3)] * 2


@pytest.mark.parametrize("other", [lambda x: x.flip(0), lambda x: x.reshape(3, 2), lambda x: x.to(torch.float64)])
def test_outputs_are_recalled_for_the_same_inputs_alone(other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    memory, inputs = TeacherMemory(), torch.arange(6.0).reshape(2, 3)
    assert memory.recall("x", 0, [inputs]) is None
    assert memory.keep(0, [inputs], torch.ones(2))
    assert memory.recall("x", 0, [inputs.clone()]) is not None
    assert memory.recall("x", 0, [inputs.T.contiguous().T]) is not None  # the layout does not matter
    assert memory.recall("x", 0, [other(inputs)]) is None
    assert memory.recall("y", 0, [inputs]) is None
