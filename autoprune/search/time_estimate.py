"""How long a search takes: expected seconds of each of its parts, corrected by what is measured while it runs.

`autoprune check` adds the parts up before a search, `autoprune search` follows them, and `autoprune status` reads what
the search noted last. Nothing here looks at a clock: times are given.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoprune.search.trial_times import MeasuredTrials, TrialTimes

_PRIOR_SHARE = 0.05
"""An expectation weighs as much as this share of a part, beside what was measured of that part."""

_PRIOR_TRIALS = 2.0
"""An expectation weighs at least as much as so many trials: one that harms a model ends early, and is no measure."""

_LEAST_SHARE = 0.03
"""Share of a part that is still expected when it takes longer than expected: an end is not announced."""

_AT_ONCE_SHARE = 0.05
"""A part that begins with the end of its first trial: in this share of a trial's time none was run."""

_MORE_TRIALS = 1
"""Trials of a rung that do not come from the one before it, about: a policy that fine-tuned ones suggest."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a search: `units` of work (models, examples, trials) of `unit_s` seconds each.

    Parts of one `group` may alternate; a part is over when one of a later group begins. Parts that are trials have
    `passes`, the sample passes of one of them; `slots` of them run at the same time, and in each slot the teacher
    answers `taught` examples once. `announced` trials are all told when the part begins, while other rungs get more on
    the way; a part with `one_for_each` has a unit for each one of that part.
    """

    name: str
    group: int
    units: float = 1.0
    unit_s: float = 0.0
    passes: float | None = None
    tuned: bool = False
    taught: float = 0.0
    slots: int = 1
    announced: bool = False
    one_for_each: str = ""

    def seconds(self, times: TrialTimes, units: float | None = None) -> float:
        """Return the expected seconds of `units` of it (default: all), given the times of trials."""
        count = self.units if units is None else units
        if self.passes is None or not count:
            return count * self.unit_s
        rounds = math.ceil(count / self.slots)
        return rounds * times.seconds(self.passes, tuned=self.tuned) + times.teach_s * self.taught


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """Seconds that a search will still take, what that is computed from, and how far it is.

    `seconds_by_part` are those of the parts that are not over. `trials` and `sample_passes` are those so far.
    """

    seconds: float
    basis: str
    seconds_by_part: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0
    sample_passes: float = 0.0


@dataclass
class _Course:
    """Where a part stands: when it began (again), the units done by then and now, and whether it is over.

    `last_s` are the seconds from the begin until the last unit was done, and `ends_s` until each further trial was.
    """

    begun_s: float
    first: float | None = None
    done: float = 0.0
    last_s: float = 0.0
    ends_s: list[float] = field(default_factory=list)
    over: bool = False

    def trials(self, slots: int) -> tuple[list[float], list[float]]:
        """Return the seconds that finished trials took, and when the ones began that run in all slots."""
        seconds, begins = [], [0.0] * slots
        for end_s in self.ends_s:  # whatever began first ends first, about
            seconds.append(end_s - heapq.heapreplace(begins, end_s))
        return seconds, sorted(begins)


@dataclass(kw_only=True)
class TimeEstimate:
    """The parts of a search in their order, and what is known of each.

    Args:
        parts: in the order in which they come.
        times: of trials, before any was measured.
        basis: what `times` are from, in words.
    """

    parts: dict[str, Part]
    times: TrialTimes
    basis: str
    measured: dict[str, MeasuredTrials] = field(default_factory=dict)
    """Trials of each part that has some."""
    _current: str | None = None
    _courses: dict[str, _Course] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Sequence[Part], times: TrialTimes, basis: str) -> TimeEstimate:
        """Return the estimate of a search that has not begun."""
        return cls(parts={part.name: part for part in parts}, times=times, basis=basis)

    def expect(self, parts: Sequence[Part], times: TrialTimes, basis: str) -> None:
        """Take new expectations; what was measured stays."""
        self.parts = {part.name: part for part in parts}
        self.times, self.basis = times, basis

    def begin(self, name: str, now_s: float) -> None:
        """Note that a part begins or goes on: parts of earlier groups are over, those of later ones are ahead (again).

        A name that is no part belongs to what comes before the next one.
        """
        self._current = name if name in self.parts else None
        if self._current is None:
            return
        group = self.parts[name].group
        for part in self.parts.values():
            if part.group < group or part.name in self._courses:
                self._courses.setdefault(part.name, _Course(now_s)).over = part.group < group
        course = self._courses.setdefault(name, _Course(now_s))
        course.begun_s, course.first, course.last_s, course.over = now_s, None, 0.0, False
        course.ends_s.clear()

    def advance(self, done: float, total: float, now_s: float) -> None:
        """Note how much of the current part is done, of what is known of it."""
        if self._current is None:
            return
        course, part = self._courses[self._current], self.parts[self._current]
        trials, course.last_s = part.passes is not None, now_s - course.begun_s
        if course.first is None and done:  # a part that goes on does not begin at 0: trials are told one by one
            at_once = course.last_s < _AT_ONCE_SHARE * part.seconds(self.trial_times(), units=1)
            course.first = course.done = max(done - (not at_once), 0.0) if trials else 0.0
        if trials:
            course.ends_s += [course.last_s] * round(done - course.done)
        course.done = done
        units = max(total, part.units) if trials and not part.announced else total
        self.parts[self._current] = replace(part, units=units)

    def learn(self, name: str, trials: MeasuredTrials) -> None:
        """Take what the trials of a part took."""
        self.measured[name] = trials

    def trial_times(self) -> TrialTimes:
        """Return the times of trials by what was measured so far."""
        return self.times.corrected(self.measured.values())

    def remaining(self, now_s: float) -> Remaining:
        """Return what is left at `now_s`, on the clock of `begin` and `advance`."""
        times = self.trial_times()
        left = {part.name: self._left(part, times, now_s) for part in self._attainable()}
        known = self.measured.values()
        return Remaining(
            seconds=sum(left.values()),
            basis=self._basis(),
            seconds_by_part={name: seconds for name, seconds in left.items() if seconds > 0},
            trials=sum(trials.count for trials in known),
            sample_passes=sum(trials.passes * trials.count for trials in known),
        )

    def _attainable(self) -> Iterator[Part]:
        """Yield the parts; a rung has few more trials than the one before it, from which its policies come."""
        most = math.inf
        for part in self.parts.values():
            course = self._courses.get(part.name)
            if part.tuned and course is None:
                part = replace(part, units=min(part.units, most))
            if course is None and part.one_for_each in self._courses:
                part = replace(part, units=self.parts[part.one_for_each].units)
            yield part
            if part.passes is not None:
                most = _MORE_TRIALS + (course.done if course is not None and course.over else part.units)

    def _left(self, part: Part, times: TrialTimes, now_s: float) -> float:
        course = self._courses.get(part.name)
        if course is not None and course.over:
            return 0.0
        if course is None or part.name != self._current:
            part, done = self._with_measured_passes(part), course.done if course else 0.0
            return part.seconds(times, units=max(part.units - done, 0.0))
        elapsed, ahead = now_s - course.begun_s, max(part.units - course.done, 0.0)
        if not ahead:
            return 0.0
        if part.passes is not None:
            return self._trials_left(self._as_other_rungs(part), course, times, ahead, elapsed)
        expected = part.seconds(times)
        if course.done:
            unit_s = (course.last_s + _PRIOR_SHARE * expected) / (course.done + _PRIOR_SHARE * part.units)
            expected = course.last_s + unit_s * ahead
        return max(expected - elapsed, _LEAST_SHARE * expected)

    def _trials_left(self, part: Part, course: _Course, times: TrialTimes, ahead: float, elapsed: float) -> float:
        """Return the seconds until `ahead` more trials have run, those that run now among them, in the part's slots.

        Some end early. One that has run for longer than all of those is as long as expected.
        """
        taken, begins = course.trials(part.slots)
        taught_s, expected = times.teach_s * part.taught, part.seconds(times, units=1) - times.teach_s * part.taught
        # The teacher answers during the first trial of a slot.
        seen = sum(taken) - taught_s * min(len(taken), part.slots)
        prior = max(_PRIOR_SHARE * part.units, _PRIOR_TRIALS)
        trial_s = max(seen + prior * expected, 0.0) / (len(taken) + prior)
        whole_s = max(trial_s, expected)
        longest = max(taken, default=math.inf)
        likely_s = [trial_s if elapsed - begun < longest else whole_s for begun in begins]
        first_s = [s + (taught_s if not begun else 0.0) for begun, s in zip(begins, likely_s, strict=True)]
        running = min(math.ceil(ahead), part.slots)
        ends = [max(begun + s - elapsed, _LEAST_SHARE * s) for begun, s in zip(begins, first_s, strict=True)][:running]
        heapq.heapify(ends)
        for _ in range(math.ceil(ahead) - running):
            heapq.heapreplace(ends, ends[0] + trial_s)
        return max(ends)

    def _with_measured_passes(self, part: Part) -> Part:
        """Return a part that is trials with the passes that its trials took, or as the dearest rung like it was off."""
        if part.passes is not None and part.name in self.measured:
            return replace(part, passes=self.measured[part.name].passes)
        return self._as_other_rungs(part)

    def _as_other_rungs(self, part: Part) -> Part:
        """Return a part that is trials with the passes that the dearest other rung like it was off by."""
        if part.passes is None:
            return part
        known = [name for name in self.measured if name in self.parts and name != part.name]
        alike = [name for name in known if self.measured[name].tuned == part.tuned]
        dearest = max(alike, key=list(self.parts).index, default=None)  # rungs are in the order of their fidelities
        expected = self.parts[dearest].passes if dearest else None
        if dearest is None or not expected:
            return part
        # What a rung takes beyond its expectation is calibration, which every trial has once, and models that cost
        # more, in proportion to the passes: nothing tells how much of it is which, so the middle of both counts.
        measured = self.measured[dearest].passes
        added, scaled = part.passes + measured - expected, part.passes * measured / expected
        return replace(part, passes=math.sqrt(max(added, 0.0) * scaled))

    def _basis(self) -> str:
        count = sum(trials.count for trials in self.measured.values())
        if not count:
            return f"from {self.basis}"
        ahead = any(
            part.passes and part.name not in self.measured and not self._is_over(part) for part in self.parts.values()
        )
        passes = " and the sample passes of the next ones" if ahead else ""
        return f"from {count} finished trial{'s' if count > 1 else ''}{passes}"

    def _is_over(self, part: Part) -> bool:
        course = self._courses.get(part.name)
        return course is not None and course.over
