"""The interface of all executors, and a trial whose failure does not stop the others."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from autoprune.trials import TrialResult, TrialSpec

Evaluate = Callable[[TrialSpec], TrialResult]
Factory = Callable[[], Evaluate]

_log = logging.getLogger(__name__)


class Executor(AbstractContextManager["Executor"]):
    """Runs trials in some number of `slots`; results come back in any order.

    `submit` never blocks. `wait` returns one finished trial of those submitted and not yet returned; there must be one.
    A trial that raises is returned as `failed`, one whose worker dies or takes too long as `lost`: its caller
    decides whether it runs again. `close` ends running trials at once.
    """

    slots: int
    timeout_s: float | None = None
    """After so long a trial is ended and lost."""

    @abstractmethod
    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""

    @abstractmethod
    def wait(self) -> TrialResult:
        """Block until a trial has finished."""

    @abstractmethod
    def close(self) -> None:
        """Give back all workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def guarded(evaluate: Evaluate, spec: TrialSpec) -> TrialResult:
    """Evaluate a trial; what it raises becomes a `failed` result that names it (the traceback is logged at debug).

    Also `SystemExit`: code of the user that ends the program would end the search as if it were done.
    """
    start = time.monotonic()
    try:
        return replace(evaluate(spec), attempt=spec.attempt)
    except (Exception, SystemExit) as error:
        _log.debug("trial %d failed", spec.number, exc_info=True)
        return failed(spec, describe(error), seconds=time.monotonic() - start)


def failed(spec: TrialSpec, reason: str, seconds: float = 0.0) -> TrialResult:
    """The result of a trial that failed by itself."""
    return TrialResult.without_measurement(spec, "failed", reason, seconds)


def lost(spec: TrialSpec, reason: str, seconds: float = 0.0) -> TrialResult:
    """The result of a trial that was cut off through no fault of its own, as far as is known."""
    return TrialResult.without_measurement(spec, "lost", reason, seconds)


def describe(error: BaseException) -> str:
    """One line for an exception: its type and message."""
    return f"{type(error).__name__}: {error}"


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started meanwhile; in this one it comes at the end, instead of being lost.

    Processes inherit what is blocked. Another thread of this one may still be told, so the handler waits, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def worker_threads(threads: int) -> Iterator[None]:
    """Set the thread count that a process that is started inherits."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def worker_environment(threads: int) -> Iterator[None]:
    """Set what a process that is started inherits: its thread count, and that Ctrl-C is not for it.

    Blocking instead of ignoring would not do: helpers of `multiprocessing` unblock it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    handler: Any = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        with worker_threads(threads):
            yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
