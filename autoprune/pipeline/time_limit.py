"""A search that has a limit of time: what it leaves out, so that it ends in time with a verified front.

The time of all calls of a run counts. Before anything is spent, the search is refused if even the least of it does not
fit. The plan is made again when table and dense model are there, and the full fine-tunes once more when the rungs are
scored. What was planned is kept in the run folder: a search that has begun keeps its plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autoprune.errors import UsageError
from autoprune.manifest import Manifest
from autoprune.pipeline.events import Events
from autoprune.pipeline.time_parts import Work
from autoprune.pipeline.timed_events import TimedEvents
from autoprune.profiling.duration import MAX_SECONDS
from autoprune.report.durations import duration_text
from autoprune.runfolder import RunFolder, read_json
from autoprune.search.effort import Effort
from autoprune.search.effort_ladder import effort_from_json, effort_to_json, reduced_efforts, with_shorter_full

_PLANNED_SHARE = 0.85
"""Share of the time that is planned: estimates may be too short, and a model that misses its budget has a successor."""

_LEAST_TABLE_SECONDS = 5.0
_FULL_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1, 0.05)

TableSeconds = Callable[[float], float]
"""Seconds of a latency table, at most as long as it is told, or the least that it takes."""


def table_limit(events: Events, table_seconds: TableSeconds) -> float:
    """Return the seconds that a latency table may take.

    Args:
        events: know the limit of the run, if it has one, and the work ahead.
        table_seconds: what a table takes at most or at least.

    Raises:
        UsageError: when not even the least of the search fits.
    """
    if not isinstance(events, TimedEvents) or events.work is None or events.left_s is None:
        return MAX_SECONDS
    work, left_s = events.work, events.left_s
    tried, least_s, most = work, 0.0, MAX_SECONDS
    for reduced in reduced_efforts(work.effort, work.budgets):
        most = max(_LEAST_TABLE_SECONDS, reduced.share**0.5 * MAX_SECONDS)
        models = max(work.table_models, 1)
        tried = replace(work, effort=reduced.effort, table_model_s=table_seconds(most) / models)
        least_s = events.seconds_of(tried)
        if least_s <= _PLANNED_SHARE * left_s:
            events.expect(tried)
            return most
    if events.begun:
        return most
    parts = ", ".join(f"{name} {duration_text(s)}" for name, s in events.parts_of(tried).items() if s >= 1)
    raise UsageError(
        f"--max-time (max_minutes) leaves {duration_text(left_s)}, and the least of this search takes about "
        f"{duration_text(least_s / _PLANNED_SHARE)}: {parts}. Give it that, or fewer budgets or a --table"
    )


def planned_effort(events: Events, effort: Effort, folder: RunFolder) -> Effort:
    """Return the effort of a run as it was planned, or is planned now from the time that is left.

    A plan of a search that has not begun is made again: it may be of other options.
    """
    if folder.has_study:
        effort = _planned(folder) or effort
        _expect(events, effort)
        return effort
    Manifest(folder).forget(folder.effort)
    if not isinstance(events, TimedEvents) or events.work is None or events.left_s is None:
        return effort
    tried = events.work
    for reduced in reduced_efforts(effort, tried.budgets):
        tried = replace(tried, effort=reduced.effort)
        if events.seconds_of(tried) <= _PLANNED_SHARE * events.left_s:
            break
    events.expect(tried)
    _keep(folder, tried.effort, full_is_final=False)
    events.note(_plan_line(tried, events.left_s))
    return tried.effort


def with_full_in_time(effort: Effort, events: Events, folder: RunFolder) -> Effort:
    """Return an effort whose full fine-tunes fit into the time that is left; shorter ones where they do not.

    It is decided once: all full fine-tunes of a run are alike, those of later latencies and later calls, too.

    Args:
        effort: of the search; corrections of its table may have widened it.
        events: know the time that is left.
        folder: of the run, which keeps the decision.
    """
    planned = _planned(folder)
    if planned is None:
        return effort
    if read_json(folder.effort).get("full_is_final"):
        effort = replace(effort, full=planned.full)
        _expect(events, effort)
        return effort
    effort = _shortened(effort, events)
    _keep(folder, replace(planned, full=effort.full), full_is_final=True)
    return effort


def _shortened(effort: Effort, events: Events) -> Effort:
    if not isinstance(events, TimedEvents) or events.work is None or events.left_s is None:
        return effort
    tried = events.work
    for share in _FULL_SHARES:
        tried = replace(tried, effort=with_shorter_full(effort, share))
        if events.seconds_of(tried) <= _PLANNED_SHARE * events.left_s:
            break
    if tried.effort != effort:
        events.note(f"full fine-tunes take {tried.effort.full.finetune_samples:,} samples, to end in time")
    events.expect(tried)
    return tried.effort


def allows(events: Events, seconds: float) -> bool:
    """Return whether a search may do something more that takes so many seconds; always without a limit of time."""
    if not isinstance(events, TimedEvents) or events.left_s is None:
        return True
    return events.seconds_of(events.work) + seconds <= events.left_s if events.work else False


def _expect(events: Events, effort: Effort) -> None:
    """Have the events reckon with an effort, if they reckon with time."""
    if isinstance(events, TimedEvents) and events.work is not None:
        events.expect(replace(events.work, effort=effort))


def _planned(folder: RunFolder) -> Effort | None:
    """Return the plan that a run keeps, if it has one."""
    return effort_from_json(read_json(folder.effort, "effort")["effort"]) if folder.effort.exists() else None


def _keep(folder: RunFolder, effort: Effort, *, full_is_final: bool) -> None:
    Manifest(folder).write_json(folder.effort, {"effort": effort_to_json(effort), "full_is_final": full_is_final})


def _plan_line(work: Work, left_s: float) -> str:
    effort = work.effort
    rungs = ", ".join(f"{f.name} {count}" for f, count in effort.trials_at(work.budgets).items())
    return (
        f"planned for the {duration_text(left_s)} that are left: at most so many policies: {rungs}; full fine-tunes of "
        f"{effort.full.finetune_samples:,} samples"
    )
