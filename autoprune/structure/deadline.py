"""A limit on the processor time of a step whose duration depends on the user's model."""

from __future__ import annotations

import time
from collections.abc import Callable

from autoprune.errors import StructureError


class OutOfTimeError(StructureError):
    """A step took longer than its limit."""


class Deadline:
    """The end of a limited step, in processor seconds of the thread: waiting and other threads do not count.

    Args:
        seconds: the limit, from now on.
        doing: the step, as a part of a sentence.
        clock: returns seconds.
    """

    def __init__(self, seconds: float, doing: str, clock: Callable[[], float] = time.thread_time) -> None:
        self._seconds, self._doing, self._clock = seconds, doing, clock
        self._end = clock() + seconds

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self._clock() > self._end

    def check(self) -> None:
        """Raise `OutOfTimeError` when the limit has passed."""
        if self.is_over:
            raise OutOfTimeError(f"{self._doing} took more than {self._seconds:g} s of processor time")
