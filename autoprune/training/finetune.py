"""The one training loop: the dense model from scratch, and brief and full fine-tuning of pruned models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.errors import UsageError
from autoprune.model.compute import computing_on
from autoprune.model.randomness import seeded
from autoprune.task.base import Task
from autoprune.task.recipe import Recipe
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.held_out import HeldOut
from autoprune.training.layer_outputs import LayerOutputs
from autoprune.training.memory_layout import to_channels_last
from autoprune.training.objective import Objective
from autoprune.training.optimization import learning_rate, make_optimizer
from autoprune.training.own_trainer import finetune_by_own_trainer
from autoprune.training.recipe_terms import terms_named
from autoprune.training.resumption import Progress, Resumption
from autoprune.training.safeguard import Safeguard, Unguarded
from autoprune.training.sample_passes import SamplePasses
from autoprune.training.teacher import TeacherMemory
from autoprune.training.terms import Term, Terms
from autoprune.training.update import Updates

OnProgress = Callable[[int, int, float], None]
"""Called as `on_progress(samples_done, samples, loss)` after every step."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """Mean training loss of the last tenth of the steps, and the number of examples that were trained on.

    `undone` says that no state was better on held-out data than the one before training, so that this one was kept.
    `rate_scale` is what was left of the recipe's rate after the halvings.
    """

    train_loss: float
    samples: int
    undone: bool = False
    rate_scale: float = 1.0


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
    layers: LayerOutputs | None = None,
    held_out: HeldOut | None = None,
    terms: Sequence[Term] = (),
    on_progress: OnProgress | None = None,
    checkpoint: Checkpoint | None = None,
    from_scratch: bool = False,
) -> FinetuneResult:
    """Train `model` in place on `samples` examples of the training data and leave it in evaluation mode.

    The result depends on the model, the seed, the cost and the number of threads alone.

    Args:
        model: the model to train, dense or pruned.
        task: training data, loss and augmentation.
        samples: examples to train on; the learning-rate schedule runs over exactly these. They are rounded up to whole
            repetitions where batches are repeated.
        seed: decides the order of the data, augmentation and dropout.
        recipe: everything about training except its length; the task's `finetune_recipe` by default. Without one, a
            task that has a trainer of its own (`finetune`) is trained by that, which watches over itself.
        teacher: its outputs on the same batch are part of the loss; in a task without a loss they are all of it. The
            last epoch is then not augmented. Where a pass of the teacher costs more than training the model, batches
            are repeated with the same teacher outputs.
        passes: counts the cost of training, and of the teacher's passes that no `memory` keeps for others.
        relative_cost: MACs of `model` as a share of the teacher's.
        memory: outputs of the teacher from earlier fine-tunings on the same batches. Whoever shares it counts the
            passes that fill it.
        layers: of the model and the teacher whose outputs are compared as well, by the recipe's `layer_weight`; not
            with a `memory`, which keeps no outputs of layers, and not in a step or trainer of the task's own.
        held_out: examples that decide at the end whether the model goes back to its best state, that before training
            included. Where the loss rises, training goes on from the best state at half the rate. Without them a loss
            that is not finite is an error.
        terms: change the weights after every step, such as `MaskedWeights`; also in a trainer of the task's own.
        on_progress: called after every step.
        checkpoint: keeps the state now and then; a training that finds one there goes on from it, and ends in the same
            weights, bit for bit, as one that was never interrupted. A trainer of the task's own begins again.
        from_scratch: the weights are new ones. Zeros then do not raise the rate: the recipe of a dense model is as fast
            as new weights bear.

    Raises:
        UsageError: there are no samples, nothing to learn from, or no parameter that can be trained.
        TrialError: the loss of a step is not finite, and there are no `held_out` examples.
    """
    if samples < 1:
        raise UsageError(f"fine-tuning takes at least 1 sample; got {samples}")
    told = Terms([*terms_named((recipe or task.tuning_recipe).terms), *terms])
    if task.finetune is not None and recipe is None:
        finetune_by_own_trainer(model, task, samples=samples, seed=seed, terms=told)
        _count(passes, told, samples, relative_cost)
        return FinetuneResult(train_loss=math.nan, samples=samples)
    _require_lesson(task, teacher)
    recipe = recipe or task.tuning_recipe
    schedule = (seed, samples, recipe.batch_size, recipe.precision)  # all that the teacher's outputs depend on
    objective = Objective(task=task, recipe=recipe, teacher=teacher, memory=memory, schedule=schedule, layers=layers)
    updates, rate = Updates(model, make_optimizer(model, recipe), recipe, sparse=bool(told)), 0.0
    repeats = objective.repeats(relative_cost)
    drawn = math.ceil(samples / repeats)
    progress = _Progress(samples=drawn * repeats, on_progress=on_progress)
    guard = _guard(model, held_out, recipe, drawn * repeats)
    resumption = Resumption(checkpoint, model, objective, updates, told, guard, progress)
    try:
        with _training(model, teacher, task, recipe, seed):
            told.begin(model, task)
            if told:
                guard.restart()  # the state before does not count: it may lack zeros
            for batch in resumption.left(objective.batches(drawn, seed, repeats)):
                rate = learning_rate(recipe, progress.share_at_middle(batch.examples))
                rate *= guard.rate_scale * (1.0 if from_scratch else told.rate_scale)
                loss = updates.take(objective.terms(model, batch, progress.share), rate)
                progress.after_step(batch.examples, loss)
                if updates.stepped and told.after_step(share=progress.share, rate=rate):
                    guard.forget()
                guard.after_step(progress.done, loss, updates)
                if guard.gave_up:
                    break
                resumption.keep()
            updates.finish(rate)
            told.finish()
        undone = guard.finish(progress.done)
    finally:
        _count(passes, told, progress.done, relative_cost, guard.forwards, objective.teacher_examples)
    told.finish()
    return progress.result(undone=undone, rate_scale=guard.rate_scale)


def _require_lesson(task: Task, teacher: nn.Module | None) -> None:
    """Raise `UsageError` where there is nothing to learn from."""
    if not task.trains and teacher is None:
        raise UsageError(
            f"task {task.name!r} has no loss, so only a teacher can say what is right; pass the dense model"
        )


def _count(
    passes: SamplePasses | None, terms: Terms, samples: int, relative_cost: float, checked: int = 0, taught: int = 0
) -> None:
    """Count the passes of a training, of its terms and its checks, and of the teacher."""
    if passes is not None:
        passes.training(samples, relative_cost * (1 + terms.passes / max(samples, 1)))
        passes.forward(checked, relative_cost)
        passes.forward(taught)


def _guard(model: nn.Module, held_out: HeldOut | None, recipe: Recipe, samples: int) -> Safeguard | Unguarded:
    """Return what watches the training: by held-out examples, where these say how near it is to its aim."""
    if held_out is None or not held_out.judges(recipe):
        return Unguarded(steps=math.ceil(samples / recipe.batch_size))
    return Safeguard(model=model, held_out=held_out, recipe=recipe, samples=samples)


class _Progress(Progress):
    """Progress towards so many `samples`, which is reported."""

    def __init__(self, *, samples: int, on_progress: OnProgress | None) -> None:
        super().__init__()
        self.samples, self.on_progress = samples, on_progress

    def share_at_middle(self, examples: int) -> float:
        """Share of the training that is over in the middle of a step on so many examples."""
        return (self.done + examples / 2) / self.samples

    @property
    def share(self) -> float:
        """Share of the training that is over."""
        return self.done / self.samples

    def after_step(self, examples: int, loss: float) -> None:
        """Record a step and report it."""
        self.losses.append(loss)
        self.done += examples
        if self.on_progress is not None:
            self.on_progress(self.done, self.samples, loss)

    def result(self, *, undone: bool, rate_scale: float) -> FinetuneResult:
        tail = [loss for loss in self.losses[-max(1, len(self.losses) // 10) :] if math.isfinite(loss)]
        mean = sum(tail) / len(tail) if tail else math.nan
        return FinetuneResult(train_loss=mean, samples=self.done, undone=undone, rate_scale=rate_scale)


@contextmanager
def _training(model: nn.Module, teacher: nn.Module | None, task: Task, recipe: Recipe, seed: int) -> Iterator[None]:
    """Set training mode, seeded dropout and a memory layout that the model can run; undo all of it at the end."""
    with seeded(seed):
        models = [model] if teacher is None else [model, teacher.eval()]
        for each in models:
            if recipe.channels_last:
                to_channels_last(each, task)
        model.train()
        try:
            device = task.compute_device
            with computing_on(device, *models):
                if device.type == "cuda":
                    torch.cuda.manual_seed_all(seed)  # dropout draws there
                yield
        finally:
            model.eval()
            for each in models:
                each.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
