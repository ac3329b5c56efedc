"""The handoff of trials between the thread that submits them and the thread of a scheduler that runs them."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from enum import Enum

from autoprune.executors.base import lost
from autoprune.trials import TrialResult, TrialSpec

_CREATION = "creation task"


class Instruction(Enum):
    """Told to the scheduler in place of a trial."""

    NONE_NOW = "none now"
    END = "end"


class Handoff:
    """Trials by the name that the scheduler gives them, from submission to result.

    `finished` gets results, or a text that says why there will be none any more. A trial that runs longer than
    `timeout_s` is ended by what `started` was given, and lost like one whose worker died.
    """

    def __init__(self, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.finished: queue.SimpleQueue[TrialResult | str] = queue.SimpleQueue()
        self.closing = False
        self._timeout_s = timeout_s
        self._clock = clock
        self._submitted: queue.SimpleQueue[TrialSpec | None] = queue.SimpleQueue()
        self._specs: dict[str, TrialSpec] = {}
        self._running: dict[str, tuple[Callable[[], None], float]] = {}
        self._overdue: set[str] = set()

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        self._submitted.put(spec)

    def close(self) -> None:
        """Let the scheduler end."""
        self.closing = True
        self._submitted.put(None)

    def next(self, name: str) -> TrialSpec | Instruction:
        """The next trial, from now on called `name`. Waits for one as long as no other is to be watched."""
        try:
            spec = self._submitted.get(block=not self._specs)
        except queue.Empty:
            return Instruction.NONE_NOW
        if spec is None or self.closing:
            return Instruction.END
        self._specs[name] = spec
        return spec

    def started(self, name: str, end: Callable[[], None]) -> None:
        """The time of a trial begins, for its worker is ready; `end` kills that worker."""
        self._running[name] = (end, self._clock())

    def end_overdue(self) -> None:
        """Kill the workers of trials that take too long; of all, when closing."""
        now = self._clock()
        for name, (end, start) in self._running.items():
            late = self._timeout_s is not None and now - start > self._timeout_s
            if name not in self._overdue and (late or self.closing):
                self._overdue.add(name)
                end()

    def done(self, name: str, result: TrialResult | str) -> None:
        """Take the result of a trial, or the reason why the trial has no result and will have none."""
        self._running.pop(name, None)
        if self._specs.pop(name, None) is not None:
            self.finished.put(result)

    def worker_died(self, name: str, error: str) -> None:
        """The worker of a trial is gone; `error` is what the scheduler says about it."""
        spec, (_, start) = self._specs.get(name), self._running.get(name, (None, None))
        if spec is None or self.closing:
            return
        if start is None and _CREATION in error:
            self.done(name, f"a worker could not start: {error[-600:]}")
            return
        late = (
            f"it took longer than the limit of {self._timeout_s:g} s (--trial-timeout)"
            if name in self._overdue
            else None
        )
        seconds = self._clock() - start if start is not None else 0.0
        self.done(name, lost(spec, late or f"its worker died: {_detail(error)}", seconds))


def _detail(error: str) -> str:
    """The end of the page that Ray writes about a dead actor, which names the cause."""
    text = " ".join(error.split())
    _, separator, detail = text.partition("Worker exit detail: ")
    return detail[:150] if separator else text[-150:] or "no reason is known"
