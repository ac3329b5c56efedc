"""The proxy rung as a strategy sees it: policies go in, losses come out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.allocation.limit_fitting import FitToLimit, fit_to_limit
from autoprune.allocation.limits import Predict
from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.executors.base import Executor
from autoprune.records import Policy, SearchSpace
from autoprune.search.effort import Effort
from autoprune.search.rung import Refill, RungObserver, run_rung
from autoprune.study.broker import WINDOW, Broker
from autoprune.study.location import StudyLocation
from autoprune.study.spec import StudySpec
from autoprune.study.storage import OpenStudy, open_study, storage_errors
from autoprune.trials import TrialResult

SENSITIVITY = "sensitivity"
"""Name of the stage in which single units are narrowed; its policies need not fit a limit."""

_TRIALS_PER_SLOT = 2
"""Trials under way for each slot of an executor: one runs, one waits for its turn."""


Refit = Callable[[Mapping[Policy, float]], dict[Policy, str]]
"""Proposes policies, with their origin, from the losses of fine-tuned ones."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that determines a search.

    Args:
        location: where the studies of the search are kept.
        space: the units and their levels.
        dense_widths: width of every unit of the dense model.
        predict: costs of policies, `[P, K]`.
        cautious: costs that most policies do not exceed, `[P, K]`; guided proposals fit their limit by them, since a
            search goes where predictions are too low. Default: `predict`.
        limits: every policy of the front fits one limit.
        effort: trials, fidelities and promotions.
        run_seed: seed of everything random.
        additive: costs as sums of tables, which the solver works with.
        strategy: a name of `strategies.STRATEGIES`.
        sampler: a name of `study.samplers.SAMPLERS`, for the strategy `direct`.
        importance: importance of the channels of each unit, `[width]`, for the strategies of `NEEDS_IMPORTANCE`.
        shared_out: policies whose zeros the dense weights share out, within the limits, with their origins; they are
            scored, and briefly fine-tuned, beside the uniform ones.
        fit: moves what a sampler proposes onto a limit.
        open_study: opens the study of a rung.
    """

    location: StudyLocation
    space: SearchSpace
    dense_widths: Mapping[str, int]
    predict: Predict
    limits: tuple[Limit, ...]
    effort: Effort
    run_seed: int
    additive: Additive
    strategy: str = "guided"
    sampler: str = "tpe"
    importance: Mapping[str, npt.NDArray[np.float64]] | None = None
    fit: FitToLimit = fit_to_limit
    open_study: OpenStudy = open_study
    cautious: Predict | None = None
    shared_out: Mapping[Policy, str] = field(default_factory=dict)

    def open_broker(self, study_spec: StudySpec, **options: Any) -> Broker:
        """Open the study of a rung; `options` are those of `Broker`."""
        return Broker(self.location, study_spec, self.predict, fit=self.fit, open_study=self.open_study, **options)


def first_scored(search: Search, uniform: Mapping[Limit, Policy]) -> dict[Policy, str]:
    """Return the baselines that every strategy scores, with their origins: uniform policies, and `search.shared_out`.

    Args:
        search: everything that determines the search.
        uniform: the uniform policy of every limit that has one.
    """
    alike = dict.fromkeys(uniform.values(), "uniform")
    return {**alike, **search.shared_out, **alike}


class Explorer:
    """Scores policies at the proxy for one strategy; what an earlier run of the search scored is not run again.

    `results` holds the policies that this strategy asked for, in that order, so a resumed search asks the same again.
    `known` holds whatever the study of the proxy holds, that of earlier searches with another latency table, too.
    `apart` holds the policies that need not fit any limit. `table` holds the sensitivities, for strategies that measure
    them. `notes` are sentences for the report.
    """

    def __init__(
        self, search: Search, uniform: Mapping[Limit, Policy], executor: Executor, on_event: RungObserver | None = None
    ) -> None:
        self.search = search
        self.uniform = uniform
        self.results: dict[Policy, TrialResult] = {}
        self.apart: dict[Policy, TrialResult] = {}
        self.known: dict[Policy, TrialResult] = {}
        self.notes: list[str] = []
        self.table: Mapping[str, npt.NDArray[np.float64]] | None = None
        self._executor = executor
        self._on_event = on_event

    @property
    def baselines(self) -> dict[Policy, str]:
        """The policies that every strategy scores first, with their origins."""
        return first_scored(self.search, self.uniform)

    @property
    def slots(self) -> int:
        """How many trials run at the same time."""
        return self._executor.slots

    @property
    def losses(self) -> dict[Policy, float]:
        """Proxy loss of every policy that was asked for and whose trial worked."""
        asked = [*self.apart.values(), *self.results.values()]
        return {r.policy: r.measurement.loss for r in asked if r.measurement is not None}

    def score(self, policies: Mapping[Policy, str]) -> None:
        """Score policies that fit one of the limits; `policies` maps each to its origin."""
        self._collect(self.results, policies, self._run(policies, self.search.limits, ""))

    def score_rounds(self, propose: Callable[[], Mapping[Policy, str]], ahead: int) -> None:
        """Score round after round of policies that fit one of the limits, until `propose` returns an empty round.

        Args:
            propose: returns the policies of the next round with their origins. It is called as soon as at most `ahead`
                of the rounds before are unfinished, and `losses` then holds all rounds before those.
            ahead: 0 proposes a round when all before it are finished; more keep workers busy meanwhile.
        """
        unfinished: deque[Mapping[Policy, str]] = deque()
        ended = False

        def refill(broker: Broker) -> bool:
            nonlocal ended
            proposed = False
            while not ended:
                if len(unfinished) > ahead:
                    if not all(broker.knows(policy) for policy in unfinished[0]):
                        break
                    self._collect(self.results, unfinished.popleft(), broker.results())
                policies = propose()
                ended = not policies
                unfinished.append(policies)
                broker.enqueue(policies)
                proposed = True
            return proposed

        results = self._run({}, self.search.limits, "", refill=refill)
        for policies in unfinished:
            self._collect(self.results, policies, results)

    def score_apart(self, policies: Sequence[Policy]) -> None:
        """Score policies that need not fit any limit."""
        origins = dict.fromkeys(policies, SENSITIVITY)
        self._collect(self.apart, origins, self._run(origins, (), SENSITIVITY))

    def sample(self, policies: Mapping[Policy, str], sampler: str) -> None:
        """Score policies, then let a sampler of levels propose the rest of the effort's trials."""
        results = self._run(policies, self.search.limits, "", sampler)
        self._collect(self.results, {result.policy: "" for result in results}, results)

    def _run(
        self,
        policies: Mapping[Policy, str],
        limits: tuple[Limit, ...],
        stage: str,
        sampler: str | None = None,
        refill: Refill | None = None,
    ) -> list[TrialResult]:
        if not policies and sampler is None and refill is None:
            return []
        search, executor = self.search, self._executor
        fidelity = search.effort.rungs[0]
        study_spec = StudySpec(
            space=search.space, fidelity=fidelity, limits=limits, run_seed=search.run_seed, stage=stage
        )
        with (
            storage_errors(search.location),
            closing(
                search.open_broker(
                    study_spec,
                    sampler=sampler,
                    trials=search.effort.trials,
                    window=max(WINDOW, _TRIALS_PER_SLOT * executor.slots),
                    timeout_s=executor.timeout_s,
                )
            ) as broker,
        ):
            broker.enqueue(policies)
            name = stage or fidelity.name
            spare = any(best_within(list(self.apart.values()), limit, 1) for limit in limits)
            results = run_rung(broker, executor, limits, name, self._on_event, refill, spare=spare)
        if not stage:
            self.known |= {result.policy: result for result in results}
        return results

    @staticmethod
    def _collect(
        into: dict[Policy, TrialResult], policies: Mapping[Policy, str], results: Sequence[TrialResult]
    ) -> None:
        by_policy = {result.policy: result for result in results}
        into |= {policy: by_policy[policy] for policy in policies if policy in by_policy}
