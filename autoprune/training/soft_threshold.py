"""L1 as a recipe term: every step moves each weight towards zero by the same amount, and no further.

That is the proximal step of the penalty: weights become exactly zero, which the gradient of |w| alone never does.

Source: Tibshirani 1996 (lasso); proximal steps, Parikh and Boyd 2014, "Proximal Algorithms", section 6.5.2.
"""

from __future__ import annotations

import torch
from torch import nn

from autoprune.pruning.weights import prunable_weights
from autoprune.task.base import Task
from autoprune.training.terms import Step, Term


class SoftThreshold(Term):
    """The penalty `strength` times the sum of |w|: w becomes sign(w) max(|w| - rate times strength, 0)."""

    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._weights: list[nn.Parameter] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Take hold of the weights."""
        del task
        self._weights = list(prunable_weights(model).values())

    @torch.no_grad()
    def after_step(self, step: Step) -> bool:
        """Take the proximal step."""
        by = self._strength * step.rate
        for weight in self._weights:
            weight.copy_(torch.nn.functional.softshrink(weight, by))
        return True
