"""What every executor offers, and how one trial is run without letting its failure stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from autoprune.trials import TrialResult, TrialSpec

Evaluate = Callable[[TrialSpec], TrialResult]
Factory = Callable[[], Evaluate]

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs trials in some number of `slots`; results come back in any order.

    `submit` never blocks. `wait` returns one finished trial of those submitted and not yet returned; there must be one.
    A trial that raises, or whose worker dies, is returned as `failed`. `close` ends running trials at once.
    """

    @property
    def slots(self) -> int:
        """How many trials run at the same time."""
        ...

    def submit(self, spec: TrialSpec) -> None:
        """Queue a trial."""
        ...

    def wait(self) -> TrialResult:
        """Block until a trial has finished."""
        ...

    def close(self) -> None:
        """Give back all workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def guarded(evaluate: Evaluate, spec: TrialSpec) -> TrialResult:
    """Evaluate a trial; any `Exception` becomes a `failed` result that names it (the traceback is logged at debug)."""
    start = time.monotonic()
    try:
        return evaluate(spec)
    except Exception as error:
        _log.debug("trial %d failed", spec.number, exc_info=True)
        return failed(spec, describe(error), seconds=time.monotonic() - start)


def failed(spec: TrialSpec, reason: str, seconds: float = 0.0) -> TrialResult:
    """The result of a trial that failed."""
    return TrialResult(
        number=spec.number,
        policy=spec.policy,
        fidelity=spec.fidelity,
        status="failed",
        seed=spec.seed,
        error=reason,
        seconds=seconds,
    )


def describe(error: BaseException) -> str:
    """One line for an exception: its type and message."""
    return f"{type(error).__name__}: {error}"
