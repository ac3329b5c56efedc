"""The one training loop: the dense model from scratch, and brief and full fine-tuning of pruned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import TrialError, UsageError
from autoprune.model.randomness import seeded
from autoprune.task.base import Recipe, Task
from autoprune.training.batch_schedule import Lesson, repeated, shuffled, times_shown
from autoprune.training.distillation import distillation_loss
from autoprune.training.optimization import autocast, learning_rate, make_optimizer
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.teacher import TeacherMemory

OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """Mean training loss of the last tenth of the steps, and how many examples were trained on."""

    train_loss: float
    samples: int


def finetune(
    model: nn.Module,
    task: Task,
    *,
    samples: int,
    seed: int,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    passes: SamplePasses | None = None,
    relative_cost: float = 1.0,
    memory: TeacherMemory | None = None,
    on_progress: OnProgress | None = None,
) -> FinetuneResult:
    """Train `model` in place on `samples` examples of the training data and leave it in evaluation mode.

    The schedule runs over exactly `samples` examples; the recipe (default: the task's `finetune_recipe`) gives all but
    their number. With a teacher, its outputs on the same batch are part of the loss; without a loss in the task they
    are all of it. Then the last epoch is not augmented; and where asking the teacher costs more than training the model
    (`relative_cost`: MACs relative to the teacher's), batches are shown several times and asked about once, and
    `samples` are rounded up to whole repetitions. A `memory` spares the teacher what an earlier fine-tuning on the same
    batches asked it instead; `passes` then count the teacher only where there is no room to remember what it said, or
    where the data differ: those who share it count the rest. The result depends on the model, the seed, the cost
    and the number of threads alone.
    `on_progress(samples_done, samples, loss)` follows every step. Raises `TrialError` for a loss that is not finite.
    """
    if samples < 1:
        raise UsageError(f"fine-tuning takes at least 1 sample; got {samples}")
    if not task.trains and teacher is None:
        raise UsageError(
            f"task {task.name!r} has no loss, so only a teacher can say what is right; pass the dense model"
        )
    recipe = recipe or task.finetune_recipe
    objective = _Objective(task=task, recipe=recipe, teacher=teacher, memory=memory, fits=(seed, samples))
    optimizer = make_optimizer(model, recipe)
    losses: list[float] = []
    done = 0
    times = objective.times(relative_cost)
    drawn = math.ceil(samples / times)
    samples = drawn * times
    try:
        with _training(model, teacher, task, recipe, seed):
            for lesson in objective.lessons(drawn, seed, times):
                size = len(lesson.batch[0])
                rate = learning_rate(recipe, (done + size / 2) / samples)
                losses.append(_step(model, optimizer, objective, lesson, rate))
                done += size
                if not math.isfinite(losses[-1]):
                    steps = math.ceil(samples / recipe.batch_size)
                    raise TrialError(
                        f"the training loss must stay finite; it is {losses[-1]} in step {len(losses)} of {steps}"
                    )
                if on_progress is not None:
                    on_progress(done, samples, losses[-1])
    finally:
        if passes is not None:
            passes.training(done, relative_cost)
            passes.forward(objective.asked)
    tail = losses[-max(1, len(losses) // 10) :]
    return FinetuneResult(train_loss=sum(tail) / len(tail), samples=done)


@dataclass(kw_only=True)
class _Objective:
    """What a step minimises: the task's loss, the distance to the teacher, or both by the recipe's weight.

    `asked` counts the examples that the teacher was asked about for this fine-tuning alone.
    """

    task: Task
    recipe: Recipe
    teacher: nn.Module | None
    memory: TeacherMemory | None
    fits: tuple[int, int]
    asked: int = 0

    @property
    def distils(self) -> bool:
        return self.teacher is not None and (self.recipe.distill_weight > 0 or not self.task.trains)

    def times(self, relative_cost: float) -> int:
        """How often a batch is shown: once where no teacher is asked, others share it, or the task has its own step."""
        alone = self.distils and self.memory is None and self.task.train_step is None
        return times_shown(relative_cost) if alone else 1

    def lessons(self, drawn: int, seed: int, times: int) -> Iterator[Lesson]:
        """What the model is shown: `drawn` examples of the training data, each of them `times` times."""
        batches = shuffled(self.task, self.recipe.batch_size, drawn, seed, plain_epochs=1 if self.distils else 0)
        lessons = (Lesson(batch, self._taught(step, batch)) for step, batch in enumerate(batches))
        return repeated(lessons, times, seed)

    def __call__(self, outputs: Tensor, taught: Tensor | None, targets: Tensor | None) -> Tensor:
        """Scalar loss of a step in float32."""
        if taught is None:
            return self._task_loss(outputs, targets)
        weight = self.recipe.distill_weight if self.task.trains else 1.0
        distance = weight * self._distance(outputs, taught)
        return distance if weight == 1 else distance + (1 - weight) * self._task_loss(outputs, targets)

    def of_own_step(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The same with the task's own training step: every call of the model in it is compared with the teacher's."""
        assert self.task.train_step is not None
        calls: list[tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]] = []
        hook = model.register_forward_hook(
            lambda _, inputs, named, outputs: calls.append((outputs, inputs, named)), with_kwargs=True
        )
        try:
            with autocast(self.recipe.precision):
                loss = self.task.train_step(model, batch)
        finally:
            hook.remove()
        if not self.distils or not calls:
            return loss
        self.asked += len(calls) * len(batch[0])
        distances = [self._distance(outputs, self._asked(inputs, named)) for outputs, inputs, named in calls]
        distance = torch.stack(distances).mean()
        return self.recipe.distill_weight * distance + (1 - self.recipe.distill_weight) * loss

    def _distance(self, outputs: Tensor, dense_outputs: Tensor) -> Tensor:
        temperature, classifies = self.recipe.temperature, self.task.classifies
        return distillation_loss(outputs, dense_outputs, classifies=classifies, temperature=temperature)

    def _taught(self, step: int, batch: tuple[Tensor, ...]) -> Tensor | None:
        """The teacher's outputs on a batch, asked once for all who share its memory."""
        if not self.distils or self.task.train_step is not None:
            return None
        inputs, _ = self.task.split(batch)
        known = self.memory.recall((*self.fits, self.recipe), step, inputs) if self.memory is not None else None
        if known is not None:
            return known
        outputs = self._asked(inputs, {})
        if self.memory is None or not self.memory.keep(step, inputs, outputs):
            self.asked += len(batch[0])
        return outputs

    def _asked(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.recipe.precision):
            return self.teacher(*inputs, **named)

    def _task_loss(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        assert self.task.loss is not None
        assert targets is not None
        if self.task.loss is F.cross_entropy:
            return F.cross_entropy(outputs.float(), targets, label_smoothing=self.recipe.label_smoothing)
        return self.task.loss(outputs.float(), targets)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: _Objective,
    lesson: Lesson,
    rate: float,
) -> float:
    recipe = objective.recipe
    if objective.task.train_step is not None:
        loss = objective.of_own_step(model, lesson.batch)
    else:
        inputs, targets = objective.task.split(lesson.batch)
        with autocast(recipe.precision):
            outputs = model(*inputs)
        loss = objective(outputs, lesson.taught, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if recipe.clip_norm > 0:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item()


@contextmanager
def _training(model: nn.Module, teacher: nn.Module | None, task: Task, recipe: Recipe, seed: int) -> Iterator[None]:
    """Training mode, with seeded dropout and a memory layout that the model can run; undone at the end."""
    with seeded(seed):
        models = [model] if teacher is None else [model, teacher.eval()]
        for each in models:
            if recipe.channels_last:
                _to_channels_last(each, task)
        model.train()
        try:
            yield
        finally:
            model.eval()
            for each in models:
                each.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _to_channels_last(model: nn.Module, task: Task) -> None:
    """Store filters channels last where the model then still runs.

    One that calls `view` on a map does not, and filters of three dimensions cannot be stored so.
    """
    model.eval()
    try:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            model(*task.example_inputs)
    except RuntimeError:
        model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
