"""Weight clipping as a recipe term: no weight is larger than a bound, so that coarse grids fit it.

Source: Courbariaux et al. 2015, https://arxiv.org/abs/1511.00363 (weights clipped after every step).
"""

from __future__ import annotations

import torch
from torch import nn

from autoprune.pruning.weights import prunable_weights
from autoprune.task.base import Task
from autoprune.training.terms import Step, Term


class Clipping(Term):
    """Clips weights of layers to [-`bound`, `bound`] after every step."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._weights: list[nn.Parameter] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Take hold of the weights."""
        del task
        self._weights = list(prunable_weights(model).values())

    def after_step(self, step: Step) -> bool:
        """Clip the weights."""
        del step
        self.finish()
        return True

    @torch.no_grad()
    def finish(self) -> None:
        """Clip the weights."""
        for weight in self._weights:
            weight.clamp_(-self._bound, self._bound)
