"""The course of a search: explore at the proxy, promote, score more dearly; the same for every executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.allocation.limits import require_reachable
from autoprune.allocation.promotion import best_within, promote
from autoprune.allocation.uniform import baselines
from autoprune.budgets import Limit
from autoprune.executors.base import Executor
from autoprune.records import Policy
from autoprune.search.correlation import RankCorrelation, promotion_size, rank_correlation
from autoprune.search.explore import SENSITIVITY, Explorer, Refit, Search
from autoprune.search.measured import Measured
from autoprune.search.rung import RungObserver, run_rung
from autoprune.search.strategies import Strategy, find_strategy
from autoprune.study.broker import Broker
from autoprune.study.spec import StudySpec
from autoprune.study.storage import storage_errors
from autoprune.trials import Fidelity, TrialResult

_REFITS = 1

_PILOT = 3
"""A third of the promotions of a limit goes first: it shows how far the cheaper rung can be trusted."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of a search.

    `results` are the trials of every rung, by the name of its fidelity; `results["sensitivity"]` are the policies that
    need not fit any limit. `correlations` say how alike two neighbouring rungs rank policies. `notes` are sentences
    for the report. `sensitivities` is the loss of every level of every searched unit, `[levels]`, for strategies that
    measure it.
    """

    results: Mapping[str, list[TrialResult]]
    correlations: Sequence[RankCorrelation] = ()
    notes: Sequence[str] = ()
    sensitivities: Mapping[str, npt.NDArray[np.float64]] | None = None


def run_search(
    search: Search,
    executor: Executor,
    on_event: RungObserver | None = None,
    strategy: Strategy | None = None,
    measured: Measured | None = None,
) -> Outcome:
    """Run or resume a search; finished trials of an earlier call are kept.

    After a KeyboardInterrupt the same call goes on where it was.

    Args:
        search: everything that determines the search.
        executor: runs the trials; the caller closes it.
        on_event: told when a rung begins, and called after every finished trial.
        strategy: fills the proxy rung, in place of the one that `search.strategy` names.
        measured: measures what is promoted, so that no fine-tune is spent on a policy that misses its limit; default:
            predictions are believed.

    Returns:
        The results of every rung, by the name of its fidelity; of the proxy alone, where `measured` finds its
        predictions wrong.

    Raises:
        BudgetError: a limit is below the smallest policy of the space.
        TrialError: no trial of a rung worked.
    """
    require_reachable(search.space, search.predict, {str(limit): limit for limit in search.limits})
    strategy = strategy or find_strategy(search.strategy)
    uniform = baselines(search.space, search.dense_widths, search.predict, search.limits)
    explorer = Explorer(search, uniform, executor, on_event)
    refit = strategy(explorer)
    rungs = search.effort.rungs
    results = {rungs[0].name: list(explorer.results.values())}
    correlations: list[RankCorrelation] = []
    cheap = [*{**explorer.known, **explorer.results}.values(), *explorer.apart.values()]
    trusted = measured is None or measured.as_predicted(cheap)
    for fidelity, most in zip(rungs[1:], search.effort.promoted, strict=True) if trusted else ():
        rung = _Rung(search, executor, uniform, fidelity, on_event, measured)
        cheap, correlation = rung.fill(cheap, most, refit if fidelity is rungs[1] else None)
        results[fidelity.name] = cheap
        correlations += [correlation] if correlation else []
    if explorer.apart:
        results[SENSITIVITY] = list(explorer.apart.values())
    return Outcome(results=results, correlations=correlations, notes=explorer.notes, sensitivities=explorer.table)


@dataclass(frozen=True)
class _Rung:
    """A rung beyond the proxy: chooses its policies and scores them."""

    search: Search
    executor: Executor
    uniform: Mapping[Limit, Policy]
    fidelity: Fidelity
    on_event: RungObserver | None
    measured: Measured | None

    def fill(
        self, cheap: Sequence[TrialResult], most: int, refit: Refit | None
    ) -> tuple[list[TrialResult], RankCorrelation | None]:
        """Score the best policies of the cheaper rung, and those that `refit` proposes.

        First a third of `most` for every limit, and on the second rung the policies whose zeros the dense weights
        share out, however they scored: of what fine-tuning makes of zeros a proxy sees little. Then the proposals of
        `refit`; then as many more as the rank correlation of the two rungs asks for, at most `most` for every limit.
        """
        search, fidelity, limits = self.search, self.fidelity, self.search.limits
        study_spec = StudySpec(space=search.space, fidelity=fidelity, limits=limits, run_seed=search.run_seed)
        with (
            storage_errors(search.location),
            closing(search.open_broker(study_spec, timeout_s=self.executor.timeout_s)) as broker,
        ):
            pilot = max(2, most // _PILOT)
            wanted = self._promoted(cheap, pilot) | self._shared_out(cheap)
            results = self._scored(broker, wanted)
            for _ in range(_REFITS if refit else 0):
                wanted |= refit({r.policy: r.measurement.loss for r in results if r.measurement}) if refit else {}
                results = self._scored(broker, wanted)
            correlation = rank_correlation(cheap, results, limits)
            needed = _needed(cheap, limits, correlation, most)
            if needed > pilot:
                results = self._scored(broker, wanted | self._promoted(cheap, needed))
                correlation = rank_correlation(cheap, results, limits)
            return results, correlation

    def _promoted(self, cheap: Sequence[TrialResult], per_budget: int) -> dict[Policy, str]:
        meets = self.measured.meets if self.measured else None
        return promote(cheap, self.uniform, self.search.limits, per_budget, meets)

    def _shared_out(self, cheap: Sequence[TrialResult]) -> dict[Policy, str]:
        if self.fidelity is not self.search.effort.rungs[1]:
            return {}
        finished = {result.policy for result in cheap if result.status == "done"}
        return {policy: origin for policy, origin in self.search.shared_out.items() if policy in finished}

    def _scored(self, broker: Broker, wanted: Mapping[Policy, str]) -> list[TrialResult]:
        """Return the results of the wanted policies alone; the study of a resumed search holds later ones, too."""
        broker.enqueue(wanted)
        results = run_rung(broker, self.executor, self.search.limits, self.fidelity.name, self.on_event)
        return [result for result in results if result.policy in wanted]


def _needed(
    cheap: Sequence[TrialResult], limits: Sequence[Limit], correlation: RankCorrelation | None, most: int
) -> int:
    if correlation is None:
        return most
    candidates = max(len(best_within(cheap, limit, len(cheap))) for limit in limits)
    return min(most, promotion_size(correlation.low, candidates))
