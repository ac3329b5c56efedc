"""Recipe terms that change every weight of a layer by itself: L1, L2 that may grow, and clipping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.pruning.weights import prunable_weights
from autoprune.task.base import Task
from autoprune.training.terms import Step, Term


class WeightTerm(Term):
    """Base of the terms that change one weight after another, in place."""

    def __init__(self) -> None:
        self._weights: list[nn.Parameter] = []

    def begin(self, model: nn.Module, task: Task) -> None:
        """Take hold of the weights."""
        del task
        self._weights = list(prunable_weights(model).values())

    @torch.no_grad()
    def after_step(self, step: Step) -> bool:
        """Change all weights."""
        for weight in self._weights:
            self.change(weight, step)
        return True

    def change(self, weight: Tensor, step: Step) -> None:
        """Change a weight in place."""


class SoftThreshold(WeightTerm):
    """The L1 penalty `strength` times the sum of |w|: w becomes sign(w) max(|w| - rate times strength, 0).

    That is the proximal step of the penalty: weights become exactly zero, which the gradient of |w| alone never does.

    Source: Tibshirani 1996 (lasso); proximal steps, Parikh and Boyd 2014, "Proximal Algorithms", section 6.5.2.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength = strength

    def change(self, weight: Tensor, step: Step) -> None:
        """Take the proximal step."""
        weight.copy_(torch.nn.functional.softshrink(weight, self._strength * step.rate))


class Decay(WeightTerm):
    """The L2 penalty: multiplies weights by 1 - rate times `strength` after every step.

    Source: decoupled decay, Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101; a decay that grows until
    weights can go without harm, Wang et al. 2021, https://arxiv.org/abs/2012.09243.

    Args:
        strength: of the penalty strength / 2 times the sum of w^2.
        grows: whether the strength rises linearly from 0 in the course of the training.
    """

    def __init__(self, strength: float, *, grows: bool = False) -> None:
        super().__init__()
        self._strength, self._grows = strength, grows

    def change(self, weight: Tensor, step: Step) -> None:
        """Let a weight decay."""
        by = self._strength * step.rate * (step.share if self._grows else 1.0)
        weight.mul_(max(1 - by, 0.0))


class Clipping(WeightTerm):
    """Clips weights to [-`bound`, `bound`] after every step, so that coarse grids fit them.

    Source: Courbariaux et al. 2015, https://arxiv.org/abs/1511.00363.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self._bound = bound

    def change(self, weight: Tensor, step: Step) -> None:
        """Clip a weight."""
        del step
        weight.clamp_(-self._bound, self._bound)

    @torch.no_grad()
    def finish(self) -> None:
        """Clip all weights: the average of a training may have moved them."""
        for weight in self._weights:
            weight.clamp_(-self._bound, self._bound)
