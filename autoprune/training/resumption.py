"""Going on with a training that was killed: all of its state after a step, and the batches that are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from autoprune.model.compute import moved
from autoprune.model.randomness import random_states, set_random_states
from autoprune.training.batch_schedule import TrainingBatch
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.objective import Objective
from autoprune.training.safeguard import Safeguard, Unguarded
from autoprune.training.state import Resumable
from autoprune.training.terms import Terms
from autoprune.training.update import Updates

PART = "training"
"""Name of the state of a training in a checkpoint."""


class Progress(Resumable):
    """Examples trained on so far (`done`) and the loss of every step."""

    STATE = ("done", "losses")

    def __init__(self) -> None:
        self.done = 0
        self.losses: list[float] = []


@dataclass
class Resumption:
    """Everything that changes in a training, and the file that keeps it; without a file nothing is kept."""

    checkpoint: Checkpoint | None
    model: nn.Module
    objective: Objective
    updates: Updates
    terms: Terms
    guard: Safeguard | Unguarded
    progress: Progress

    def left(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        """Take on the state that was kept last, and yield the batches that were not trained on before it.

        The batches before it are drawn once more, and the teacher asked, because later ones may repeat them.
        """
        state = None if self.checkpoint is None else self.checkpoint.part(PART)
        if state is not None:
            self._restore(state)
        seen, done = 0, self.progress.done
        for batch in batches:
            seen += batch.examples
            if seen > done:
                yield batch

    def keep(self) -> None:
        """Write the state, if it is time for that; not between the batches of one step."""
        if self.checkpoint is not None and self.updates.stepped:
            self.checkpoint.keep(PART, self._state)

    @property
    def _parts(self) -> dict[str, Resumable]:
        return {"updates": self.updates, "terms": self.terms, "guard": self.guard, "progress": self.progress}

    def _state(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "random": random_states(),
            "asked": self.objective.teacher_examples,
            **{name: part.state() for name, part in self._parts.items()},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        device = self.objective.task.compute_device
        self.model.load_state_dict(state["model"])
        for name, part in self._parts.items():
            part.restore(moved(state[name], device))
        if self.objective.task.train_step is not None:  # otherwise asking the teacher once more counts them
            self.objective.teacher_examples = state["asked"]
        set_random_states(state["random"])
