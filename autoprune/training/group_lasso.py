"""Group lasso on units as a recipe term: whole channels fall to zero, and can then be cut without any change.

Source: Yuan and Lin 2006 (group lasso, with the square root of the size as weight of a group); Wen et al. 2016,
https://arxiv.org/abs/1608.03665 (filters and channels of networks).
"""

from __future__ import annotations

import torch
from torch import nn

from autoprune.task.base import Task
from autoprune.training.terms import Step, Term
from autoprune.training.unit_groups import Groups, unit_groups

_TINY = 1e-12


class GroupLasso(Term):
    """The penalty `strength` times the sum over channels of sqrt(size) times the norm, by its proximal step."""

    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._groups: list[Groups] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Analyze the units of the model."""
        self._groups = unit_groups(model, task)

    @torch.no_grad()
    def after_step(self, step: Step) -> bool:
        """Shorten the weights of every channel by the same length, down to none."""
        for groups in self._groups:
            norms = groups.squares().sqrt()
            lengths = self._strength * step.rate * groups.sizes().sqrt()
            groups.scale((1 - lengths / norms.clamp_min(_TINY)).clamp_min(0))
        return True
