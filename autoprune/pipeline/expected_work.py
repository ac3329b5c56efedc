"""The work that a search has ahead, from its task, its configuration and what was timed on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.allocation.uniform import uniform_kinds
from autoprune.budgets import Budget
from autoprune.config import RunConfig
from autoprune.evaluation import RECONSTRUCTION_EXAMPLES
from autoprune.evaluation.calibration_examples import CALIBRATION_EXAMPLES
from autoprune.pipeline.baselines import SHARED_OUT
from autoprune.pipeline.channel_order import MOMENT_EXAMPLES, OBS
from autoprune.pipeline.measurer import CANDIDATE_PROTOCOL
from autoprune.pipeline.score_budgets import MOST_LATENCIES
from autoprune.pipeline.time_parts import Work
from autoprune.profiling.duration import (
    LOAD_S,
    ProfileSize,
    seconds_each,
)
from autoprune.quantization.calibration import calibration_passes
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder
from autoprune.search.effort import Effort
from autoprune.search.sensitivity import anchor_policies
from autoprune.search.trial_times import TrialTimes
from autoprune.structure import Structure
from autoprune.task.base import Task
from autoprune.task.batches import length
from autoprune.training.recipe_search import expected_passes
from autoprune.treatments import INT8, INT8_DYNAMIC
from autoprune.trials import FORWARD_SHARE

_RUNS = 5
"""Runs of the dense model of which the fastest counts: the first fills caches, and others wait for other work."""

_MOST_IMPORT_S = 5.0
"""A process that computed longer before the search did other things than importing, which workers do again."""

_REOPENING_SHARE = 0.5
"""Workers analyse the model, but need not decide in which form it is trained. Measured: 0.2 to 0.6 of its analysis."""

_USUAL_SHARE = 0.5
"""Cost of a policy on a budget that names no share of the dense latency, as a share of the dense model's."""


def derived_effort(config: RunConfig, task: Task) -> Effort:
    """Return the effort of a configuration for the data of a task."""
    return Effort.derive(
        config.effort,
        train_examples=length(task.train_set),
        val_examples=length(task.val_set),
        trials=config.trials,
        full_epochs=task.full_epochs,
    )


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds that were measured on this machine.

    Args:
        basis: how, in words.
        pass_s: of a sample pass of the dense model, on one thread.
        run_s: of one run of the dense model on the target.
        profile: how many models its latency table takes.
        analysis_s: of analysing the model; what else is done with its graph takes in proportion.
        start_s: until workers are ready.
        times: of trials; `usual_times` where none was tried.
        half_cost: sample passes of a model of half the widths, as a share of the dense model's.
        export_s: of an export; the exporter takes two for the smallest model.
        load: seconds that pass for each one that this process computes.
    """

    basis: str
    pass_s: float
    run_s: float
    profile: ProfileSize
    analysis_s: float
    start_s: float
    times: TrialTimes
    half_cost: float = 0.5
    export_s: float = 2.0
    load: float = 1.0


def usual_times(pass_s: float, analysis_s: float) -> TrialTimes:
    """Return the usual times of trials: shrinking a model takes about a tenth of its analysis, proving it a half."""
    return TrialTimes(
        fixed_s=0.1 * analysis_s, tuned_fixed_s=0.5 * analysis_s, pass_s=pass_s, teach_s=FORWARD_SHARE * pass_s
    )


def expected_work(
    config: RunConfig,
    task: Task,
    structure: Structure,
    space: SearchSpace,
    effort: Effort,
    timed: Timed,
    folder: RunFolder | None = None,
) -> Work:
    """Return what a search has to do; what its folder holds already is not done again.

    Args:
        config: of the search.
        task: whose data are counted.
        structure: of its model.
        space: the widths that are scanned, or those that are searched.
        effort: trials and fidelities.
        timed: what was measured.
        folder: of the run, if there is one.
    """
    train, val, test = (length(data) for data in (task.train_set, task.val_set, task.test_set))
    share, has = budget_share(config), _Finished.of(config, task, folder)
    moments = MOMENT_EXAMPLES if OBS in config.scores else 0
    ranking_s = FORWARD_SHARE * (moments + RECONSTRUCTION_EXAMPLES) * timed.pass_s + 0.3 * timed.analysis_s
    timing_s = seconds_each(timed.run_s, LOAD_S, CANDIDATE_PROTOCOL)
    guided = config.strategy == "guided"
    models = timed.profile.models(timed.run_s)
    return Work(
        effort=effort,
        budgets=len(config.parsed_budgets()),
        baselines=baselines_of(space),
        shared_out=shared_out_kinds(space),
        int8_alone=has_int8(space),
        treated=bool(space.layer_names),
        calibration=calibration_of(space),
        share=share,
        apart=len(anchor_policies(space)) if guided else 0,
        val_examples=val,
        slots=config.slots,
        guided=guided,
        taught=task.train_step is None and (task.tuning_recipe.distill_weight > 0 or not task.trains),
        table_models=0 if has.table else models,
        table_model_s=timed.load * timed.profile.seconds(timed.run_s) / models,
        dense_passes=0 if has.dense else task.dense_epochs * train,
        recipe_passes=0 if has.recipe else expected_passes(task, share),
        basis=timed.basis,
        pass_s=timed.pass_s,
        times=timed.times,
        order_s=0 if has.order else ranking_s,
        half_cost=timed.half_cost,
        export_s=timed.load * (timed.export_s + timing_s) + FORWARD_SHARE * timed.pass_s * (val + test),
        start_s=timed.load * timed.start_s if config.executor != "inline" else 0.0,
        uncounted=_uncounted(config),
        load=timed.load,
    )


def baselines_of(space: SearchSpace) -> int:
    """Return about how many models of a budget are fine-tuned in full beside its finalists."""
    return uniform_kinds(space) + shared_out_kinds(space)


def shared_out_kinds(space: SearchSpace) -> int:
    """Return how many baselines of a budget share out zeros; none in a space without zeros."""
    return len(SHARED_OUT) if space.timed() is not space else 0


def has_int8(space: SearchSpace) -> bool:
    """Return whether the dense model in int8 is a baseline of a search."""
    return any(level in (INT8, INT8_DYNAMIC) for name in space.layer_names for level in space.levels[name])


def calibration_of(space: SearchSpace) -> float:
    """Return the sample passes of calibrating a model of the dense model's size; none in a space without int8."""
    return FORWARD_SHARE * calibration_passes(CALIBRATION_EXAMPLES, quick=False) if has_int8(space) else 0.0


def _uncounted(config: RunConfig) -> str:
    """Return what a search by score may take beside its first latencies; nothing for other budgets."""
    most = MOST_LATENCIES * len(config.score_budgets())
    return f"without up to {most} further latencies that budgets by score search" if most else ""


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """Results that a run has already, or is given."""

    table: bool
    dense: bool
    order: bool
    recipe: bool

    @classmethod
    def of(cls, config: RunConfig, task: Task, folder: RunFolder | None) -> _Finished:
        given = {
            "table": config.table is not None or not config.needs_latency,
            "dense": config.dense is not None or task.recipe is None,
        }
        if folder is None:
            return cls(**given, order=False, recipe=False)
        return cls(
            table=given["table"] or folder.table.exists(),
            dense=given["dense"] or folder.dense.exists(),
            order=folder.order.exists(),
            recipe=folder.recipe.exists() or folder.has_results,
        )


def budget_share(config: RunConfig) -> float:
    """Return the mean share of the dense model's cost that the budgets leave, where they say it as a share."""
    shares = [_share(budget) for budget in config.parsed_budgets()]
    return sum(shares) / len(shares)


def _share(budget: Budget) -> float:
    amounts = [bound.number for bound in budget.bounds if bound.unit == "%"]
    return min([1.0, *(amount / 100 for amount in amounts)]) if amounts else _USUAL_SHARE


def start_seconds(import_s: float, analysis_s: float) -> float:
    """Return the seconds until workers are ready, by those that this process took to begin and to analyse the model."""
    return min(import_s, _MOST_IMPORT_S) + _REOPENING_SHARE * analysis_s


def run_seconds(structure: Structure, dense: nn.Module) -> float:
    """Return about the seconds of one run of the dense model on its examples: PyTorch's, before a target is asked."""
    inputs, seconds = tuple(structure.example_inputs), []
    with torch.no_grad():
        for _ in range(_RUNS):
            start = time.perf_counter()
            dense(*inputs)
            seconds.append(time.perf_counter() - start)
    return min(seconds)
