"""Progress of the studies of a run, read from outside: nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.study.location import StudyLocation, file_of, is_empty
from autoprune.study.reading import StoredStudy, StoredTrial, stored_studies
from autoprune.study.spec import SPEC_KEY
from autoprune.trials import TrialResult

_ROUNDING = 1e-5
_RECENT = 20
"""Trials that the throughput is taken from."""


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """One study: trials by status, attempts that were lost, best score by limit, the latest failures.

    `earlier` trials were taken over from a study with other limits. `per_minute` is the throughput of the last
    `recent` trials while any was worked on (`None` before there are two).
    """

    name: str
    counts: Mapping[str, int]
    lost: int
    earlier: int
    best: Mapping[str, float]
    failures: Sequence[str]
    recent: int
    per_minute: float | None

    @property
    def open(self) -> int:
        """Trials that were handed out and have no result."""
        return self.counts.get("running", 0)


def study_states(location: StudyLocation) -> list[StudyStatus]:
    """The state of every study of a run, in the order in which they were begun."""
    file = file_of(location)
    if file is not None and file.exists() and is_empty(location):
        return []  # its run is preparing
    return [_status(study) for study in stored_studies(location)]


def _status(study: StoredStudy) -> StudyStatus:
    trials = _without_superseded(study.trials)
    results = [TrialResult.from_json(t.attributes["result"]) for t in trials if "result" in t.attributes]
    counts = Counter(result.status for result in results)
    counts["running"] = sum(t.is_running and "result" not in t.attributes for t in trials)
    recent = _worked(trials)[-_RECENT:]
    best = {}
    for most in study.attributes.get(SPEC_KEY, {}).get("limits", ()):  # which were rounded when they were stored
        roomy = Limit.of(**{cost: amount * (1 + _ROUNDING) for cost, amount in most.items()})
        for result in best_within(results, roomy, 1):
            if result.measurement is not None:
                best[str(Limit.from_json(most))] = result.measurement.score
    return StudyStatus(
        name=study.name,
        counts={status: count for status, count in counts.items() if count},
        lost=sum(a["status"] == "lost" for t in trials for a in t.attributes.get("attempts", ())),
        earlier=sum("result" in t.attributes and "slot" not in t.attributes for t in trials),
        best=best,
        failures=_failures(trials),
        recent=len(recent),
        per_minute=_throughput(recent),
    )


def _without_superseded(trials: Sequence[StoredTrial]) -> list[StoredTrial]:
    """Trials without those that failed and whose policy was handed out once more."""
    last = {t.attributes["digest"]: t.number for t in trials if "slot" in t.attributes}
    failed = {t.number for t in trials if t.attributes.get("result", {}).get("status") == "failed"}
    return [t for t in trials if t.number not in failed or last.get(t.attributes["digest"], t.number) <= t.number]


def _worked(trials: Sequence[StoredTrial]) -> list[tuple[datetime, datetime]]:
    """When trials of this study were worked on, in the order in which they ended."""
    times = []
    for trial in trials:
        if trial.ended and trial.attributes.keys() >= {"slot", "result"}:
            seconds = TrialResult.from_json(trial.attributes["result"]).seconds
            times.append((trial.ended - timedelta(seconds=seconds), trial.ended))
    return sorted(times, key=lambda interval: interval[1])


def _throughput(worked: Sequence[tuple[datetime, datetime]]) -> float | None:
    """Trials a minute, for times from begin to end in which they were worked on; gaps between them do not count."""
    if len(worked) < 2:
        return None
    seconds, reached = 0.0, min(worked)[0]
    for begin, end in sorted(worked):
        seconds += max((end - max(begin, reached)).total_seconds(), 0.0)
        reached = max(reached, end)
    return len(worked) / seconds * 60 if seconds > 0 else None


def _failures(trials: Sequence[StoredTrial]) -> list[str]:
    """Why attempts failed or were lost, the latest last."""
    return [
        f"trial {trial.number}, attempt {number} {attempt['status']}: {attempt['reason']}"
        for trial in trials
        for number, attempt in enumerate(trial.attributes.get("attempts", ()), start=1)
    ]
