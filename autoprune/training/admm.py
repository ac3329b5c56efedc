"""ADMM: weights are drawn towards the nearest sparse ones while they follow the loss, and cut to those at the end.

W follows the gradient and the pull rho (W - Z + U). Z is the nearest sparse point to W + U, and U adds up what is
left between the two. Where the plan ranks all weights together, the share of zeros of every layer comes out of the
projection, under one budget for all.

Source: Zhang et al. 2018, https://arxiv.org/abs/1804.03294, equations 8 to 11; rates of layers by projection under one
budget: Yang et al. 2019, "Automatic DNN compression by ADMM".
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.plans import Plan
from autoprune.training.terms import Step

_PULL = 10.0
"""Learning rate times rho at the last change, summed over the time of a whole training; it rises linearly from 0.

It does not depend on the learning rate, which differs a hundredfold between optimizers.
"""


class Admm(MaskSchedule):
    """Draws the weights to the projection of a plan; no weight is set to zero before the last change."""

    STATE = (*MaskSchedule.STATE, "_targets", "_sums", "_progress")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._targets: list[list[Tensor]] = []
        self._sums: list[list[Tensor]] = []
        self._progress = 0.0

    def first(self) -> list[Tensor]:
        """Start from the projection of the weights as they are."""
        everything = super().first()
        self._sums = [[torch.zeros_like(part.parameter) for part in group.parts] for group in self._plan.groups]
        self._project()
        return everything

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Project anew, and add up what is left."""
        del step
        self._progress = progress
        self._project()
        return self.kept

    @torch.no_grad()
    def _project(self) -> None:
        """Set Z to the nearest sparse point of W + U, and U to U + W - Z."""
        values = [[part.parameter.clone() for part in group.parts] for group in self._plan.groups]
        for group, of_sums in zip(self._plan.groups, self._sums, strict=True):
            for part, of_part in zip(group.parts, of_sums, strict=True):
                part.parameter.add_(of_part)
        shifted = [[part.parameter.clone() for part in group.parts] for group in self._plan.groups]
        kept = self._plan.kept()
        for group, of_values in zip(self._plan.groups, values, strict=True):
            for part, value in zip(group.parts, of_values, strict=True):
                part.parameter.copy_(value)
        self._targets = [
            [whole * part.spread(mask.to(whole.device).float()) for part, whole in zip(group.parts, parts, strict=True)]
            for group, parts, mask in zip(self._plan.groups, shifted, kept, strict=True)
        ]
        self._sums = [
            [whole - target for whole, target in zip(parts, targets, strict=True)]
            for parts, targets in zip(shifted, self._targets, strict=True)
        ]

    @torch.no_grad()
    def between(self, step: Step) -> None:
        """Take the step of the pull."""
        by = min(_PULL * self._progress * step.share / step.number, 1.0)
        for group, targets, sums in zip(self._plan.groups, self._targets, self._sums, strict=True):
            for part, target, of_sum in zip(group.parts, targets, sums, strict=True):
                part.parameter.sub_(by * (part.parameter - target + of_sum))
