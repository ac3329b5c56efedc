"""A sampler for any study of Optuna that proposes whole policies, round by round, from all losses so far.

Nothing is kept beside the study. A trial that begins a round notes what was known then, so a sampler that is opened on
a study, in another process or after an interruption, proposes the same rounds again and goes on behind them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from autoprune.records import Policy, digest_of
from autoprune.study.attempts import MAX_FAILURES, MAX_LOSSES
from autoprune.study.optuna_private import FIXED_PARAMETERS, note_on_trial
from autoprune.study.own_studies import ProblemSpec
from autoprune.study.samplers import Parameters, decode, distributions, encode

_NOTES = "autoprune:guided"
"""System attribute of a trial: its policy as level indices, and what was known when rounds began with it."""

_PATIENCE = 16
"""A policy whose trial still runs so many trials later is proposed again: its process was probably killed."""


class Rounds(Protocol):
    """Proposes rounds of policies: the same losses at every round give the same policies."""

    @property
    def waits(self) -> bool:
        """Whether the next round needs the losses of all rounds before it."""
        ...

    def propose(self, losses: Mapping[Policy, float]) -> Mapping[Policy, str]:
        """Return the policies of the next round with their origins; none at the end."""
        ...


@dataclass(frozen=True)
class _Known:
    """The trials that were finished when a round was begun: those below a number, without the `unfinished` ones."""

    below: int
    unfinished: Sequence[int]

    @classmethod
    def now(cls, recorded: Sequence[FrozenTrial]) -> _Known:
        """Return the trials that are finished in a study."""
        below = max((trial.number + 1 for trial in recorded if trial.state.is_finished()), default=0)
        return cls(below, [t.number for t in recorded if t.number < below and not t.state.is_finished()])

    def losses(self, trials: Sequence[_Trial]) -> dict[Policy, float]:
        """Losses of the policies that were scored then, in the order of their trials."""
        known = [t for t in trials if t.number < self.below and t.number not in self.unfinished]
        return {trial.policy: trial.loss for trial in known if trial.loss is not None}


@dataclass(frozen=True)
class _Trial:
    """A trial as far as proposals need it; `loss` is there when it is complete."""

    number: int
    policy: Policy
    state: TrialState
    loss: float | None


class _Course:
    """The rounds of one study that were begun so far."""

    def __init__(self, rounds: Rounds) -> None:
        self.begun: list[_Known] = []
        self._rounds = rounds
        self._origins: dict[Policy, str] = {}

    def begin(self, known: _Known, trials: Sequence[_Trial]) -> bool:
        """Begin the next round by what is known; return whether it has policies."""
        policies = self._rounds.propose(known.losses(trials))
        for policy, origin in policies.items():
            self._origins.setdefault(policy, origin)
        self.begun.append(known)
        return bool(policies)

    def next(self, number: int, trials: Sequence[_Trial], before: int) -> tuple[Policy, str] | None:
        """Return the policy of trial `number` with its origin, or `None` when a new round is to begin first.

        So many policies are left to the trials that began `before` this one and have none yet.
        """
        attempts: dict[Policy, list[_Trial]] = {}
        for trial in trials:
            attempts.setdefault(trial.policy, []).append(trial)
        new = [policy for policy in self._origins if policy not in attempts]
        at = min(before, len(new) - 1)
        policy = self._interrupted(attempts) or (new[at] if new else self._overdue(number, attempts))
        return None if policy is None else (policy, self._origins[policy])

    def _interrupted(self, attempts: Mapping[Policy, Sequence[_Trial]]) -> Policy | None:
        """Return a policy whose trial an exception ended, so that a study that goes on asks as if nothing had been."""
        for policy in self._origins:
            trials = attempts.get(policy, ())
            if trials and len(trials) < MAX_FAILURES and all(trial.state == TrialState.FAIL for trial in trials):
                return policy
        return None

    def _overdue(self, number: int, attempts: Mapping[Policy, Sequence[_Trial]]) -> Policy | None:
        """Return a policy whose trial runs for very long; or for any time, if the next round waits for its loss."""
        late: list[tuple[int, int, Policy]] = []
        for policy in self._origins:
            trials = attempts[policy]
            ended = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
            overdue = self._rounds.waits or number - trials[-1].number > _PATIENCE
            if not ended and trials[-1].state == TrialState.RUNNING and overdue and len(trials) < MAX_LOSSES:
                late.append((len(trials), trials[-1].number, policy))
        return min(late, key=lambda entry: entry[:2])[2] if late else None


class RoundSampler(BaseSampler):
    """Proposes the policies of rounds; one sampler may serve threads, and several processes may have one each.

    Args:
        problem: what the study must agree with.
        begin: returns the rounds from their beginning.
        seed: of the random policies that follow when the rounds are at their end.
    """

    def __init__(self, problem: ProblemSpec, begin: Callable[[], Rounds], seed: int) -> None:
        self._problem = problem
        self._begin = begin
        self._course = _Course(begin())
        self._seed = seed
        self._lock = threading.Lock()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All decisions: a policy is proposed as a whole."""
        return distributions(self._problem.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Parameters:
        """Propose the next policy.

        Raises:
            UsageError: when the study is of another problem.
        """
        self._problem.check(study)
        if FIXED_PARAMETERS in trial.system_attrs:  # enqueued with some parameters: the rest is drawn at random
            return {}
        with self._lock:
            recorded = study.get_trials(deepcopy=False)
            trials = self._with_policies(study, [other for other in recorded if other.number != trial.number])
            notes = [other.system_attrs.get(_NOTES, {}) for other in recorded]
            beginnings = [_Known(*known) for noted in notes for known in noted.get("rounds", ())]
            self._follow(beginnings, trials)
            begun, known, before = list[_Known](), _Known.now(recorded), _without_policy(trial.number, recorded, trials)
            while (proposal := self._course.next(trial.number, trials, before)) is None:
                begun.append(known)
                if not self._course.begin(known, trials):
                    break
            policy, origin = proposal or (None, "random")
            noted: dict[str, Any] = {"rounds": [[known.below, [*known.unfinished]] for known in begun]}
            if policy is not None:
                noted["policy"] = self._problem.space.places(policy)
            note_on_trial(study, trial, {_NOTES: noted}, {"origin": origin})
        return {} if policy is None else encode(policy, self._problem.space)

    def _follow(self, beginnings: Sequence[_Known], trials: Sequence[_Trial]) -> None:
        """Begin the rounds that the study has and this sampler has not, or all when its own are others."""
        followed = self._course.begun
        if beginnings[: len(followed)] != followed:  # it is another study, or another process began a round before
            self._course = _Course(self._begin())
        for known in beginnings[len(self._course.begun) :]:
            self._course.begin(known, trials)

    def _with_policies(self, study: optuna.Study, recorded: Sequence[FrozenTrial]) -> list[_Trial]:
        """Return the trials whose policy is known: by its parameters, or by what this sampler noted before."""
        with_parameters = {trial.number for trial in self._problem.with_policies(study, recorded)}
        space, trials = self._problem.space, list[_Trial]()
        for trial in recorded:
            noted = trial.system_attrs.get(_NOTES, {})
            if "policy" in noted:
                policy = space.at(noted["policy"])
            elif trial.number in with_parameters:
                policy = decode(trial.params, space)
            else:
                continue
            trials.append(_Trial(trial.number, policy, trial.state, _loss(trial)))
        return trials

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value: the rounds are at their end, or the parameter is no decision of the space."""
        seed = int(digest_of([self._seed, trial.number, param_name], length=8), 16)
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)


def _without_policy(number: int, recorded: Sequence[FrozenTrial], trials: Sequence[_Trial]) -> int:
    """Return how many trials that began shortly before this one take their policies at this moment."""
    with_policy, recent = {trial.number for trial in trials}, range(number - _PATIENCE, number)
    running = [t.number for t in recorded if t.state == TrialState.RUNNING and t.number in recent]
    return len(set(running) - with_policy)


def _loss(trial: FrozenTrial) -> float | None:
    """Return the loss of a trial that is complete; objectives of others return its logarithm alone."""
    if trial.state != TrialState.COMPLETE:
        return None
    measurement = trial.user_attrs.get("result", {}).get("measurement")
    return measurement["loss"] if measurement else math.exp(trial.values[0])
