"""L2 as a recipe term: weights decay by a share of themselves, the same in every step or more from step to step.

Source: decoupled decay, Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101; a decay that grows until weights
can go without harm, Wang et al. 2021, https://arxiv.org/abs/2012.09243.
"""

from __future__ import annotations

import torch
from torch import nn

from autoprune.pruning.weights import prunable_weights
from autoprune.task.base import Task
from autoprune.training.terms import Step, Term


class Decay(Term):
    """Multiplies weights by 1 - rate times `strength` after every step.

    Args:
        strength: of the penalty strength / 2 times the sum of w^2.
        grows: whether the strength rises linearly from 0 in the course of the training.
    """

    def __init__(self, strength: float, *, grows: bool = False) -> None:
        self._strength, self._grows = strength, grows
        self._weights: list[nn.Parameter] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Take hold of the weights."""
        del task
        self._weights = list(prunable_weights(model).values())

    @torch.no_grad()
    def after_step(self, step: Step) -> bool:
        """Let the weights decay."""
        by = self._strength * step.rate * (step.share if self._grows else 1.0)
        for weight in self._weights:
            weight.mul_(max(1 - by, 0.0))
        return True
