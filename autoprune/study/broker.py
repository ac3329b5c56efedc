"""The broker owns the study of one rung: it hands out trials, takes their results, and survives being killed.

The study in SQLite is the only record. What a trial goes through, and what is on disk after each step:

    asked       parameters, constraint, `origin`, `digest` and `slot`, in one transaction: RUNNING
    attempted   one more entry in `attempts`: why it failed or was lost; it stays RUNNING and is tried again
    finished    `result` (the whole TrialResult); it stays RUNNING while proposals must not know it yet
    told        its state: COMPLETE, PRUNED (infeasible) or FAIL

so that at every moment a dead controller's RUNNING trial can be told its result or handed out again; a proposal that
was not recorded is drawn again, and what was enqueued and not handed out is enqueued again by who goes on.

A proposal depends only on the run seed, its slot (how many trials were handed out before) and the results of the slots
that are at least `window` before it: it waits for those, and the study is told others only afterwards. So the order in
which workers finish changes nothing, and no worker waits for the slowest of a batch. A trial that is tried again
keeps its number, its slot and its seed, so that a fault changes nothing but time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autoprune.allocation.limit_fitting import FitToLimit, fit_to_limit
from autoprune.allocation.limits import Predict
from autoprune.records import Policy
from autoprune.study.attempts import Running
from autoprune.study.attributes import decoding, require_trial
from autoprune.study.ledger import Ledger
from autoprune.study.location import StudyLocation
from autoprune.study.pricing import Pricing, ended_early
from autoprune.study.proposals import PROPOSALS_PER_LIMIT, Proposal
from autoprune.study.samplers import decode
from autoprune.study.spec import StudySpec, objectives
from autoprune.study.storage import OpenStudy, open_study
from autoprune.trials import TrialResult, TrialSpec

WINDOW = 8
"""Proposals that do not know of each other's results; enough for four workers, each with a trial in reserve."""


class Broker:
    """One rung of a search: `trials` policies from the sampler and those that were enqueued (which count too).

    Opening takes over a study whose controller died. There must be one controller at a time.

    Args:
        location: where the study is kept.
        study_spec: the question that the study answers.
        predict: costs of policies, `[P, K]`.
        sampler: a name of `SAMPLERS`; `None` hands out enqueued policies alone.
        trials: how many policies the rung tries, with a sampler.
        window: trials of the sampler that are under way, at most.
        timeout_s: time limit of a trial; policies that a shorter one ended are tried again.
        keep: called with every result of a trial that did not fail, before it is recorded.
        fit: moves a proposal of the sampler onto a limit.
        open_study: opens the study.

    Raises:
        RunFolderError: the location cannot be used, or its study answers another question.
    """

    def __init__(
        self,
        location: StudyLocation,
        study_spec: StudySpec,
        predict: Predict,
        *,
        sampler: str | None = None,
        trials: int = 0,
        window: int = WINDOW,
        timeout_s: float | None = None,
        keep: Callable[[TrialResult], None] | None = None,
        fit: FitToLimit = fit_to_limit,
        open_study: OpenStudy = open_study,
    ) -> None:
        self._study_spec = study_spec
        self._space = study_spec.space
        self._pricing = Pricing(study_spec, predict)
        self._sampler = sampler
        self._trials = trials if sampler else 0
        self._window = window
        self._timeout_s = timeout_s
        self._keep = keep
        self._results: dict[Policy, TrialResult] = {}
        self._waiting: dict[Policy, str] = {}
        self._running: dict[int, Running] = {}
        self._orphans: list[TrialSpec] = []
        self._held: dict[int, TrialResult] = {}
        self._dry = False
        self._slots = 0
        self._superseded = 0
        self._finished = 0
        with decoding(location):
            storage, self._study = open_study(location, study_spec, self._pricing.finished_trial)
            self._ledger = Ledger(storage, self._study, study_spec)
            self._take_over()
        if sampler:
            self._ledger.open_sampler(sampler, predict, fit)
        else:
            self._release()

    def _take_over(self) -> None:
        """Restore everything that the study knows, and queue what a longer time limit may finish."""
        # The number counts for this number of trials alone: a search with more asks the sampler again.
        self._trials = self._ledger.exhausted().get(str(self._trials), self._trials)
        recorded = self._ledger.trials()
        for trial in recorded:
            require_trial(trial.user_attrs)
            self._restore(trial)
        early = [trial for trial in recorded if ended_early(trial.user_attrs, self._timeout_s)]
        self.enqueue({decode(trial.params, self._space): trial.user_attrs["origin"] for trial in early})

    def enqueue(self, policies: Mapping[Policy, str]) -> None:
        """Queue policies with their origin, ahead of the sampler's; those that the study knows already are skipped.

        The queue is not on disk: a caller that goes on with a search enqueues the same again.
        """
        known = {*self._results, *self._busy()}
        for policy, origin in policies.items():
            if policy not in known:
                self._waiting.setdefault(policy, origin)

    def ask(self) -> list[TrialSpec]:
        """The trials that can start now; when there are none and none is running, the rung is finished."""
        return list(self.asked())

    def asked(self) -> Iterator[TrialSpec]:
        """Yield the trials that can start now one by one: the first can start while the others are recorded."""
        while self._orphans:
            yield self._orphans.pop(0)
        while (spec := self._ask()) is not None:
            yield spec

    def finish(self, result: TrialResult) -> TrialSpec | None:
        """Record a result, raw values first; returns the next attempt when the trial is to be tried again.

        A policy may fail once and be lost some more times. A result of a trial that is not running, or of an attempt
        that was given up, is ignored: it came too late.
        """
        if result.number not in self._running:
            return None
        running = self._running[result.number]
        if running.spec.attempt != result.attempt:
            return None
        if result.status in ("failed", "lost"):
            reason = running.count(result, self._timeout_s)
            self._ledger.write_attempts(result.number, running.attempts)
            if reason is None:
                return running.spec
            result = replace(result, status="failed", error=reason)
        elif self._keep is not None:
            self._keep(result)
        del self._running[result.number]
        result = self._pricing.priced(result)
        self._write(result)
        self._held[running.slot] = result
        if self._sampler is None:
            self._release()
        self._finished += 1
        return None

    def results(self) -> list[TrialResult]:
        """Every policy that was finished, failed or infeasible, exactly once, by trial number."""
        return sorted(self._results.values(), key=lambda result: result.number)

    def knows(self, policy: Policy) -> bool:
        """Whether a policy has a result."""
        return policy in self._results

    @property
    def running(self) -> int:
        """How many trials were handed out and are not finished."""
        return len(self._running)

    @property
    def finished(self) -> int:
        """How many trials were run to an end, also before this broker was opened."""
        return self._finished

    @property
    def total(self) -> int:
        """How many trials this rung will have run when it is finished."""
        return max(self._trials, self._finished + len(self._running) + len(self._waiting))

    def close(self) -> None:
        """Release the storage."""
        self._ledger.close()

    def _ask(self) -> TrialSpec | None:
        proposals, most = 0, PROPOSALS_PER_LIMIT * len(self._study_spec.limits)
        while self._waiting or self._ready():
            if proposals == most and not self._waiting:
                return self._exhausted()
            proposals += not self._waiting
            proposal = self._next(proposals)
            if not self._settled(proposal):
                self._slots += 1
                number = self._ledger.add(proposal, slot=self._slots - 1)
                return self._start(number, proposal.policy, self._slots - 1, [])
        return None

    def _next(self, attempt: int) -> Proposal:
        queued = next(iter(self._waiting.items()), None)
        if queued:
            del self._waiting[queued[0]]
        if self._sampler:
            return self._ledger.draw(self._slots, attempt, {*self._results, *self._busy()}, queued)
        assert queued is not None
        return Proposal(policy=queued[0], origin=queued[1], beyond=self._pricing.beyond(queued[0]))

    def _exhausted(self) -> TrialSpec | None:
        """Handle a sampler whose every proposal is known: wait for results, or end the rung with the trials so far."""
        self._dry = True
        if self._running:
            return None
        if self._held:
            return self._ask()
        reached = self._slots - self._superseded
        self._ledger.write_exhausted(self._trials, reached)
        self._trials = reached
        return None

    def _ready(self) -> bool:
        """Whether the sampler may be asked for the next slot; the study is then told all that it is to know."""
        running, last = [trial.slot for trial in self._running.values()], self._slots - self._window
        if running and (self._dry or min(running) <= last):
            return False
        ended = self._slots - self._superseded >= self._trials
        self._release(None if self._dry or (ended and not running) else last)
        self._dry = False
        return not ended

    def _release(self, last: int | None = None) -> None:
        """Tell the study the results up to a slot, in the order of slots."""
        for slot in sorted(self._held):
            if last is None or slot <= last:
                self._ledger.tell(self._held.pop(slot))

    def _settled(self, proposal: Proposal) -> bool:
        """Record a proposal that need not run: scored, failed, infeasible or running. False when it must."""
        policy = proposal.policy
        busy = policy in self._busy()
        known = None if busy else self._results.get(policy)
        if known is not None and known.measurement is not None:
            self._ledger.add(proposal, TrialState.COMPLETE, objectives(known.measurement), cached_from=known.number)
        elif proposal.beyond > 0:
            spec = self._study_spec.trial(self._ledger.add(proposal), policy)
            self._write(TrialResult.without_measurement(spec, "infeasible", self._pricing.excess(policy)))
            self._ledger.tell(self._results[policy])
        elif busy:
            self._ledger.add(proposal, TrialState.FAIL, reason="duplicate of a running trial")
        elif known is not None and known.status == "failed":
            self._ledger.add(proposal, TrialState.FAIL, reason=f"failed before: {known.error}")
        else:
            return False
        return True

    def _busy(self) -> set[Policy]:
        """Policies of trials that run, or whose results the sampler must not know yet."""
        return {trial.spec.policy for trial in self._running.values()} | {r.policy for r in self._held.values()}

    def _start(self, number: int, policy: Policy, slot: int, attempts: list[dict[str, Any]]) -> TrialSpec:
        spec = self._study_spec.trial(number, policy, attempt=len(attempts) + 1)
        self._running[number] = Running(spec, slot, attempts)
        return spec

    def _write(self, result: TrialResult) -> None:
        self._ledger.write(result)
        self._results[result.policy] = result

    def _restore(self, trial: FrozenTrial) -> None:
        """Restore one trial: its result, or its attempts when a dead controller left it running."""
        slot = trial.user_attrs.get("slot")
        self._slots = max(self._slots, -1 if slot is None else slot + 1)
        if ended_early(trial.user_attrs, self._timeout_s):
            if trial.state == TrialState.RUNNING:
                self._ledger.tell(TrialResult.from_json(trial.user_attrs["result"]))
            self._superseded += slot is not None  # its policy takes another slot
        elif "result" in trial.user_attrs:
            result = self._pricing.priced(TrialResult.from_json(trial.user_attrs["result"]))
            if trial.state == TrialState.RUNNING and slot is not None:
                self._held[slot] = result
            elif trial.state == TrialState.RUNNING:
                self._ledger.tell(result)
            if result.status != "infeasible" or self._pricing.beyond(result.policy) > 0:
                self._results[result.policy] = result
            self._finished += slot is not None
        elif trial.state == TrialState.RUNNING:
            policy, attempts = decode(trial.params, self._space), list(trial.user_attrs.get("attempts", ()))
            self._orphans.append(self._start(trial.number, policy, trial.user_attrs["slot"], attempts))
