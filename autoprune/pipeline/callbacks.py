"""Whoever watches a search: events of several receivers, a function for each trial, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autoprune.config import RunConfig
from autoprune.errors import CallbackError, UsageError, unknown_name
from autoprune.pipeline.events import Events, TakesRemaining
from autoprune.search.rung import Progress
from autoprune.search.time_estimate import Remaining
from autoprune.trials import FinishedTrial

OnTrial = Callable[[FinishedTrial], object]
"""A function of the caller that gets every finished trial."""

_REQUIRED = ("stage", "note", "advance")


class Watchers:
    """Passes events on to all receivers, and trials to those that take them.

    A receiver has `stage`, `note` and `advance`, and may have `begin(run_dir, config)`, `trial(trial)`,
    `finish(document)` and `close()`. One that raises an exception ends the search with a `CallbackError`; trials are
    stored before they are told, so the same call goes on later.
    """

    def __init__(self, receivers: Sequence[Events], on_trial: OnTrial | None) -> None:
        self._receivers = tuple(receivers)
        self._on_trial = on_trial
        self._failure: CallbackError | None = None

    def stage(self, title: str) -> None:
        """Pass on that a stage begins."""
        self._tell("stage", title)

    def note(self, text: str) -> None:
        """Pass on a fact."""
        self._tell("note", text)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Pass on a step of the stage."""
        self._tell("advance", done, total, detail)

    def trials(self, title: str, progress: Progress) -> None:
        """Pass on the trial that has just finished."""
        self._tell("trials", title, progress)
        best = {budget: progress.best_score.get(limit) for limit, budget in progress.budgets.items()}
        known = {budget: score for budget, score in best.items() if score is not None}
        trial = FinishedTrial.of(progress.last, progress.rung, known)
        self._tell("trial", trial)
        if self._on_trial is not None:
            self._call("on_trial", self._on_trial, trial)

    @contextmanager
    def watching(self, run_dir: Path, config: RunConfig) -> Iterator[None]:
        """Tell receivers that a search begins, and at its end, however it ends, that nothing more comes."""
        try:
            self._tell("begin", run_dir, config.model_dump(mode="json"))
            yield
        except BaseException:
            with suppress(CallbackError):  # the first error is the one to tell
                self._close()
            raise
        self._close()

    def finish(self, document: Mapping[str, Any]) -> None:
        """Pass on the content of `front.json`."""
        self._tell("finish", document)

    def _close(self) -> None:
        """Close all receivers, also those behind one that fails; then raise the first error of all."""
        for receiver in self._receivers:
            try:
                getattr(receiver, "close", _nothing)()
            except Exception as error:
                self._failure = self._failure or self._failed(f"{type(receiver).__name__}.close", error)
        if self._failure is not None:
            raise self._failure

    def _tell(self, method: str, *values: Any) -> None:
        for receiver in self._receivers:
            function = getattr(receiver, method, None)
            if function is not None:
                self._call(f"{type(receiver).__name__}.{method}", function, *values)

    def _call(self, name: str, function: Callable[..., object], *values: Any) -> None:
        if self._failure is not None:  # somebody caught it as an error of the search's own
            raise self._failure
        try:
            function(*values)
        except Exception as error:
            name = name if name != "on_trial" else f"on_trial ({getattr(function, '__qualname__', repr(function))})"
            self._failure = self._failed(name, error)
            raise self._failure from error

    @staticmethod
    def _failed(name: str, error: Exception) -> CallbackError:
        failure = CallbackError(
            f"the callback {name} failed: {type(error).__name__}: {error}. Finished trials are kept: mend it, and "
            "the same call goes on"
        )
        failure.__cause__ = error
        return failure


class TimedWatchers(Watchers):
    """Watchers of whom some want to know how long the search will still take."""

    def remaining(self, remaining: Remaining) -> None:
        """Pass on how long the search will still take."""
        self._tell("remaining", remaining)


Receivers = Events | str | Sequence[Events | str]
"""Whoever watches a search, one receiver or several; `"console"` stands for what the command line shows."""


def watchers(events: Receivers | None, on_trial: OnTrial | None = None) -> Watchers:
    """Return what tells all receivers.

    Raises:
        UsageError: for a receiver without the methods of `Events`, another word than `"console"`, or an `on_trial` that
            is no function.
    """
    given: Any = () if events is None else events
    receivers = [_receiver(one) for one in (given if isinstance(given, (list, tuple)) else [given])]
    for receiver in receivers:
        absent = [name for name in _REQUIRED if not callable(getattr(receiver, name, None))]
        if absent:
            raise UsageError(
                f"`events` have the methods {', '.join(_REQUIRED)}; {type(receiver).__name__} has no {absent[0]}. "
                "Derive from `autoprune.trackers.Tracker`, which ignores what you do not define, or give `on_trial`"
            )
    if on_trial is not None and not callable(on_trial):
        raise UsageError(f"`on_trial` is a function of a finished trial; got {on_trial!r}")
    timed = any(isinstance(receiver, TakesRemaining) for receiver in receivers)
    return (TimedWatchers if timed else Watchers)(receivers, on_trial)


def _receiver(given: Any) -> Any:
    """Return a receiver, or the one that a word stands for."""
    if not isinstance(given, str):
        return given
    if given != "console":
        raise unknown_name("receiver of events", given, ("console",))
    from autoprune.report.console import ConsoleEvents

    return ConsoleEvents()


def _nothing() -> None:
    return None
