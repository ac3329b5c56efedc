"""The cheapest rung as a strategy sees it: policies go in, losses come out."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.allocation.limits import Predict
from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.executors.base import Executor
from autoprune.records import Policy, SearchSpace
from autoprune.search.effort import Effort
from autoprune.search.sensitivity import anchor_policies, sensitivities
from autoprune.study.broker import WINDOW, Broker
from autoprune.study.location import StudyLocation
from autoprune.study.spec import StudySpec
from autoprune.study.storage import storage_errors
from autoprune.trials import TrialResult

SENSITIVITY = "sensitivity"
_RESERVE = 2
"""Trials under way for each slot of an executor: one runs, one waits for its turn."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a rung stands after a trial: counts, loss and score of the best within each limit, and its time."""

    rung: str
    done: int
    total: int
    best_loss: Mapping[Limit, float]
    best_score: Mapping[Limit, float]
    seconds: float


OnProgress = Callable[[Progress], None]
Refill = Callable[[Broker], bool]
"""Enqueues what there is more to score; whether it did."""

Refit = Callable[[Mapping[Policy, float]], dict[Policy, str]]
"""Proposes policies, with their origin, from the losses of fine-tuned ones."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that determines a search. `location` keeps its studies.

    `additive` are the costs that the solver works with. `importance` says how much each channel matters, `[width]` by
    unit, for the strategies that go by it.
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


class Explorer:
    """Scores policies at the proxy for one strategy; what an earlier call scored comes from the study.

    `results` holds what this strategy asked for, in that order: the same strategy asks the same again when a search is
    resumed, whatever its study holds already. `apart` are policies that were scored whatever they cost.
    """

    def __init__(
        self, search: Search, uniform: Mapping[Limit, Policy], executor: Executor, on_event: OnProgress | None = None
    ) -> None:
        self.search = search
        self.uniform = uniform
        self.results: dict[Policy, TrialResult] = {}
        self.apart: dict[Policy, TrialResult] = {}
        self.notes: list[str] = []
        self.table: dict[str, npt.NDArray[np.float64]] | None = None
        self._executor = executor
        self._on_event = on_event

    @property
    def slots(self) -> int:
        """How many trials run at the same time."""
        return self._executor.slots

    @property
    def losses(self) -> dict[Policy, float]:
        """Loss of everything that was asked for and worked."""
        found = [*self.apart.values(), *self.results.values()]
        return {r.policy: r.measurement.loss for r in found if r.measurement is not None}

    def score(self, policies: Mapping[Policy, str]) -> None:
        """Score policies, given with their origin, that fit one of the limits."""
        self._collect(self.results, policies, self._run(policies, self.search.limits, ""))

    def score_rounds(self, propose: Callable[[], Mapping[Policy, str]], ahead: int) -> None:
        """Score rounds of policies that fit one of the limits, until `propose` gives none.

        It is asked for a round as soon as all but the `ahead` rounds before it are finished, and `losses` knows those.
        """
        rounds: list[Mapping[Policy, str]] = []
        known, over = 0, False

        def refill(broker: Broker) -> bool:
            nonlocal known, over
            before = len(rounds)
            while not over and all(broker.knows(p) for p in itertools.chain(*rounds[known : len(rounds) - ahead])):
                for policies in rounds[known : len(rounds) - ahead]:
                    self._collect(self.results, policies, broker.results())
                    known += 1
                policies = propose()
                over = not policies
                rounds.append(policies)
                broker.enqueue(policies)
            return len(rounds) > before

        found = self._run({}, self.search.limits, "", refill=refill)
        for policies in rounds[known:]:
            self._collect(self.results, policies, found)

    def score_apart(self, policies: Sequence[Policy]) -> None:
        """Score policies that need not fit any limit."""
        origins = dict.fromkeys(policies, SENSITIVITY)
        self._collect(self.apart, origins, self._run(origins, (), SENSITIVITY))

    def sample(self, policies: Mapping[Policy, str], sampler: str) -> None:
        """Score policies, then let a sampler of levels propose the rest of the effort's trials."""
        found = self._run(policies, self.search.limits, "", sampler)
        self._collect(self.results, {result.policy: "" for result in found}, found)

    def sensitivities(self) -> dict[str, npt.NDArray[np.float64]]:
        """Loss of every level of every searched unit, `[levels]`, all others full, from those of some levels."""
        space = self.search.space
        anchors = anchor_policies(space)
        self.score_apart(list(anchors))
        losses = {r.policy: r.measurement.loss for r in self.apart.values() if r.measurement is not None}
        self.table = sensitivities(space, losses, anchors)
        return self.table

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
        search = self.search
        fidelity = search.effort.rungs[0]
        study_spec = StudySpec(
            space=search.space, fidelity=fidelity, limits=limits, run_seed=search.run_seed, stage=stage
        )
        window = max(WINDOW, _RESERVE * self._executor.slots)
        open_broker = partial(
            Broker, search.location, study_spec, search.predict, sampler=sampler, trials=search.effort.trials,
            window=window, timeout_s=self._executor.timeout_s,
        )  # fmt: skip
        with storage_errors(search.location), closing(open_broker()) as broker:
            broker.enqueue(policies)
            name = stage or fidelity.name
            spare = any(best_within(list(self.apart.values()), limit, 1) for limit in limits)
            return run_rung(broker, self._executor, limits, name, self._on_event, refill, spare=spare)

    @staticmethod
    def _collect(into: dict[Policy, TrialResult], policies: Mapping[Policy, str], found: Sequence[TrialResult]) -> None:
        by_policy = {result.policy: result for result in found}
        into |= {policy: by_policy[policy] for policy in policies if policy in by_policy}


def run_rung(
    broker: Broker,
    executor: Executor,
    limits: Sequence[Limit],
    name: str,
    on_event: OnProgress | None = None,
    refill: Refill | None = None,
    *,
    spare: bool = False,
) -> list[TrialResult]:
    """Run all trials of a rung; returns its results. `TrialError` when none of them worked.

    `refill` is asked after every trial whether there is more to enqueue. `spare`: there are policies besides these, so
    there may be none.
    """
    start = time.monotonic()
    while True:
        more = refill(broker) if refill else False
        for spec in broker.asked():
            executor.submit(spec)
        if not broker.running:
            if more:
                continue  # all of it was settled at once
            break
        again = broker.finish(executor.wait())
        if again is not None:
            executor.submit(again)
        elif on_event:
            on_event(_progress(broker, limits, name, time.monotonic() - start))
    results = broker.results()
    if results or not spare:
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
