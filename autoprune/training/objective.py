"""The loss of a training step: a list of weighted terms, from the task, the teacher or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.model.compute import CPU, moved
from autoprune.task.base import Task
from autoprune.task.recipe import Recipe
from autoprune.training.batch_schedule import TrainingBatch, repeated, repeats_per_batch, shuffled
from autoprune.training.distillation import distillation_loss
from autoprune.training.layer_outputs import LayerOutputs
from autoprune.training.optimization import autocast
from autoprune.training.teacher import TeacherMemory


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A part of the loss: `weight` times the scalar `value`."""

    weight: float
    value: Tensor


@dataclass(kw_only=True)
class Objective:
    """The loss terms of every step: the task's loss, the distance to the teacher, or both by the recipe's weight.

    `schedule` identifies the batches for the `memory`, which fine-tunings on the same batches share.
    `teacher_examples` counts the examples that the teacher ran on for this fine-tuning alone. `layers` are compared,
    too, where the teacher is asked without a memory.
    """

    task: Task
    recipe: Recipe
    teacher: nn.Module | None
    memory: TeacherMemory | None
    schedule: object
    layers: LayerOutputs | None = None
    teacher_examples: int = 0

    @property
    def distils(self) -> bool:
        """Whether the distance to the teacher is part of the loss."""
        return self.teacher is not None and (self.recipe.distill_weight > 0 or not self.task.trains)

    def repeats(self, relative_cost: float) -> int:
        """Return how often to train on a batch: once without a teacher, with a shared memory, or with an own step."""
        asks_alone = self.distils and self.memory is None and self.task.train_step is None
        return repeats_per_batch(relative_cost) if asks_alone else 1

    def batches(self, examples: int, seed: int, repeats: int) -> Iterator[TrainingBatch]:
        """Yield batches of `examples` drawn training examples, each batch `repeats` times."""
        drawn = shuffled(self.task, self.recipe.batch_size, examples, seed, plain_epochs=1 if self.distils else 0)
        batches = (TrainingBatch(tensors, *self._teacher_outputs(step, tensors)) for step, tensors in enumerate(drawn))
        return repeated(batches, repeats, seed)

    def terms(self, model: nn.Module, batch: TrainingBatch, share: float = 0.0) -> list[LossTerm]:
        """Run the model on a batch and return the terms of the loss, in float32.

        `share` of the training is over: layers count less and less.
        """
        if self.task.train_step is not None:
            return self._terms_of_own_step(model, batch)
        inputs, targets = self.task.split(moved(batch.tensors, self._device))
        with self._layers_of(model) as of_layers, autocast(self.recipe.precision, self._device):
            outputs = self.task.select(model(*inputs))
        if batch.teacher_outputs is None:
            return [LossTerm(weight=1.0, value=self._task_loss(outputs, targets))]
        weight = self.recipe.distill_weight if self.task.trains else 1.0
        terms = [LossTerm(weight=weight, value=self._distance(outputs, batch.teacher_outputs))]
        if weight < 1:
            terms.append(LossTerm(weight=1 - weight, value=self._task_loss(outputs, targets)))
        distance = self._compared.distance(of_layers, batch.teacher_layers) if self._compared is not None else None
        if distance is not None:
            terms.append(LossTerm(weight=self.recipe.layer_weight * (1 - share), value=distance))
        return terms

    def _layers_of(self, model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
        """Return what keeps the outputs of the layers that are compared, for a pass through a model."""
        return nullcontext({}) if self._compared is None else self._compared.recorded(model)

    def _terms_of_own_step(self, model: nn.Module, batch: TrainingBatch) -> list[LossTerm]:
        """Compare every call of the model in the task's own training step with the teacher's outputs for that call."""
        assert self.task.train_step is not None
        calls: list[tuple[Any, tuple[Tensor, ...], dict[str, Tensor]]] = []
        hook = model.register_forward_hook(
            lambda _, inputs, named, outputs: calls.append((outputs, inputs, named)), with_kwargs=True
        )
        try:
            with autocast(self.recipe.precision, self._device):
                loss = self.task.train_step(model, moved(batch.tensors, self._device))
        finally:
            hook.remove()
        if not self.distils or not calls:
            return [LossTerm(weight=1.0, value=loss)]
        self.teacher_examples += len(calls) * batch.examples
        distances = [
            self._distance(self.task.select(outputs), self._ask_teacher(inputs, named))
            for outputs, inputs, named in calls
        ]
        weight = self.recipe.distill_weight
        return [
            LossTerm(weight=weight, value=torch.stack(distances).mean()),
            LossTerm(weight=1 - weight, value=loss),
        ]

    def _distance(self, outputs: Tensor, dense_outputs: Tensor) -> Tensor:
        temperature, classifies = self.recipe.temperature, self.task.classifies
        dense_outputs = moved(dense_outputs, self._device)
        return distillation_loss(outputs, dense_outputs, classifies=classifies, temperature=temperature)

    def _task_loss(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        assert self.task.loss is not None
        assert targets is not None
        if self.task.loss is F.cross_entropy:
            return F.cross_entropy(outputs.float(), targets, label_smoothing=self.recipe.label_smoothing)
        return self.task.loss(outputs.float(), targets)

    def _teacher_outputs(self, step: int, tensors: tuple[Tensor, ...]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the teacher's outputs on a batch, from the shared memory where they are known, and by layer."""
        if not self.distils or self.task.train_step is not None:
            return None, {}
        inputs, _ = self.task.split(tensors)
        known = self.memory.recall(self.schedule, step, inputs) if self.memory is not None else None
        if known is not None:
            return known, {}
        assert self.teacher is not None
        with self._layers_of(self.teacher) as of_layers:
            outputs = self._ask_teacher(inputs, {})
        if self.memory is None or not self.memory.keep(step, inputs, outputs):
            self.teacher_examples += len(tensors[0])
        return outputs, {} if self._compared is None else self._compared.of_kept(of_layers)

    def _ask_teacher(self, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.recipe.precision, self._device):
            return moved(self.task.select(self.teacher(*inputs, **named)), CPU)

    @cached_property
    def _compared(self) -> LayerOutputs | None:
        """The layers that are compared: none beside a memory, which keeps outputs of the teacher alone."""
        return self.layers if self.memory is None and self.distils and self.recipe.layer_weight > 0 else None

    @cached_property
    def _device(self) -> torch.device:
        return self.task.compute_device
