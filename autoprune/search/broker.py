"""The broker owns the study of one rung: it hands out trials, takes their results, and survives being killed.

The study in SQLite is the only record. What a trial goes through, and what is on disk after each step:

    asked       parameters, constraint, `origin`, `digest`, and last of all `slot`: RUNNING
    attempted   one more entry in `attempts`: why it failed or was lost; it stays RUNNING and is tried again
    finished    `result` (the whole TrialResult); it stays RUNNING while proposals must not know it yet
    told        its state: COMPLETE, PRUNED (infeasible, stopped) or FAIL

so that at every moment a dead controller's RUNNING trial can be told its result, or handed out again, or dropped
because the same proposal will be drawn again. A proposal depends only on the run seed, its slot (how many trials were
handed out before) and the results of the slots that are at least `window` before it: it waits for those, and the study
is told others only afterwards. So the order in which workers finish changes nothing, and none of them waits for the
slowest of a batch. A trial that is tried again keeps its number, its slot and its seed, so that a fault changes nothing
but time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.records import Policy
from autoprune.search.attempts import Running
from autoprune.search.limits import Predict, excess, violation
from autoprune.search.places import Place
from autoprune.search.proposals import PROPOSALS_PER_LIMIT, Proposals
from autoprune.search.question import Question, objectives
from autoprune.search.samplers import decode, encode, finished_trial
from autoprune.search.storage import close_storage, open_study
from autoprune.trials import TrialResult, TrialSpec, trial_seed

WINDOW = 8
"""So many proposals do not know of each other's results; enough for four workers, each with a trial in reserve."""

_LOST = "controller lost"
_STATES = {"infeasible": TrialState.PRUNED, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Broker:
    """One rung of a search: `trials` policies from the sampler and those that were enqueued (which count too).

    Opening takes over a study whose controller died; there must be one controller at a time. `sampler=None` asks
    enqueued policies only. Of the sampler's trials at most `window` are under way. `keep` gets every result that
    counts, before it is recorded. Raises `RunFolderError` when the place cannot be used or its study answers another
    question.
    """

    def __init__(
        self,
        place: Place,
        question: Question,
        predict: Predict,
        *,
        sampler: str | None = None,
        trials: int = 0,
        window: int = WINDOW,
        keep: Callable[[TrialResult], None] | None = None,
    ) -> None:
        self._question = question
        self._space = question.space
        self._predict = predict
        self._sampler = sampler
        self._trials = trials if sampler else 0
        self._window = window
        self._keep = keep
        self._results: dict[Policy, TrialResult] = {}
        self._waiting: set[Policy] = set()
        self._running: dict[int, Running] = {}
        self._orphans: list[TrialSpec] = []
        self._held: dict[int, TrialResult] = {}
        self._dry = False
        self._slots = 0
        self._finished = 0
        self._storage, self._study = open_study(place, question, self._finished_trial)
        self._proposals = Proposals(self._study, question, predict, sampler or "random")
        # Of as many trials as now: a search that goes on with more, or with another table, asks the sampler again.
        exhausted = self._study.user_attrs.get("exhausted", {})
        self._trials = exhausted.get(str(self._trials), self._trials)
        self._reconcile()

    def enqueue(self, policies: Mapping[Policy, str]) -> None:
        """Queue policies with their origin, ahead of the sampler's; those that the study knows already are skipped."""
        known = {*self._results, *self._waiting, *self._busy()}
        for policy, origin in policies.items():
            if policy not in known:
                self._study.enqueue_trial(encode(policy, self._space), user_attrs={"origin": origin})
                self._waiting.add(policy)

    def ask(self) -> list[TrialSpec]:
        """The trials that can start now; when there are none and none is running, the rung is finished."""
        specs, self._orphans = self._orphans, []
        while (spec := self._ask()) is not None:
            specs.append(spec)
        return specs

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
            reason = running.count(result)
            self._storage.set_trial_user_attr(running.trial_id, "attempts", running.attempts)
            if reason is None:
                return running.spec
            result = replace(result, status="failed", error=reason)
        elif self._keep is not None:
            self._keep(result)
        del self._running[result.number]
        result = self._priced(result)
        self._write(running.trial_id, result)
        self._held[running.slot] = result
        if self._sampler is None:
            self._release()
        self._finished += 1
        return None

    def results(self) -> list[TrialResult]:
        """Every policy that was finished, failed or infeasible, exactly once, by trial number."""
        return sorted(self._results.values(), key=lambda result: result.number)

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
        close_storage(self._storage)

    def _ask(self) -> TrialSpec | None:
        proposals, most = 0, PROPOSALS_PER_LIMIT * len(self._question.limits)
        while self._waiting or self._ready():
            if proposals == most and not self._waiting:
                return self._exhausted()
            proposals += not self._waiting
            trial, policy = self._proposals.draw(self._slots, proposals, {*self._results, *self._busy()})
            self._waiting.discard(policy)
            if self._settled(trial, policy):
                continue
            trial.set_user_attr("slot", self._slots)
            self._slots += 1
            return self._start(trial.number, trial._trial_id, policy, self._slots - 1, [])
        return None

    def _exhausted(self) -> TrialSpec | None:
        """All that the sampler proposes is known: the space holds no more, or none that it finds from what it knows."""
        self._dry = True
        if self._running:
            return None
        if self._held:
            return self._ask()
        self._study.set_user_attr("exhausted", {str(self._trials): self._slots})
        self._trials = self._slots
        return None

    def _ready(self) -> bool:
        """Whether the sampler may be asked for the next slot; the study is then told all that it is to know."""
        running, last = [trial.slot for trial in self._running.values()], self._slots - self._window
        if running and (self._dry or min(running) <= last):
            return False
        ended = self._slots >= self._trials
        self._release(None if self._dry or (ended and not running) else last)
        self._dry = False
        return not ended

    def _release(self, last: int | None = None) -> None:
        """Tell the study the results up to a slot, in the order of slots."""
        for slot in sorted(self._held):
            if last is None or slot <= last:
                self._tell(self._held.pop(slot))

    def _settled(self, trial: optuna.Trial, policy: Policy) -> bool:
        """Tell a trial that need not run: known already, failed, too dear, or running elsewhere."""
        (costs,) = self._predict([policy])
        beyond = violation(costs, self._question.limits)
        trial.set_constraint("budget", beyond)
        busy = policy in self._busy()
        known = None if busy else self._results.get(policy)
        if known is not None and known.measurement is not None:
            trial.set_user_attr("cached_from", known.number)
            self._study.tell(trial, objectives(known.measurement))
        elif beyond > 0:
            loosest = min(self._question.limits, key=lambda limit: excess(costs, limit))
            reason = f"predicted {loosest.shown(costs)}: {beyond:.1%} beyond the loosest limit, {loosest}"
            spec = self._spec(trial.number, policy)
            result = TrialResult.without_measurement(spec, "infeasible", reason)
            self._write(trial._trial_id, result)
            self._tell(result)
        elif busy:
            self._fail(trial, "duplicate of a running trial")
        elif known is not None and known.status == "failed":
            self._fail(trial, f"failed before: {known.error}")
        else:
            return False
        return True

    def _busy(self) -> set[Policy]:
        """Policies of trials that run, or whose results the sampler must not know yet."""
        return {trial.spec.policy for trial in self._running.values()} | {r.policy for r in self._held.values()}

    def _start(
        self, number: int, trial_id: int, policy: Policy, slot: int, attempts: list[dict[str, Any]]
    ) -> TrialSpec:
        spec = self._spec(number, policy, attempt=len(attempts) + 1)
        self._running[number] = Running(spec, slot, trial_id, attempts)
        return spec

    def _beyond(self, policy: Policy) -> float:
        return violation(self._predict([policy])[0], self._question.limits)

    def _spec(self, number: int, policy: Policy, attempt: int = 1) -> TrialSpec:
        fidelity = self._question.fidelity
        seed = trial_seed(self._question.run_seed, fidelity)
        return TrialSpec(number=number, policy=policy, fidelity=fidelity, seed=seed, attempt=attempt)

    def _write(self, trial_id: int, result: TrialResult) -> None:
        self._storage.set_trial_user_attr(trial_id, "result", result.to_json())
        self._results[result.policy] = result

    def _tell(self, result: TrialResult) -> None:
        if result.measurement is not None:
            self._study.tell(result.number, objectives(result.measurement))
        else:
            self._study.tell(result.number, state=_STATES[result.status])

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def _finished_trial(self, result: TrialResult) -> FrozenTrial:
        return finished_trial(self._priced(result), self._space, self._beyond(result.policy))

    def _reconcile(self) -> None:
        """Rebuild what is known from the study, and settle what a dead controller left running."""
        trials = self._study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.RUNNING and not {"result", "slot"} & trial.user_attrs.keys():
                self._drop(trial, queue_again=trial.number not in retried)
            self._slots = max(self._slots, trial.user_attrs.get("slot", -1) + 1)
        for trial in self._study.get_trials(deepcopy=False):
            self._restore(trial)
        if self._sampler is None:
            self._release()

    def _drop(self, trial: FrozenTrial, *, queue_again: bool) -> None:
        """Give up a trial that was not handed out; an enqueued policy stays in the queue."""
        if queue_again and "fixed_params" in trial.system_attrs:
            attributes = {"origin": trial.user_attrs["origin"], "retry_of": trial.number}
            self._study.enqueue_trial(trial.system_attrs["fixed_params"], user_attrs=attributes)
        self._storage.set_trial_user_attr(trial._trial_id, "reason", _LOST)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _priced(self, result: TrialResult) -> TrialResult:
        """The result with what the predictor says now: a latency table that was fitted anew moves old trials too."""
        if result.measurement is None:
            return result
        latency_ms = float(self._predict([result.policy])[0, 0])
        return replace(result, measurement=replace(result.measurement, latency_ms=latency_ms))

    def _restore(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.WAITING:
            self._waiting.add(decode(trial.system_attrs["fixed_params"], self._space))
        if "result" in trial.user_attrs:
            result = self._priced(TrialResult.from_json(trial.user_attrs["result"]))
            if trial.state == TrialState.RUNNING and "slot" in trial.user_attrs:
                self._held[trial.user_attrs["slot"]] = result
            elif trial.state == TrialState.RUNNING:
                self._tell(result)
            if result.status != "infeasible" or self._beyond(result.policy) > 0:
                self._results[result.policy] = result
            self._finished += "slot" in trial.user_attrs
        elif trial.state == TrialState.RUNNING:
            policy, attempts = decode(trial.params, self._space), list(trial.user_attrs.get("attempts", ()))
            slot = trial.user_attrs["slot"]
            self._orphans.append(self._start(trial.number, trial._trial_id, policy, slot, attempts))
