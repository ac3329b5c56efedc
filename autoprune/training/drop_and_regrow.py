"""Dynamic sparse training: at every change the smallest weights go, and as many others come back.

As many weights are zero all the time. Weights come back at random (SET), or where the gradient is largest (RigL); they
start from zero. Channels come back with the weights that they last had, because a channel of zeros has no gradient
but that of its shift.

Sources: SET, Mocanu et al. 2018, https://arxiv.org/abs/1707.04780; RigL, Evci et al. 2020,
https://arxiv.org/abs/1911.11134 (equation of the share that changes: section 3, "update schedule"); channels with their
last weights, Hou et al. 2022 (CHEX), https://arxiv.org/abs/2203.15794.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoprune.task.base import Task
from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.plans import Plan
from autoprune.training.terms import Step
from autoprune.training.unit_groups import Elements

_EXCHANGED = 0.3
"""Share of the weights that are left which is exchanged at the first change; it falls to 0 by half a cosine."""


class DropAndRegrow(MaskSchedule):
    """Exchanges the smallest groups for others; `by_gradient` says whether these are drawn at random."""

    STATE = (*MaskSchedule.STATE, "_generator", "_last_values")

    def __init__(self, plan: Plan, *, by_gradient: bool) -> None:
        super().__init__(plan)
        self._by_gradient = by_gradient
        self._generator = torch.Generator()
        self._last_values: list[list[Tensor]] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Remember the weights, and set those to zero that are zero at the beginning."""
        self._generator.manual_seed(torch.initial_seed())
        super().begin(model, task)

    def first(self) -> list[Tensor]:
        """Return the groups that stay by the plan's scores."""
        kept = self._plan.kept()
        self._last_values = [[part.parameter.detach().clone() for part in group.parts] for group in self._plan.groups]
        return kept

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Drop the smallest groups, and let others grow."""
        del step
        exchanged = _EXCHANGED / 2 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return [self._exchanged(number, kept, exchanged) for number, kept in enumerate(self.kept)]

    def last(self, step: Step) -> list[Tensor]:
        """Return the groups that stay now."""
        del step
        return self.kept

    def _exchanged(self, number: int, kept: Tensor, share: float) -> Tensor:
        group = self._plan.groups[number]
        kept = kept.to(group.parts[0].parameter.device)
        sizes = group.squares()
        survivors = int(kept.sum()) - int(share * int(kept.sum()))
        order = torch.where(kept, sizes, -1.0).argsort(descending=True, stable=True)
        stays = torch.zeros_like(kept)
        stays[order[:survivors]] = True
        drawn = torch.rand(group.width, generator=self._generator).to(sizes)
        grows = group.slopes() if self._by_gradient else drawn
        grows = grows / grows.max().clamp_min(1e-30)
        new = self._plan.best(number, torch.where(stays, 2.0 + sizes / sizes.max().clamp_min(1e-30), grows))
        self._restore(number, kept, new & ~kept)
        return new

    @torch.no_grad()
    def _restore(self, number: int, kept: Tensor, grown: Tensor) -> None:
        """Remember the weights of the groups that were kept, and give grown channels back what they last had."""
        group = self._plan.groups[number]
        for part, last in zip(group.parts, self._last_values[number], strict=True):
            if isinstance(part, Elements):
                continue
            was_kept = part.spread(kept.float()) > 0
            last.copy_(torch.where(was_kept, part.parameter, last))
            part.parameter.copy_(torch.where(part.spread(grown.float(), 0.0) > 0, last, part.parameter))
