"""Run one rung: hand its trials to an executor, record their results and tell the progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.executors.base import Executor
from autoprune.study.broker import Broker
from autoprune.trials import TrialResult


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a rung stands after its `last` trial: counts, loss and score of the best within each limit, and its time.

    `trial_seconds` and `trial_passes` are the means of its trials that were run to an end, also before a resumption.
    `budgets` names the limits.
    """

    rung: str
    last: TrialResult
    done: int
    total: int
    best_loss: Mapping[Limit, float]
    best_score: Mapping[Limit, float]
    seconds: float
    trial_seconds: float
    trial_passes: float
    budgets: Mapping[Limit, str] = field(default_factory=dict)


class RungObserver(Protocol):
    """Told when trials of a rung begin to run, and after every finished one."""

    def begin(self, rung: str) -> None:
        """Trials of the rung run from now on."""
        ...

    def __call__(self, progress: Progress) -> None:
        """One more trial has finished."""
        ...


Refill = Callable[[Broker], bool]
"""Enqueues more policies in a broker; returns whether there were any."""


def run_rung(
    broker: Broker,
    executor: Executor,
    limits: Sequence[Limit],
    name: str,
    on_event: RungObserver | None = None,
    refill: Refill | None = None,
    *,
    spare: bool = False,
) -> list[TrialResult]:
    """Run all trials of a rung and return its results.

    Args:
        broker: open study of the rung, with policies in its queue or a sampler.
        executor: runs the trials.
        limits: the progress has the best policy within each limit.
        name: the rung as messages call it.
        on_event: told when the first trials run, and called after every finished one.
        refill: called before trials are handed out; enqueues more.
        spare: allow a rung without trials, because the strategy has other policies.

    Raises:
        TrialError: no trial worked.
    """
    start, begun = time.monotonic(), False
    while _hand_out(broker, executor, refill):
        if on_event and not begun:
            on_event.begin(name)
        begun = True
        result = executor.wait()
        again = broker.finish(result)
        if again is not None:
            executor.submit(again)
        elif on_event:
            on_event(_progress(broker, limits, name, result, time.monotonic() - start))
    results = broker.results()
    if results or not spare:
        _require_one(results, name)
    return results


def _hand_out(broker: Broker, executor: Executor, refill: Refill | None) -> bool:
    """Submit every trial that can start now; return whether a trial is running.

    `refill` is asked again while every policy that it proposes is settled without a trial.
    """
    while True:
        more = refill(broker) if refill else False
        for spec in broker.asked():
            executor.submit(spec)
        if broker.running or not more:
            return broker.running > 0


def _progress(broker: Broker, limits: Sequence[Limit], name: str, last: TrialResult, seconds: float) -> Progress:
    results = broker.results()
    best = {limit: best_within(results, limit, 1) for limit in limits}
    run = [result for result in results if result.seconds > 0] or results
    return Progress(
        rung=name,
        last=last,
        done=broker.finished,
        total=broker.total,
        best_loss={limit: r[0].measurement.loss for limit, r in best.items() if r and r[0].measurement},
        best_score={limit: r[0].measurement.score for limit, r in best.items() if r and r[0].measurement},
        seconds=seconds,
        trial_seconds=sum(result.seconds for result in run) / max(len(run), 1),
        trial_passes=sum(result.sample_passes for result in run) / max(len(run), 1),
    )


def _require_one(results: Sequence[TrialResult], name: str) -> None:
    if any(result.status == "done" for result in results):
        return
    reasons = Counter(result.error for result in results if result.status == "failed")
    if not reasons:
        raise TrialError(f"rung {name!r} ran no trial: no proposed policy fits the budgets. Raise them.")
    reason, count = reasons.most_common(1)[0]
    raise TrialError(f"all {len(results)} trials of rung {name!r} failed, {count} of them with: {reason}")
