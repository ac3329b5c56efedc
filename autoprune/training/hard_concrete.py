"""L0 as a recipe term: random gates on weights or channels, of which as few as possible are open.

Every weight is multiplied by a gate z between 0 and 1 that is drawn anew for every step and is exactly 0 or 1 with some
probability. The penalty is `strength` times the expected number of gates that are not 0. For the last quarter of the
training the gates are fixed at their most probable values, and closed ones are zeros.

Source: hard concrete gates, Louizos et al. 2018, https://arxiv.org/abs/1712.01312, equations 10 to 13.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from autoprune.pruning.weights import prunable_weights
from autoprune.task.base import Task
from autoprune.training.state import Resumable
from autoprune.training.terms import Step, Term
from autoprune.training.unit_groups import Groups, unit_groups, weight_groups

_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1
"""Beta, gamma and zeta of the paper: gates are stretched to [low, high] before they are clipped to [0, 1]."""

_START = 2.0
"""Logit of all gates at the beginning: 97 % are open, 60 % entirely."""

_GATE_RATE, _REACH = 0.05, 12.0
"""Learning rate of the logits, by Adam: at least the first, and so much that the training moves a logit by the second.

A gate closes at a logit of -2.4; with the first alone, trainings of fewer than 100 steps never close one.
"""

_DRAWN = 0.75
"""Share of the training in which gates are drawn."""


class HardConcrete(Term):
    """Multiplies weights by random gates; the step that the optimizer takes on the product is handed to both.

    Args:
        strength: of the penalty, for each gate.
        units: whether a gate is on a channel of a unit; the default has one on every weight.
    """

    STATE = ("_gated", "_generator", "_fixed")

    def __init__(self, strength: float, *, units: bool = False) -> None:
        self._strength, self._units = strength, units
        self._gated: list[_Gated] = []
        self._generator = torch.Generator()
        self._fixed = False

    def begin(self, model: nn.Module, task: Task) -> None:
        """Make the gates and draw them for the first step."""
        groups = unit_groups(model, task) if self._units else weight_groups(prunable_weights(model))
        self._generator.manual_seed(torch.initial_seed())
        self._gated = [_Gated(each, self._generator) for each in groups]

    def after_step(self, step: Step) -> bool:
        """Learn from the step; draw the gates of the next one, or fix them."""
        rate = max(_GATE_RATE, _REACH * step.share / step.number)
        for gated in self._gated:
            gated.take_step(self._strength, 0.0 if self._fixed else rate)
        was_fixed, self._fixed = self._fixed, step.share >= _DRAWN
        for gated in self._gated:
            gated.apply(gated.most_probable() if self._fixed else gated.drawn())
        return not was_fixed

    def finish(self) -> None:
        """Leave the weights with the most probable gates, and let go of them."""
        for gated in self._gated:
            gated.take_step(self._strength, 0.0)
            gated.apply(gated.most_probable())
        self._gated = []


class _Gated(Resumable):
    """Groups of weights behind gates: their weights without the gates, the logits, and the gates of this step."""

    def __init__(self, groups: Groups, generator: torch.Generator) -> None:
        self._groups, self._generator = groups, generator
        self._weights = [part.parameter.detach().clone() for part in groups.parts]
        device = groups.parts[0].parameter.device
        self._logits = torch.full((groups.width,), _START, device=device, requires_grad=True)
        self._optimizer = Adam([self._logits], lr=_GATE_RATE)
        self._noise: Tensor | None = None
        self._gates = self.drawn()
        self.apply(self._gates)

    def drawn(self) -> Tensor:
        """Draw gates `[groups]`, with the gradient to their logits."""
        uniform = torch.rand(self._groups.width, generator=self._generator).clamp(1e-6, 1 - 1e-6)
        self._noise = uniform.logit().to(self._logits.device)
        return self._noisy(self._noise)

    def _noisy(self, noise: Tensor) -> Tensor:
        return _stretched((noise + self._logits) / _TEMPERATURE)

    def most_probable(self) -> Tensor:
        """Return the gates `[groups]` of the finished model."""
        self._noise = None
        return _stretched(self._logits.detach())

    def state(self) -> dict[str, Any]:
        """Return the weights without gates, the logits with their optimizer, and the noise of the gates."""
        optimizer = self._optimizer.state_dict()
        return {"weights": self._weights, "logits": self._logits.detach(), "noise": self._noise, "optimizer": optimizer}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take on a state that `state` returned; the model's weights have these gates already."""
        self._weights = list(state["weights"])
        self._logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.enable_grad():
            self._gates = self.most_probable() if state["noise"] is None else self._noisy(state["noise"])
        self._noise = state["noise"]

    @torch.no_grad()
    def apply(self, gates: Tensor) -> None:
        """Write the products of weights and gates into the model."""
        self._gates = gates
        for part, weight in zip(self._groups.parts, self._weights, strict=True):
            part.parameter.copy_(weight * part.spread(gates.detach()))

    def take_step(self, strength: float, rate: float) -> None:
        """Hand the change of the products to the weights, and their gradient to the logits, unless their rate is 0."""
        gates, slopes = self._gates.detach(), torch.zeros_like(self._gates)
        for part, weight in zip(self._groups.parts, self._weights, strict=True):
            gate = part.spread(gates)
            if part.parameter.grad is not None:
                slopes += part.per_group(part.parameter.grad * weight, self._groups.width)
            weight += (part.parameter.detach() - weight * gate) * gate
        if rate and self._gates.requires_grad:
            opened = torch.sigmoid(self._logits - _TEMPERATURE * math.log(-_LOW / _HIGH))
            self._optimizer.param_groups[0]["lr"] = rate
            self._optimizer.zero_grad()
            ((self._gates * slopes).sum() + strength * opened.sum()).backward()
            self._optimizer.step()


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
