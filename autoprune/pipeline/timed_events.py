"""Events that know the time: they pass everything on, and tell how long the whole search will still take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from autoprune.errors import RunFolderError
from autoprune.pipeline.events import DENSE, ORDER, TABLE, TASK, Events, TakesRemaining, TakesTrials, rung_title
from autoprune.pipeline.time_parts import Work
from autoprune.profiling.duration import ProfileProgress
from autoprune.runfolder import RunFolder, read_json, write_json
from autoprune.search.explore import SENSITIVITY
from autoprune.search.rung import Progress
from autoprune.search.time_estimate import Remaining, TimeEstimate
from autoprune.search.trial_times import TrialLog

_UNTUNED = (rung_title("proxy"), rung_title(SENSITIVITY))

_TELL_SECONDS, _NOTE_SECONDS = 0.5, 5.0
"""The estimate is told to events and noted in the run folder at most so often, and whenever a stage begins."""

_KEEP_SECONDS = 10.0
"""Seconds between two notes of the time spent, also while one long trial runs: a killed call notes nothing more."""


_LOAD_CPU_SECONDS = 1.0
_COMPUTED_HERE = ("", TASK, DENSE, ORDER)
"""Stages that take as long as this process computes, other work on the machine apart; "" before the first one."""


@dataclass(frozen=True, kw_only=True)
class _Span:
    """The begin of a stage, on the clock and in seconds that this process has computed."""

    stage: str
    begun_s: float
    begun_cpu_s: float


class TimedEvents:
    """Passes events on to others, and tells them how long the search will still take, if they take it.

    The last estimate is kept in `progress.json` of the run, with the seconds that all calls of the run have spent.

    Args:
        events: whoever watches.
        folder: of the run.
        most_s: seconds that all calls of the run may take together; no limit when left out.
        clock: in seconds.
    """

    def __init__(
        self,
        events: Events,
        folder: RunFolder,
        most_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._folder, self._clock = events, folder, clock
        self._most_s = most_s
        self.begun = folder.has_study
        """Whether the search had begun before this call."""
        self._begun = self._told = self._noted = clock()
        self._spans = [_Span(stage="", begun_s=self._begun, begun_cpu_s=time.process_time())]
        self._earlier_s = spent_seconds(folder)
        self._stage = ""
        self._lock = threading.RLock()  # the estimate changes in one thread and is noted by two
        self._stage_begun = self._begun
        self._log: TrialLog | None = None
        self.work: Work | None = None
        self.estimate: TimeEstimate | None = None
        self.profile = ProfileProgress()

    @property
    def spent_s(self) -> float:
        """Seconds that the run has taken so far, those of earlier calls included."""
        return self._earlier_s + self._clock() - self._begun

    @property
    def left_s(self) -> float | None:
        """Seconds that the limit of the run leaves, at least 0; `None` without a limit."""
        return None if self._most_s is None else max(self._most_s - self.spent_s, 0.0)

    def seconds_of(self, work: Work) -> float:
        """Return the seconds that are left of some other work, by what is known now."""
        return sum(self.parts_of(work).values())

    def parts_of(self, work: Work) -> Mapping[str, float]:
        """Return the seconds that are left of each part of some other work."""
        parts = {part.name: part for part in work.parts()}
        estimate = work.estimate() if self.estimate is None else replace(self.estimate, parts=parts)
        return estimate.remaining(self._clock()).seconds_by_part

    @property
    def seconds_in_stage(self) -> float:
        """Seconds of the stage so far."""
        return self._clock() - self._stage_begun

    @property
    def import_cpu_s(self) -> float:
        """Seconds that this process had computed when the search began: imports, as from the command line."""
        return self._spans[0].begun_cpu_s

    @property
    def load(self) -> float:
        """Seconds that pass for each second that this process computes, at least 1: how busy the machine is.

        By the last stages in which this process computes what it waits for, of a second or more together.
        """
        end_s, end_cpu_s, wall_s, cpu_s = self._clock(), time.process_time(), 0.0, 0.0
        for span in reversed(self._spans):
            if span.stage in _COMPUTED_HERE:
                wall_s, cpu_s = wall_s + end_s - span.begun_s, cpu_s + end_cpu_s - span.begun_cpu_s
            if cpu_s >= _LOAD_CPU_SECONDS:
                break
            end_s, end_cpu_s = span.begun_s, span.begun_cpu_s
        return max(1.0, wall_s / max(cpu_s, 1e-3)) if cpu_s else 1.0

    def expect(self, work: Work) -> None:
        """Take the work that is ahead, as far as it is known now."""
        with self._lock:
            self.work = work
            if self.estimate is None:
                self.estimate = work.estimate()
                self.estimate.begin(self._stage, self._clock())
            else:
                self.estimate.expect(work.parts(), work.times, work.basis)
        self._tell(at_once=True)

    def stage(self, title: str) -> None:
        """Pass on that a stage begins."""
        now = self._clock()
        self._events.stage(title)
        with self._lock:
            self._stage, self._stage_begun = title, now
            self._spans.append(_Span(stage=title, begun_s=now, begun_cpu_s=time.process_time()))
            if self.estimate is not None:
                self.estimate.begin(title, now)
        self._tell(at_once=True)

    def note(self, text: str) -> None:
        """Pass on a fact."""
        self._events.note(text)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Pass on a step of the stage."""
        now = self._clock()
        with self._lock:
            if self.estimate is None:
                pass
            elif self._stage != TABLE:
                self.estimate.advance(done, total, now)
            elif known := self.profile(detail, int(done), int(total), self.seconds_in_stage):
                self.estimate.advance(*known, now)
            else:  # what comes before widths are scanned says nothing about their pace
                self.estimate.begin(TABLE, now)
        self._tell()
        self._events.advance(done, total, detail)

    def trials(self, title: str, progress: Progress) -> None:
        """Learn from a step of a rung, and pass it on."""
        if isinstance(self._events, TakesTrials):
            self._events.trials(title, progress)
        with self._lock:
            if self.estimate is None or self.work is None:
                return
            workers = self.work.start_s > 0  # in processes of their own
            self._log = self._log or TrialLog(slots=self.work.slots, cold=self.work.slots if workers else 0)
            part, last = self.estimate.parts.get(title), progress.last
            if last.status == "done" and last.seconds > 0:
                learned = self._log.add(
                    title, last.seconds, last.sample_passes, finished=progress.done, tuned=title not in _UNTUNED,
                    samples=part.taught if part else 0.0,
                )  # fmt: skip
                self.estimate.learn(title, learned)

    def end(self) -> None:
        """Note that nothing is left to do."""
        last = self._remaining() if self.estimate else Remaining(seconds=0.0, basis="")
        self._note(replace(last, seconds=0.0, seconds_by_part={}, basis="the search is finished"))

    def keep(self) -> None:
        """Note how far the search is; from any thread."""
        with self._lock:
            self._note(self._remaining() if self.estimate else None)

    def _tell(self, *, at_once: bool = False) -> None:
        now = self._clock()
        if self.estimate is None or not (at_once or now - self._told >= _TELL_SECONDS):
            return
        self._told = now
        remaining = self._remaining()
        if isinstance(self._events, TakesRemaining):
            self._events.remaining(remaining)
        if at_once or now - self._noted >= _NOTE_SECONDS:
            self._note(remaining)

    def _remaining(self) -> Remaining:
        """Return what is left, with a basis that says what it leaves out."""
        assert self.estimate is not None
        with self._lock:
            remaining = self.estimate.remaining(self._clock())
        further = f"; {self.work.uncounted}" if self.work and self.work.uncounted else ""
        return replace(remaining, basis=remaining.basis + further)

    def _note(self, remaining: Remaining | None) -> None:
        """Note what is left and what was spent; before there is an estimate, what was spent alone."""
        with self._lock:
            self._noted = self._clock()
            value: dict[str, Any] = {"updated": datetime.now(UTC).isoformat(timespec="seconds"), "stage": self._stage}
            value["seconds_spent"] = round(self.spent_s, 1)
            value |= _left_values(remaining) if remaining else {}
            with suppress(RunFolderError):  # a search does not end because nobody can read how long it takes
                write_json(self._folder.progress, value)


def _left_values(remaining: Remaining) -> dict[str, Any]:
    return {
        "seconds_left": round(remaining.seconds, 1),
        "basis": remaining.basis,
        "seconds_left_by_part": {name: round(seconds, 1) for name, seconds in remaining.seconds_by_part.items()},
        "trials": remaining.trials,
        "sample_passes": round(remaining.sample_passes),
    }


@contextmanager
def timed(
    events: Events, folder: RunFolder, max_minutes: float | None, keep_seconds: float = _KEEP_SECONDS
) -> Iterator[Events]:
    """Yield events that reckon with time, where somebody wants to know it or there is a limit.

    The run folder keeps the last estimate, and every `keep_seconds` what was spent: that counts however a call ends.
    """
    if not isinstance(events, TakesRemaining) and max_minutes is None:
        yield events
        return
    watch = TimedEvents(events, folder, None if max_minutes is None else 60 * max_minutes)
    over = threading.Event()

    def keep_time() -> None:
        while not over.wait(keep_seconds):
            watch.keep()

    keeper = threading.Thread(target=keep_time, name="autoprune-time", daemon=True)
    keeper.start()
    try:
        yield watch
    except BaseException:
        _stop(keeper, over)
        watch.keep()
        raise
    _stop(keeper, over)
    watch.end()


def _stop(keeper: threading.Thread, over: threading.Event) -> None:
    over.set()
    keeper.join()


def spent_seconds(folder: RunFolder) -> float:
    """Return the seconds that all calls of a run have taken before; 0 where that is not known."""
    with suppress(RunFolderError, KeyError, TypeError, ValueError):
        return float(read_json(folder.progress)["seconds_spent"])
    return 0.0
