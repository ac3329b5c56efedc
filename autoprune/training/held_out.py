"""The loss on held-out examples, by which a fine-tuning goes back to an earlier state.

The examples are a fixed sample of the validation data, which already choose between policies. Training data would not
show that a model learns them by heart, and holding some back would cost a small data set a tenth of its examples. Test
data are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune.model.compute import CPU, computing_on
from autoprune.model.randomness import seeded
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.task.recipe import Recipe
from autoprune.training.distillation import distillation_loss
from autoprune.trials import HELD_OUT_EXAMPLES

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Validation examples with the dense model's outputs on them.

    Args:
        task: its loss is a part of the held-out loss where the recipe gives it a weight.
        batches: the examples, `(inputs..., target)`.
        dense_outputs: the dense model's outputs on each batch, `[N, ...]`.
    """

    task: Task
    batches: tuple[tuple[Tensor, ...], ...]
    dense_outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, task: Task, dense_outputs: Tensor) -> HeldOut:
        """Take a fixed sample of at most 128 validation examples.

        Args:
            task: the task whose validation data are sampled.
            dense_outputs: outputs of the dense model on the whole validation data, in its order.
        """
        rows = sample_rows(length(task.val_set), HELD_OUT_EXAMPLES)
        examples = tuple(batches(task.val_set, _BATCH, rows=rows))
        return cls(task=task, batches=examples, dense_outputs=dense_outputs[rows].split(_BATCH))

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(len(batch[0]) for batch in self.batches)

    def judges(self, recipe: Recipe) -> bool:
        """Whether the loss says how near training is to its aim: not for an own training step without distillation."""
        return self.task.train_step is None or recipe.distill_weight > 0

    def loss(self, model: nn.Module, recipe: Recipe) -> float:
        """Return the recipe's training loss on the examples with the model in evaluation mode; infinite if it is NaN.

        A task with a training step of its own is judged by the distance to the dense outputs alone. The model keeps its
        mode.
        """
        was_training = model.training
        model.eval()
        with torch.no_grad(), seeded(0), computing_on(self.task.compute_device, model, results=CPU):
            losses = [
                self._loss(model, recipe, batch, dense) * len(batch[0])
                for batch, dense in zip(self.batches, self.dense_outputs, strict=True)
            ]
        model.train(was_training)
        mean = sum(losses) / self.examples
        return mean if math.isfinite(mean) else math.inf

    def _loss(self, model: nn.Module, recipe: Recipe, batch: tuple[Tensor, ...], dense_outputs: Tensor) -> float:
        inputs, targets = self.task.split(batch)
        outputs = self.task.select(model(*inputs)).float()
        weight = recipe.distill_weight if self.task.loss is not None and self.task.train_step is None else 1.0
        loss = 0.0
        if weight > 0:
            loss += weight * float(
                distillation_loss(
                    outputs, dense_outputs, classifies=self.task.classifies, temperature=recipe.temperature
                )
            )
        if weight < 1:
            assert self.task.loss is not None
            assert targets is not None
            loss += (1 - weight) * float(self.task.loss(outputs, targets))
        return loss
