"""Announcements before a search, and its progress as events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from autoprune.budgets import Limit
from autoprune.config import RunConfig
from autoprune.evaluation import DenseModel
from autoprune.pipeline.cost_model import CostModel, largest_share
from autoprune.pipeline.dense import seconds_per_pass
from autoprune.pipeline.events import FULL, Events, TakesTrials, rung_title
from autoprune.pipeline.score_budgets import MOST_LATENCIES
from autoprune.records import SearchSpace
from autoprune.search.controller import Outcome
from autoprune.search.effort import Effort, proxy_passes
from autoprune.search.explore import SENSITIVITY
from autoprune.search.rung import Progress
from autoprune.search.sensitivity import anchor_policies
from autoprune.study.samplers import GP_SECONDS
from autoprune.task.batches import length


class RungWatcher:
    """Turns the progress of a rung into events; a new rung is a new stage.

    The first rung is a stage when its first trial has finished: workers start before.
    """

    def __init__(self, limits: Mapping[str, Limit], events: Events) -> None:
        self._events = events
        self._limits = limits
        self._rung = ""

    def begin(self, rung: str) -> None:
        """Report that trials of a rung run."""
        if self._rung:
            self._enter(rung)

    def __call__(self, progress: Progress) -> None:
        """Report one step of a rung."""
        title = rung_title(progress.rung)
        self._enter(progress.rung)
        names = _names(self._limits)
        best = [
            f"{names[limit]} {score:.3f} (divergence {progress.best_loss[limit]:.2f})"
            for limit, score in progress.best_score.items()
        ]
        detail = f"best of this rung: {', '.join(best)}" if best else ""
        _tell_trials(self._events, title, self._limits, progress, detail)

    def _enter(self, rung: str) -> None:
        if rung != self._rung:
            self._rung = rung
            self._events.stage(rung_title(rung))


class FullWatcher:
    """Tells the steps of full fine-tunes, whose stage has begun."""

    def __init__(self, limits: Mapping[str, Limit], events: Events) -> None:
        self._limits, self._events = limits, events

    def begin(self, rung: str) -> None:
        """Nothing is to be told."""

    def __call__(self, progress: Progress) -> None:
        """Report one step."""
        _tell_trials(self._events, FULL, self._limits, progress)


def _tell_trials(events: Events, title: str, limits: Mapping[str, Limit], progress: Progress, detail: str = "") -> None:
    """Tell a step of a rung, and its trials to events that want to know them, with the names of their budgets."""
    if isinstance(events, TakesTrials):
        events.trials(title, replace(progress, budgets=_names(limits)))
    events.advance(progress.done, progress.total, detail)


def _names(limits: Mapping[str, Limit]) -> dict[Limit, str]:
    return {limit: budget for budget, limit in limits.items()}


def announce(
    config: RunConfig,
    space: SearchSpace,
    dense_model: DenseModel,
    costs: CostModel,
    effort: Effort,
    slots: int,
    events: Events,
    *,
    spent: float = 0.0,
) -> None:
    """Note what the effort means on `slots` workers.

    `spent` are the sample passes that the test of the recipe took before.
    """
    for fidelity, count in effort.trials_at(len(costs.limits)).items():
        samples = fidelity.finetune_samples
        tuning = f"{samples:,} samples of fine-tuning" if samples else "no fine-tuning"
        events.note(f"{fidelity.name}: about {count} policies, {tuning}")
    apart = len(anchor_policies(space)) if config.strategy == "guided" else 0
    if apart:
        events.note(f"{SENSITIVITY}: {apart} policies, in each of which one unit is narrower")
    examples = length(dense_model.task.val_set)
    share = float(np.mean([largest_share(limit, costs.dense_costs) for limit in costs.limits.values()]))
    passes = effort.expected_passes(budgets=len(costs.limits), val_examples=examples, share=share, apart=apart)
    recipe = f" with {spent:,.0f} for the recipe" if spent else ""
    events.note(f"at most {passes + spent:,.0f} sample passes{recipe}, on {slots} worker{'s' if slots > 1 else ''}")
    if config.score_budgets():
        events.note(
            f"that is the first search: a budget by score goes on with at most {MOST_LATENCIES} further latencies, "
            "one after the other"
        )
    if config.strategy != "direct" or config.sampler != "gp":
        return
    each_s = seconds_per_pass(dense_model.task, dense_model.module)
    proxy_s = share * proxy_passes(effort, examples) * each_s / slots
    if proxy_s < GP_SECONDS:
        events.note(
            f"the gp sampler takes a minute or more for a proposal in a large space, and workers finish one every "
            f"{proxy_s:.1g} s: they will wait for it. --sampler tpe keeps up."
        )


def note_outcome(outcome: Outcome, events: Events) -> None:
    """Note what every rung took, and what the search says about itself."""
    for name, rung in outcome.results.items():
        failed = sum(result.status == "failed" for result in rung)
        passes = sum(result.sample_passes for result in rung)
        policies = "1 policy" if len(rung) == 1 else f"{len(rung)} policies"
        text = f"{name}: {policies}, {passes:,.0f} sample passes"
        undone = sum(result.undone for result in rung)
        text += f", {failed} failed" if failed else ""
        tunings = "1 fine-tuning" if undone == 1 else f"{undone} fine-tunings"
        events.note(text + (f", {tunings} undone, which lowered the score" if undone else ""))
    for line in (*outcome.notes, *map(str, outcome.correlations)):
        events.note(line)
