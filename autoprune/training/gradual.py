"""Gradual pruning: zeros come fast at first, and slower the fewer weights are left.

Source: Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1.
"""

from __future__ import annotations

from torch import Tensor

from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.terms import Step


class Gradual(MaskSchedule):
    """At progress t the share 1 - (1 - t)^3 of the zeros is there."""

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Return what stays at this progress."""
        del step
        return self._plan.kept(1 - (1 - progress) ** 3)
