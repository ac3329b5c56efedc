"""Adaptive pruning: the share of zeros follows the score on validation data while the model trains.

Where the score is within what the user allows, more weights go; where it is not, some come back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from autoprune.task.base import Task
from autoprune.training.mask_schedule import MaskSchedule
from autoprune.training.plans import Plan
from autoprune.training.terms import Step

_CHANGES = 16
_UP, _DOWN = 1.6, 0.8
"""Share of the plan's zeros that come with good scores in the whole time for changes, and that go with bad ones."""


class Adaptive(MaskSchedule):
    """Moves towards the zeros of a plan as long as a score allows it.

    Args:
        plan: the most zeros that there may be.
        score: of the model, on validation data.
        least: the lowest score that is good.
        passes_of_score: sample passes that a score takes.
    """

    STATE = (*MaskSchedule.STATE, "_scored", "_progress", "share")

    def __init__(
        self, plan: Plan, *, score: Callable[[nn.Module], float], least: float, passes_of_score: float = 0.0
    ) -> None:
        super().__init__(plan, updates=_CHANGES)
        self._score, self._least, self._each = score, least, passes_of_score
        self._scored = 0
        self._progress = 0.0
        self._model: nn.Module | None = None
        self.share = 0.0
        """Share of the plan's zeros that are there now."""

    @property
    def passes(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sample passes of the plan's scores and of those on validation data."""
        return self._plan.passes + self._scored * self._each

    def begin(self, model: nn.Module, task: Task) -> None:
        """Begin with all weights."""
        self._model = model
        super().begin(model, task)

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Score the model, and take more or fewer zeros."""
        del step
        assert self._model is not None
        training = self._model.training
        good = self._score(self._model) >= self._least
        self._model.train(training)
        self._scored += 1
        time, self._progress = min(progress, 1.0) - self._progress, min(progress, 1.0)
        self.share = min(self.share + _UP * time, 1.0) if good else max(self.share - _DOWN * time, 0.0)
        return self._plan.kept(self.share)

    def complete(self) -> None:
        """Take as many zeros as the score allows, where no step was seen whose score could say so."""
        if self._scored or self._model is None:
            return
        trained = copy.deepcopy(self._model.state_dict())
        for change in range(_CHANGES, -1, -1):
            self._model.load_state_dict(trained)
            self.share = change / _CHANGES
            self.kept = self._plan.kept(self.share)
            self.finish()
            self._scored += 1
            if self._score(self._model) >= self._least:
                return

    def last(self, step: Step) -> list[Tensor]:
        """Stay at the share that the last score allowed."""
        return self.update(step, 1.0)
