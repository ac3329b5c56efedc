"""Never end worse than an earlier state on held-out data, and halve the rate where the training loss rises."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from autoprune.errors import TrialError
from autoprune.task.recipe import Recipe
from autoprune.training.held_out import HeldOut
from autoprune.training.state import Resumable
from autoprune.training.update import Updates
from autoprune.trials import CHECKS_SHARE, FORWARD_SHARE

_MOST_CHECKS = 16
"""Checks are at most so many, and cost at most `CHECKS_SHARE` of the training."""

_FIRST, _WINDOW = 3, 10
"""Steps of the first mean of the training loss, while the rate is still low, and of all later ones."""

_RISE = 2.0
"""A rise: the mean loss of the last steps and the held-out loss are both above this multiple of their lowest values.

Either alone misleads. At a rate that ends well, the held-out loss was 14 times that of the repair for a while, because
running statistics of batch norms lag behind the weights, and the training loss 1.7 times its lowest. Where the losses
of batches differ much, the mean of ten steps doubles by chance.
"""

TIE = 0.05
"""An earlier state takes the place of the last one where its held-out loss is lower by more than this share.

Losses of late states differ less than that by chance (see the decisions on repair and fine-tuning).
"""

_MOST_HALVINGS = 10


@dataclass(kw_only=True)
class Safeguard(Resumable):
    """The best state of a model that is being trained, by its loss on `held_out` examples.

    `rate_scale` is what the schedule's learning rate is multiplied by. `forwards` counts the examples that went forward
    through the model.
    """

    STATE = (
        "rate_scale", "forwards", "_first_loss", "_best_loss", "_best_state", "_best_at", "_checked_at", "_recent",
        "_lowest", "_halvings",
    )  # fmt: skip

    model: nn.Module
    held_out: HeldOut
    recipe: Recipe
    samples: int
    rate_scale: float = 1.0
    forwards: int = 0
    _first_loss: float = math.inf
    _best_loss: float = math.inf
    _best_state: dict[str, Tensor] = field(default_factory=dict)
    _best_at: int = 0
    _checked_at: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _lowest: float = math.inf
    _halvings: int = 0

    def __post_init__(self) -> None:
        self._first_loss = self._check(0)

    def after_step(self, done: int, loss: float, updates: Updates) -> None:
        """Check the model when it is time for that; go back to the best state at half the rate where the loss rose.

        Args:
            done: examples trained on so far.
            loss: loss of the step; one that is not finite is a rise.
            updates: start again when the model goes back.
        """
        if self._rose(loss, done):
            if not self._best_state:
                raise TrialError(f"the training loss must stay finite; it is {loss} after {done} examples")
            self._restore()
            updates.restart()
            self.rate_scale /= 2
            self._halvings += 1
        elif self._interval <= done - self._checked_at and done < self.samples:
            self._check(done)

    def restart(self) -> None:
        """Forget the state before the training, and begin with the one that the model is in now."""
        self.forget()
        self._first_loss = self._check(0)

    def forget(self) -> None:
        """Forget all states: from now on something is asked of the weights that they lack, such as zeros."""
        self._first_loss = self._best_loss = self._lowest = math.inf
        self._best_state = {}
        self._recent.clear()

    def _rose(self, loss: float, done: int) -> bool:
        if not math.isfinite(loss):
            self._recent.clear()
            return True
        self._recent.append(loss)
        mean = sum(self._recent) / len(self._recent)
        if len(self._recent) == _FIRST:
            self._lowest = min(self._lowest, mean)
        if len(self._recent) < _WINDOW:
            return False
        self._lowest = min(self._lowest, mean)
        if mean <= _RISE * self._lowest:
            return False
        self._recent.clear()
        return self._check(done) > _RISE * self._best_loss

    def _check(self, done: int) -> float:
        held_out_loss = self._held_out_loss()
        self._checked_at = done
        self._keep_if_best(held_out_loss, done)
        return held_out_loss

    @property
    def gave_up(self) -> bool:
        """Whether the rate was halved so often that going on would change nothing."""
        return self._halvings >= _MOST_HALVINGS

    def finish(self, done: int) -> bool:
        """Leave the model in its last state or in the best one; return whether that is the state before training.

        The last state, whose rate has fallen to 0, is kept where it is better than the first one and within `TIE` of
        the best one.
        """
        last_loss = self._check(done)
        if last_loss > (1 + TIE) * self._best_loss or not last_loss < self._first_loss:
            self._restore()
        return self._best_at == 0

    @property
    def _interval(self) -> int:
        cost = FORWARD_SHARE * self.held_out.examples
        return math.ceil(max(self.samples / _MOST_CHECKS, cost / CHECKS_SHARE))

    def _held_out_loss(self) -> float:
        self.forwards += self.held_out.examples
        return self.held_out.loss(self.model, self.recipe)

    def _keep_if_best(self, loss: float, done: int) -> None:
        if not self._best_state or loss < self._best_loss:
            state: dict[str, Any] = self.model.state_dict()
            self._best_state = {name: value.detach().clone() for name, value in state.items()}
            self._best_loss, self._best_at = loss, done

    def _restore(self) -> None:
        self.model.load_state_dict(self._best_state)


@dataclass(kw_only=True)
class Unguarded(Resumable):
    """Training that no held-out data watch: the last state is kept, and a loss that is not finite ends it."""

    STATE = ("_done_steps",)

    steps: int
    rate_scale: float = 1.0
    forwards: int = 0
    gave_up: bool = False
    _done_steps: int = 0

    def after_step(self, done: int, loss: float, updates: Updates) -> None:
        """Raise a `TrialError` for a loss that is not finite."""
        del done, updates
        self._done_steps += 1
        if not math.isfinite(loss):
            raise TrialError(
                f"the training loss must stay finite; it is {loss} in step {self._done_steps} of {self.steps}. Lower "
                "the recipe's lr, or its clip_norm"
            )

    def restart(self) -> None:
        """Change nothing: no state is kept."""

    def forget(self) -> None:
        """Forget nothing: no state is kept."""

    def finish(self, done: int) -> bool:
        """Keep the last state."""
        del done
        return False
