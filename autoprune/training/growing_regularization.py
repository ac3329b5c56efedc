"""Growing regularisation: weights that will be cut decay more and more, until cutting them changes little.

Source: GReg-1 of Wang et al. 2021, https://arxiv.org/abs/2012.09243.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.plans import Plan
from autoprune.training.terms import Step

_CEILING = 60.0
"""Decay at the last change in the time of the whole training; in half the time for changes, what
is cut falls to a hundredth, so that the rest adapts while it goes.

It does not depend on the learning rate, which differs a hundredfold between optimizers.
"""

_GONE = 0.01
"""Share of its first size at which a weight is cut."""


class GrowingRegularization(MaskSchedule):
    """Chooses what will be cut at the beginning, lets it decay ever faster, and cuts it."""

    STATE = (*MaskSchedule.STATE, "_chosen", "_progress", "_left")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._chosen: list[Tensor] = []
        self._progress, self._left = 0.0, 1.0

    def first(self) -> list[Tensor]:
        """Choose what stays; nothing is cut yet."""
        self._chosen = self._plan.kept()
        return super().first()

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Let the decay grow; cut what has nearly gone, so that its gradients no longer count."""
        del step
        self._progress = progress
        return self._chosen if self._left < _GONE else self.kept

    def between(self, step: Step) -> None:
        """Let everything decay that will be cut."""
        factor = max(1 - _CEILING * self._progress * step.share / step.number, 0.0)
        self._left *= factor
        for group, kept in zip(self._plan.groups, self._chosen, strict=True):
            device = group.parts[0].parameter.device
            group.scale(torch.where(kept.to(device), 1.0, factor))

    def last(self, step: Step) -> list[Tensor]:
        """Cut what was chosen."""
        del step
        return self._chosen
