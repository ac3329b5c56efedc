"""The course of a search: explore at the proxy, promote, score more dearly; the same for every executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.search.broker import Broker
from autoprune.search.correlation import RankCorrelation, promotion_size, rank_correlation
from autoprune.search.executors.base import Executor
from autoprune.search.explore import SENSITIVITY, Explorer, OnProgress, Search, run_rung
from autoprune.search.limits import require_reachable
from autoprune.search.question import Question
from autoprune.search.rungs import best_within, promote
from autoprune.search.storage import storage_errors
from autoprune.search.strategies import find_strategy
from autoprune.search.uniform import baselines
from autoprune.trials import Fidelity, TrialResult

_PILOT = 3
"""One in so many of the most that can be promoted goes first, to see how far the cheaper rung can be trusted."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found: results of every rung by the name of its fidelity, and how they came about.

    `results["sensitivity"]` are policies that were scored whatever they cost. `sensitivities` is the loss of every
    level of every searched unit, for strategies that measure it.
    """

    results: Mapping[str, list[TrialResult]]
    correlations: Sequence[RankCorrelation] = ()
    notes: Sequence[str] = ()
    sensitivities: Mapping[str, npt.NDArray[np.float64]] | None = None


def run_search(search: Search, executor: Executor, on_event: OnProgress | None = None) -> Outcome:
    """Run or resume a search.

    Finished trials of an earlier call are kept. `BudgetError` when a limit is below what the space reaches,
    `TrialError` when a rung has no trial that worked. After KeyboardInterrupt the study can be resumed; closing the
    executor is the caller's job.
    """
    require_reachable(search.space, search.predict, {str(limit): limit for limit in search.limits})
    strategy = find_strategy(search.strategy)
    uniform = baselines(search.space, search.dense_widths, search.predict, search.limits)
    explorer = Explorer(search, uniform, executor, on_event)
    strategy(explorer)
    rungs = search.effort.rungs
    results = {rungs[0].name: list(explorer.results.values())}
    correlations: list[RankCorrelation] = []
    cheap = [*explorer.results.values(), *explorer.apart.values()]
    for fidelity, most in zip(rungs[1:], search.effort.promoted, strict=True):
        cheap, correlation = _promoted(search, executor, uniform, cheap, fidelity, most, on_event)
        results[fidelity.name] = cheap
        correlations += [correlation] if correlation else []
    if explorer.apart:
        results[SENSITIVITY] = list(explorer.apart.values())
    return Outcome(results=results, correlations=correlations, notes=explorer.notes, sensitivities=explorer.table)


def _promoted(
    search: Search,
    executor: Executor,
    uniform: Mapping[Limit, Policy],
    cheap: Sequence[TrialResult],
    fidelity: Fidelity,
    most: int,
    on_event: OnProgress | None,
) -> tuple[list[TrialResult], RankCorrelation | None]:
    """Score the best of a rung at the next one: some first, then as many as the rank correlation asks for."""
    question = Question(space=search.space, fidelity=fidelity, limits=search.limits, run_seed=search.run_seed)
    broker = Broker(search.path, question, search.predict)
    with storage_errors(search.path), broker:
        count = max(2, most // _PILOT)
        while True:
            wanted = promote(cheap, uniform, search.limits, count)
            broker.enqueue(wanted)
            found = run_rung(broker, executor, search.limits, fidelity.name, on_event)
            # A resumed rung holds all results: the size of the promotion is decided on what the pilot alone gave.
            found = [result for result in found if result.policy in wanted]
            correlation = rank_correlation(cheap, found, search.limits)
            needed = _needed(cheap, search.limits, correlation, most)
            if count >= needed:
                return found, correlation
            count = needed


def _needed(
    cheap: Sequence[TrialResult], limits: Sequence[Limit], correlation: RankCorrelation | None, most: int
) -> int:
    if correlation is None:
        return most
    candidates = max(len(best_within(cheap, limit, len(cheap))) for limit in limits)
    return min(most, promotion_size(correlation.low, candidates))
