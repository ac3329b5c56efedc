"""Expectations of time that a search gives to its events: before the table, before the trials and after an export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from autoprune.allocation.uniform import uniform_policies
from autoprune.config import RunConfig
from autoprune.pipeline.cost_model import CostModel, largest_share
from autoprune.pipeline.dense import seconds_per_pass
from autoprune.pipeline.events import Events
from autoprune.pipeline.expected_work import (
    Timed,
    baselines_of,
    calibration_of,
    derived_effort,
    expected_work,
    has_int8,
    run_seconds,
    shared_out_kinds,
    start_seconds,
    usual_times,
)
from autoprune.pipeline.measurer import CANDIDATE_PROTOCOL
from autoprune.pipeline.rehearsal import Rehearsed, rehearsed_times
from autoprune.pipeline.time_limit import table_limit
from autoprune.pipeline.timed_events import TimedEvents
from autoprune.profiling.duration import LOAD_S, MAX_SECONDS, MOST_TIMES_AS_LONG, ProfileSize, seconds_each
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder, read_json
from autoprune.search.sensitivity import anchor_policies
from autoprune.structure import ModelForm, Structure
from autoprune.task.base import Task

_REHEARSED = "a few short trials"


def watch_time(
    events: Events,
    config: RunConfig,
    task: Task,
    structure: Structure,
    space: SearchSpace,
    dense: nn.Module,
    folder: RunFolder,
) -> float:
    """Have the events tell from now on how long the search takes, if they can.

    Returns:
        The seconds that the latency table may take.

    Raises:
        UsageError: when the run has a limit of time into which not even the least of it fits.
    """
    if not isinstance(events, TimedEvents):
        return MAX_SECONDS
    pass_s, analysis_s = seconds_per_pass(task, dense), events.seconds_in_stage
    run_s, size = run_seconds(structure, dense), ProfileSize.of(structure, space)
    usual = usual_times(pass_s, analysis_s)
    form = _form(folder)
    rehearsed = rehearsed_times(config, task, structure, space, dense, form, usual)
    timed = Timed(
        basis=_REHEARSED if rehearsed.times.rehearsed else "the time of a sample pass",
        pass_s=pass_s,
        run_s=run_s,
        profile=size,
        analysis_s=analysis_s,
        start_s=start_seconds(events.import_cpu_s, analysis_s),
        times=rehearsed.times,
        half_cost=rehearsed.half_cost,
        load=events.load,
    )
    effort, slower = derived_effort(config, task), min(events.load, MOST_TIMES_AS_LONG)
    events.expect(expected_work(config, task, structure, space, effort, timed, folder))
    if folder.table.exists() or config.table is not None:
        limit_s = table_limit(events, lambda most_s: 0.0)
    else:
        limit_s = table_limit(events, lambda most_s: slower * size.seconds(run_s, most_s))
    events.profile.rounds, events.profile.max_seconds = size.rounds, slower * limit_s
    return limit_s


def watch_trials(
    events: Events,
    config: RunConfig,
    task: Task,
    structure: Structure,
    costs: CostModel,
    space: SearchSpace,
    dense: nn.Module,
    folder: RunFolder,
) -> None:
    """Correct what the events tell by short trials of the space that is searched, and by its budgets."""
    if not isinstance(events, TimedEvents) or events.work is None:
        return
    work = events.work
    rehearsed = Rehearsed(times=work.times, half_cost=work.half_cost)
    if space.layer_names or work.treated or not work.times.rehearsed:  # other trials than those that were rehearsed
        rehearsed = rehearsed_times(config, task, structure, space, dense, _form(folder), work.times)
    share = float(np.mean([largest_share(limit, costs.dense_costs) for limit in costs.limits.values()]))
    apart = len(anchor_policies(space)) if config.strategy == "guided" else 0
    basis = _REHEARSED if rehearsed.times.rehearsed else work.basis
    limits = costs.limits.values()
    uniform = [uniform_policies(space, structure.full_widths, costs.limited_costs, limit) for limit in limits]
    baselines = float(np.mean([len(policies) for policies in uniform])) + shared_out_kinds(space)
    work = replace(work, table_models=0, times=rehearsed.times, half_cost=rehearsed.half_cost, basis=basis)
    work = replace(work, share=share, apart=apart, int8_alone=has_int8(space))
    events.expect(replace(work, baselines=baselines, calibration=calibration_of(space)))


def _form(folder: RunFolder) -> ModelForm:
    return ModelForm.from_json(read_json(folder.form, "name", "reason", "notes"))


def watch_space(events: Events, space: SearchSpace) -> None:
    """Correct what the events tell by the space that a table is made for, once it is decided."""
    if isinstance(events, TimedEvents) and events.work is not None:
        work = replace(events.work, baselines=baselines_of(space), int8_alone=has_int8(space))
        events.expect(replace(work, calibration=calibration_of(space)))


def watch_export(events: Events, dense_ms: float, export_s: float) -> None:
    """Correct what the events tell by the seconds that exporting and scoring the dense model took, and by the load."""
    if isinstance(events, TimedEvents) and events.work is not None:
        work, load = events.work, events.load
        timing_s = load * seconds_each(dense_ms / 1e3, LOAD_S, CANDIDATE_PROTOCOL)
        start_s = work.start_s * load / work.load
        events.expect(replace(work, export_s=export_s + timing_s, start_s=start_s, load=load))
