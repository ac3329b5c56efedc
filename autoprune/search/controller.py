"""The loop of a search: fill the first rung, promote, fill the next; the same for every executor."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.records import SearchSpace
from autoprune.search.broker import Broker
from autoprune.search.effort import Effort
from autoprune.search.executors.base import Executor
from autoprune.search.limits import Predict, require_reachable
from autoprune.search.question import Question
from autoprune.search.rungs import best_within, promote
from autoprune.search.storage import storage_errors
from autoprune.search.strategies import start_of
from autoprune.search.uniform import baselines
from autoprune.trials import TrialResult


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a rung stands after a trial: counts, loss and score of the best within each limit, and its time."""

    rung: str
    done: int
    total: int
    best_loss: Mapping[Limit, float]
    best_score: Mapping[Limit, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that determines a search. `path` is the study's file."""

    path: Path
    space: SearchSpace
    dense_widths: Mapping[str, int]
    predict: Predict
    limits: tuple[Limit, ...]
    effort: Effort
    run_seed: int
    strategy: str = "direct"
    sampler: str = "tpe"


def run_search(
    search: Search, executor: Executor, on_event: Callable[[Progress], None] | None = None
) -> dict[str, list[TrialResult]]:
    """Run or resume a search; returns the results of every rung, by the name of its fidelity.

    Finished trials of an earlier call are kept. `BudgetError` when a limit is below what the space reaches,
    `TrialError` when a rung has no trial that worked. After KeyboardInterrupt the study can be resumed; closing the
    executor is the caller's job.
    """
    require_reachable(search.space, search.predict, {str(limit): limit for limit in search.limits})
    uniform = baselines(search.space, search.dense_widths, search.predict, search.limits)
    start = start_of(search.strategy, search.sampler, uniform)
    policies, sampler = start.fixed, start.sampler
    results: dict[str, list[TrialResult]] = {}
    for fidelity, promoted in zip(search.effort.rungs, [*search.effort.promoted, 0], strict=True):
        question = Question(space=search.space, fidelity=fidelity, limits=search.limits, run_seed=search.run_seed)
        broker = Broker(search.path, question, search.predict, sampler=sampler, trials=search.effort.trials)
        with storage_errors(search.path), broker:
            broker.enqueue(policies)
            results[fidelity.name] = run_rung(broker, executor, search.limits, fidelity.name, on_event)
        policies, sampler = promote(results[fidelity.name], uniform, search.limits, promoted), None
    return results


def run_rung(
    broker: Broker,
    executor: Executor,
    limits: Sequence[Limit],
    name: str,
    on_event: Callable[[Progress], None] | None = None,
) -> list[TrialResult]:
    """Run all trials of a rung, batch by batch; returns its results. `TrialError` when none of them worked."""
    start = time.monotonic()
    while specs := broker.ask_batch():
        for spec in specs:
            executor.submit(spec)
        for _ in specs:
            broker.finish(executor.wait())
            if on_event:
                on_event(_progress(broker, limits, name, time.monotonic() - start))
    results = broker.results()
    _require_one(results, name)
    return results


def _progress(broker: Broker, limits: Sequence[Limit], name: str, seconds: float) -> Progress:
    results = broker.results()
    best = {limit: best_within(results, limit, 1) for limit in limits}
    return Progress(
        rung=name,
        done=broker.finished,
        total=broker.total,
        best_loss={limit: r[0].measurement.loss for limit, r in best.items() if r and r[0].measurement},
        best_score={limit: r[0].measurement.score for limit, r in best.items() if r and r[0].measurement},
        seconds=seconds,
    )


def _require_one(results: Sequence[TrialResult], name: str) -> None:
    if any(result.status == "done" for result in results):
        return
    reasons = Counter(result.error for result in results if result.status == "failed")
    if not reasons:
        raise TrialError(f"rung {name!r} ran no trial: no proposed policy fits the budgets. Raise them.")
    reason, count = reasons.most_common(1)[0]
    raise TrialError(f"all {len(results)} trials of rung {name!r} failed, {count} of them with: {reason}")
