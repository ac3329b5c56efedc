"""The broker owns the study of one rung: it hands out trials, takes their results, and survives being killed.

The study in SQLite is the only record. What a trial goes through, and what is on disk after each step:

    asked       parameters, constraint, `origin`, `digest`, and last of all `slot`: RUNNING
    attempted   one more entry in `attempts`: why it failed or was lost; it stays RUNNING and is tried again
    finished    `result` (the whole TrialResult), then its state: COMPLETE, PRUNED (infeasible, stopped) or FAIL

so that at every moment a dead controller's RUNNING trial can be told its result, or queued again, or dropped because
the same proposal will be drawn again. Proposals depend only on the run seed, the slot (how many trials were handed out
before) and the finished trials. A trial that is tried again keeps its number, its slot and its seed, so that a fault
changes nothing but time. Slots are handed out in batches, the next one when the former is finished: the order in
which workers finish changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.budgets import Limit
from autoprune.records import Policy, digest_of
from autoprune.search.attempts import Running
from autoprune.search.limits import Predict, excess
from autoprune.search.places import Place
from autoprune.search.question import Question, objectives
from autoprune.search.repair import fit_to_limit
from autoprune.search.samplers import Parameters, Projected, decode, distributions, encode, make_sampler
from autoprune.search.storage import close_storage, open_study
from autoprune.trials import TrialResult, TrialSpec, trial_seed

BATCH_SIZE = 8

_PROPOSALS_PER_LIMIT = 8
_PROJECTIONS = 8
_LOST = "controller lost"
_STATES = {"infeasible": TrialState.PRUNED, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Broker:
    """One rung of a search: `trials` policies from the sampler and those that were enqueued (which count too).

    Opening takes over a study whose controller died; there must be one controller at a time. `sampler=None` asks
    enqueued policies only. `keep` gets every result that counts, before it is recorded. Raises `RunFolderError` when
    the place cannot be used or its study answers another question.
    """

    def __init__(
        self,
        place: Place,
        question: Question,
        predict: Predict,
        *,
        sampler: str | None = None,
        trials: int = 0,
        keep: Callable[[TrialResult], None] | None = None,
    ) -> None:
        self._question = question
        self._space = question.space
        self._predict = predict
        self._sampler = sampler
        self._trials = trials if sampler else 0
        self._keep = keep
        self._parameters = distributions(self._space)
        self._results: dict[Policy, TrialResult] = {}
        self._waiting: set[Policy] = set()
        self._running: dict[int, tuple[optuna.Trial, Running]] = {}
        self._slots = 0
        self._finished = 0
        self._storage, self._study = open_study(place, question)
        # Of as many trials as now: a search that goes on with more, or with another table, asks the sampler again.
        exhausted = self._study.user_attrs.get("exhausted", {})
        self._trials = exhausted.get(str(self._trials), self._trials)
        self._reconcile()

    def enqueue(self, policies: Mapping[Policy, str]) -> None:
        """Queue policies with their origin, ahead of the sampler's; those that the study knows already are skipped."""
        busy = {running.spec.policy for _, running in self._running.values()}
        for policy, origin in policies.items():
            if policy not in self._results and policy not in self._waiting and policy not in busy:
                self._study.enqueue_trial(encode(policy, self._space), user_attrs={"origin": origin})
                self._waiting.add(policy)

    def ask_batch(self) -> list[TrialSpec]:
        """The trials to run next, empty when the rung is finished. Finish all of them before asking again."""
        specs: list[TrialSpec] = []
        while (spec := self._ask()) is not None:
            specs.append(spec)
            if not self._waiting and self._slots % BATCH_SIZE == 0:
                break
        return specs

    def finish(self, result: TrialResult) -> TrialSpec | None:
        """Record a result, raw values first; returns the next attempt when the trial is to be tried again.

        A policy may fail once and be lost some more times. A result of a trial that is not running, or of an attempt
        that was given up, is ignored: it came too late.
        """
        if result.number not in self._running:
            return None
        trial, running = self._running[result.number]
        if running.spec.attempt != result.attempt:
            return None
        if result.status in ("failed", "lost"):
            reason = running.count(result)
            trial.set_user_attr("attempts", running.attempts)
            if reason is None:
                return running.spec
            result = replace(result, status="failed", error=reason)
        elif self._keep is not None:
            self._keep(result)
        del self._running[result.number]
        self._record(trial, self._priced(result))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self) -> TrialSpec | None:
        proposals, most = 0, _PROPOSALS_PER_LIMIT * len(self._question.limits)
        while self._waiting or (self._slots < self._trials and proposals < most):
            proposals += not self._waiting
            trial, policy = self._propose(proposals)
            if self._settled(trial, policy):
                continue
            return self._hand_out(trial, policy)
        if not self._running and self._slots < self._trials:
            # All that the sampler proposes is known: the space holds no more, or none that it finds.
            self._study.set_user_attr("exhausted", {str(self._trials): self._slots})
            self._trials = self._slots
        return None

    def _propose(self, attempt: int) -> tuple[optuna.Trial, Policy]:
        seed = int(digest_of([self._question.run_seed, "proposal", self._slots, attempt], length=8), 16)
        limits = self._question.limits
        # A limit near the floor admits few policies; after some attempts the slot goes to the next limit.
        turn = self._slots + attempt // _PROPOSALS_PER_LIMIT

        def project(parameters: Parameters) -> Parameters:
            return self._unseen(parameters, limits[turn % len(limits)], np.random.default_rng(seed))

        sampler = Projected(make_sampler(self._sampler or "random", seed), self._parameters, project)
        self._study.sampler = sampler
        trial = self._study.ask(self._parameters)
        policy = decode(trial.params, self._space)
        self._waiting.discard(policy)
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", "repair" if sampler.moved else "sampler")
        trial.set_user_attr("digest", policy.digest())
        return trial, policy

    def _unseen(self, parameters: Parameters, limit: Limit, rng: np.random.Generator) -> Parameters:
        """A proposal moved onto a limit, to a policy that was not scored yet; from a random start if need be.

        Near the floor of the space many proposals lead to the same few policies.
        """
        proposed, fitted = decode(parameters, self._space), None
        busy = {running.spec.policy for _, running in self._running.values()}
        for attempt in range(_PROJECTIONS):
            if attempt >= _PROJECTIONS // 2:
                levels = self._space.levels
                proposed = self._space.policy({name: int(rng.choice(levels[name])) for name in self._space.searched})
            fitted = fit_to_limit(proposed, self._space, self._predict, limit, rng)
            if fitted is None or (fitted not in self._results and fitted not in busy):
                break
        return parameters if fitted is None else encode(fitted, self._space)

    def _settled(self, trial: optuna.Trial, policy: Policy) -> bool:
        """Tell a trial that need not run: known already, failed, too dear, or running elsewhere."""
        (costs,) = self._predict([policy])
        beyond, loosest = min(
            ((float(excess(costs, limit)), limit) for limit in self._question.limits),
            key=lambda found: found[0],
            default=(0.0, None),
        )
        trial.set_constraint("budget", beyond)
        known = self._results.get(policy)
        if known is not None and known.measurement is not None:
            trial.set_user_attr("cached_from", known.number)
            self._study.tell(trial, objectives(known.measurement))
        elif loosest is not None and beyond > 0:
            reason = f"predicted {loosest.shown(costs)}: {beyond:.1%} beyond the loosest limit, {loosest}"
            self._record(trial, self._result(trial.number, policy, reason))
        elif any(policy == running.spec.policy for _, running in self._running.values()):
            self._fail(trial, "duplicate of a running trial")
        elif known is not None and known.status == "failed":
            self._fail(trial, f"failed before: {known.error}")
        else:
            return False
        return True

    def _infeasible(self, policy: Policy) -> bool:
        (costs,) = self._predict([policy])
        return all(excess(costs, limit) > 0 for limit in self._question.limits)

    def _hand_out(self, trial: optuna.Trial, policy: Policy) -> TrialSpec:
        if "slot" not in trial.user_attrs:
            trial.set_user_attr("slot", self._slots)
            self._slots += 1
        fidelity = self._question.fidelity
        seed = trial_seed(self._question.run_seed, fidelity)
        attempts = list(trial.user_attrs.get("attempts", ()))
        spec = TrialSpec(number=trial.number, policy=policy, fidelity=fidelity, seed=seed, attempt=len(attempts) + 1)
        self._running[trial.number] = (trial, Running(spec, attempts))
        return spec

    def _result(self, number: int, policy: Policy, reason: str) -> TrialResult:
        fidelity = self._question.fidelity
        seed = trial_seed(self._question.run_seed, fidelity)
        return TrialResult(
            number=number, policy=policy, fidelity=fidelity, status="infeasible", seed=seed, error=reason
        )

    def _record(self, trial: optuna.Trial, result: TrialResult) -> None:
        trial.set_user_attr("result", result.to_json())
        self._tell(result)
        self._remember(result)

    def _tell(self, result: TrialResult) -> None:
        if result.measurement is not None:
            self._study.tell(result.number, objectives(result.measurement))
        else:
            self._study.tell(result.number, state=_STATES[result.status])

    def _remember(self, result: TrialResult) -> None:
        self._results[result.policy] = result

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def _reconcile(self) -> None:
        """Rebuild what is known from the study, and settle what a dead controller left running."""
        trials = self._study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.RUNNING and "result" not in trial.user_attrs:
                self._lose(trial, queue_again=trial.number not in retried)
            self._slots = max(self._slots, trial.user_attrs.get("slot", -1) + 1)
        for trial in self._study.get_trials(deepcopy=False):
            self._restore(trial)

    def _lose(self, trial: FrozenTrial, *, queue_again: bool) -> None:
        parameters = trial.system_attrs.get("fixed_params", trial.params)
        if queue_again and ("slot" in trial.user_attrs or "fixed_params" in trial.system_attrs):
            kept = {key: trial.user_attrs[key] for key in ("origin", "slot", "attempts") if key in trial.user_attrs}
            self._study.enqueue_trial(parameters, user_attrs=kept | {"retry_of": trial.number})
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
            if trial.state == TrialState.RUNNING:
                self._tell(result)
            if result.status != "infeasible" or self._infeasible(result.policy):
                self._remember(result)
            self._finished += "slot" in trial.user_attrs
