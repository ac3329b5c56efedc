"""Base of the schedules that decide during a training which groups of weights are zero."""

from __future__ import annotations

from torch import Tensor, nn

from autoprune.task.base import Task
from autoprune.training.plans import Plan
from autoprune.training.terms import Step, Term

LAST_CHANGE = 0.75
"""Share of the training after which the mask stays: the rest is for the weights that are left."""

UPDATES = 32
"""Changes of a mask in a training."""


class MaskSchedule(Term):
    """Keeps groups of weights at zero, and asks `update` for other ones at equal distances.

    Args:
        plan: which groups are zero in the end.
        updates: number of changes, until `LAST_CHANGE` of the training.
    """

    STATE = ("_plan", "_done_updates", "_ended", "kept")

    def __init__(self, plan: Plan, updates: int = UPDATES) -> None:
        self._plan, self._updates = plan, updates
        self._done_updates = 0
        self._ended = False
        self.kept: list[Tensor] = []
        """Which of the plan's groups are kept now, bool `[width]` each."""

    @property
    def passes(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sample passes of the plan's scores."""
        return self._plan.passes

    @property
    def held(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Single weights that are kept at zero now."""
        pairs = zip(self._plan.groups, self.kept, strict=True)
        return sum(len(kept) - int(kept.count_nonzero()) for group, kept in pairs if group.single)

    def begin(self, model: nn.Module, task: Task) -> None:
        """Find the groups, and set those to zero that are zero from the beginning."""
        self._plan.begin(model, task)
        self.kept = self.first()
        self.finish()

    def after_step(self, step: Step) -> bool:
        """Change the mask when it is time for that, and keep the others at zero."""
        due = min(int(step.share / LAST_CHANGE * self._updates), self._updates)
        ends = step.share >= LAST_CHANGE and not self._ended
        changes = ends or (due > self._done_updates and not self._ended)
        if changes:
            self._done_updates, self._ended = due, ends
            self.kept = self.last(step) if ends else self.update(step, step.share / LAST_CHANGE)
        if not self._ended:
            self.between(step)
        self.finish()
        return changes or not self._ended

    def first(self) -> list[Tensor]:
        """Return which groups stay at the beginning: all of them."""
        return [group.squares() >= 0 for group in self._plan.groups]

    def update(self, step: Step, progress: float) -> list[Tensor]:
        """Return which groups stay from now on, here those that stay already.

        `progress` is the share of the time for changes that is over.
        """
        del step, progress
        return self.kept

    def last(self, step: Step) -> list[Tensor]:
        """Return which groups stay for good."""
        del step
        return self._plan.kept()

    def between(self, step: Step) -> None:
        """Change weights after a step, as long as the mask changes."""

    def complete(self) -> None:
        """Choose the last mask, unless it is chosen."""
        if not self._ended:
            self._ended, self.kept = True, self.last(Step(number=0, share=1.0, rate=0.0))

    def finish(self) -> None:
        """Set the groups to zero that are not kept."""
        for group, kept in zip(self._plan.groups, self.kept, strict=True):
            group.keep_only(kept)


class OneShot(MaskSchedule):
    """The whole mask at the beginning, by the weights as they were."""

    def first(self) -> list[Tensor]:
        """Return the groups that stay for good."""
        return self._plan.kept()

    def after_step(self, step: Step) -> bool:
        """Keep the others at zero."""
        del step
        self.finish()
        return False

    def last(self, step: Step) -> list[Tensor]:
        """Return the groups that stay."""
        del step
        return self.kept
