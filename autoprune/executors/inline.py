"""Trials in this process, one after the other: for tests, debugging and small searches."""

from __future__ import annotations

from collections import deque

from autoprune.executors.base import Executor, Factory, guarded
from autoprune.trials import TrialResult, TrialSpec


class InlineExecutor(Executor):
    """Evaluates inside `wait`, in the order of submission."""

    slots = 1

    def __init__(self, factory: Factory) -> None:
        self._evaluate = factory()
        self._queue: deque[TrialSpec] = deque()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        self._queue.append(spec)

    def wait(self) -> TrialResult:
        """Evaluate the oldest queued trial."""
        assert self._queue, "wait() without a submitted trial"
        return guarded(self._evaluate, self._queue.popleft())

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
