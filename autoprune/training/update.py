"""Updates of the weights: gradients of one or several batches, clipped, and an average of the weights if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.task.recipe import Recipe
from autoprune.training.objective import LossTerm
from autoprune.training.state import Resumable


class Updates(Resumable):
    """Steps of an optimizer down the gradient of a recipe's batches.

    With `recipe.accumulate` above 1, that many batches make one step. With `recipe.ema` above 0, an exponential moving
    average of all floating-point weights and buffers is kept; `finish` puts it into the model. With `sparse`, gradients
    of weights that are zero do not count in the norm that is clipped: a mask undoes their steps, and where most weights
    are zero they would make the steps of the others tiny.
    """

    STATE = ("_batches", "_steps", "_average")

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, *, sparse: bool = False
    ) -> None:
        self._model, self._optimizer, self._recipe, self._sparse = model, optimizer, recipe, sparse
        self._batches = self._steps = 0
        self._average: dict[str, Tensor] = {}

    def take(self, terms: Sequence[LossTerm], rate: float) -> float:
        """Add the gradient of the summed terms, take a step if it is time, and return the sum."""
        loss = reduce(torch.add, [term.weight * term.value for term in terms])
        if self._batches == 0:
            self._optimizer.zero_grad(set_to_none=True)
        (loss / self._recipe.accumulate if self._recipe.accumulate > 1 else loss).backward()
        self._batches += 1
        if self._batches >= self._recipe.accumulate:
            self._step(rate)
        return loss.item()

    @property
    def stepped(self) -> bool:
        """Whether the last batch made a step of the optimizer."""
        return self._batches == 0

    def state(self) -> dict[str, Any]:
        """Return the state, that of the optimizer included; between two steps, since gradients are not kept."""
        return super().state() | {"optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take on a state that `state` returned."""
        super().restore(state)
        self._optimizer.load_state_dict(state["optimizer"])

    def restart(self) -> None:
        """Forget gradients, moments and the average of the weights, which belong to a state that was given up."""
        self._batches = self._steps = 0
        self._average = {}
        self._optimizer.state.clear()

    def finish(self, rate: float = 0.0) -> None:
        """Take the step of the batches that are left over, and put the average of the weights into the model."""
        if self._batches:
            self._step(rate)
        if self._average:
            self._model.load_state_dict(self._average, strict=False)

    def _step(self, rate: float) -> None:
        self._batches = 0
        if self._recipe.clip_norm > 0:
            self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        if self._recipe.ema > 0:
            self._follow()

    def _clip(self) -> None:
        if not self._sparse:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_norm)
            return
        given = [p for p in self._model.parameters() if p.grad is not None]
        counted = [p.grad * (p.detach() != 0) if p.dim() > 1 else p.grad for p in given if p.grad is not None]
        nn.utils.clip_grads_with_norm_(given, self._recipe.clip_norm, nn.utils.get_total_norm(counted))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights; its first steps count more, so that it does not stay at the start."""
        self._steps += 1
        decay = min(self._recipe.ema, self._steps / (self._steps + 9))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                if name in self._average:
                    self._average[name].lerp_(value, 1 - decay)
                else:
                    self._average[name] = value.clone()
