"""Studies that users begin themselves: the policy of a trial, an objective, and what such a study must agree with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from autoprune.allocation.limits import Predict, fits
from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.records import Policy, SearchSpace
from autoprune.study.pricing import Pricing
from autoprune.study.samplers import CONSTRAINT, decode, distributions
from autoprune.study.spec import SPEC_KEY, StudySpec, objectives
from autoprune.trials import TrialResult, TrialSpec

_DIRECTIONS = [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
_SIZES = ("params", "macs", "bytes", "activation_bytes")


@dataclass(frozen=True, kw_only=True)
class ProblemSpec:
    """The question that a study answers, and of which dense model: `weights` is the digest of its weights."""

    study_spec: StudySpec
    weights: str

    @property
    def space(self) -> SearchSpace:
        """Decisions and their levels."""
        return self.study_spec.space

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that a study must agree with."""
        return self.study_spec.to_json() | {"weights": self.weights}

    def check(self, study: optuna.Study) -> None:
        """Raise `UsageError` when a study has other directions, or trials of another problem."""
        if study.directions != _DIRECTIONS:
            shown = [direction.name.lower() for direction in study.directions]
            raise UsageError(
                "a study of policies minimises two values, the logarithm of the loss and the latency in milliseconds; "
                f"this one has the directions {shown}. Create it with directions=['minimize', 'minimize']"
            )
        ours, theirs = self.to_json(), study.user_attrs.get(SPEC_KEY)
        if theirs is not None and theirs != ours:
            changed = [name for name in ours if theirs.get(name) != ours[name]]
            was = ", ".join(f"{name} was {theirs.get(name)} and is {ours[name]}" for name in changed)
            raise UsageError(f"the study {study.study_name!r} is of another problem: {was}. Use a new study")

    def with_policies(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of a study's trials that have all parameters; `UsageError` for parameters of another space."""
        parameters = distributions(self.space)
        for trial in trials:
            if any(parameters.get(name) != theirs for name, theirs in trial.distributions.items()):
                raise UsageError(
                    f"trial {trial.number} of the study {study.study_name!r} has the parameters of another space. "
                    "Use a new study for this problem"
                )
        return [trial for trial in trials if trial.params.keys() == parameters.keys()]


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """The loss and the latency of a policy as an objective of Optuna; every sampler can search with it.

    It suggests one parameter for each decision and returns the logarithm of the loss and the predicted latency in
    milliseconds. The constraint `budget` is above 0 for a policy that is beyond the loosest budget. A policy that the
    study has scored already keeps its values, and one that cannot be scored is stopped (`TrialPruned`).

    Args:
        problem: what the study must agree with.
        predict: costs of policies, `[P, K]`.
        score: runs a trial; its result says so when it failed.
        dense_ms: latency of the dense model.
        budgets: their limits, as they were written.
    """

    problem: ProblemSpec
    predict: Predict
    score: Callable[[TrialSpec], TrialResult]
    dense_ms: float
    budgets: Mapping[str, Limit]
    _one_at_a_time: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def __call__(self, trial: optuna.Trial) -> tuple[float, float]:
        """Score the policy that the study's sampler suggests.

        Returns:
            The logarithm of the divergence from the dense model's outputs, and the predicted latency in milliseconds.

        Raises:
            UsageError: when the study is of another problem.
            TrialPruned: when the policy cannot be scored; the attribute `error` says why.
        """
        self.problem.check(trial.study)
        if SPEC_KEY not in trial.study.user_attrs:
            self.problem.with_policies(trial.study, trial.study.get_trials(deepcopy=False))
            trial.study.set_user_attr(SPEC_KEY, self.problem.to_json())
        policy = suggested(trial, self.problem.space)
        pricing = Pricing(self.problem.study_spec, self.predict)
        trial.set_user_attr("digest", policy.digest())
        trial.set_constraint(CONSTRAINT, pricing.beyond(policy))
        result = pricing.priced(self._result(trial, policy))
        for name, value in self._described(result).items():
            trial.set_user_attr(name, value)
        if result.measurement is None:
            raise optuna.TrialPruned(result.error)
        return objectives(result.measurement)

    def _result(self, trial: optuna.Trial, policy: Policy) -> TrialResult:
        """Return the result of a policy: an earlier one of the study, or that of a new evaluation."""
        digest = policy.digest()
        for earlier in trial.study.get_trials(deepcopy=False):
            if earlier.user_attrs.get("digest") == digest and "result" in earlier.user_attrs:
                trial.set_user_attr("cached_from", earlier.number)
                return replace(TrialResult.from_json(earlier.user_attrs["result"]), number=trial.number)
        with self._one_at_a_time:  # threads of a study share the dense model
            return self.score(self.problem.study_spec.trial(trial.number, policy))

    def _described(self, result: TrialResult) -> dict[str, Any]:
        """Return the attributes of a trial: the whole result, and what people look at."""
        policy, measurement = result.policy, result.measurement
        attributes: dict[str, Any] = {"result": result.to_json(), "widths": dict(policy.widths)}
        if policy.treatments:
            attributes["treatments"] = {name: str(treatment) for name, treatment in policy.treatments.items()}
        if measurement is None:
            return attributes | {"error": result.error}
        (costs,) = self.predict([policy])
        return attributes | {
            "score": measurement.score,
            "latency_share": measurement.latency_ms / self.dense_ms,
            "meets": [budget for budget, limit in self.budgets.items() if fits(costs, limit)],
            "sizes": {name: getattr(measurement, name) for name in _SIZES},
        }


def suggested(trial: optuna.Trial, space: SearchSpace) -> Policy:
    """Return the policy that the sampler of a study suggests for a trial, decision by decision."""
    for name, distribution in distributions(space).items():
        if isinstance(distribution, IntDistribution):
            trial.suggest_int(name, distribution.low, distribution.high)
        elif isinstance(distribution, CategoricalDistribution):
            trial.suggest_categorical(name, distribution.choices)
    return decode(trial.params, space)


def scored_policies(study: optuna.Study) -> list[TrialResult]:
    """Return the result of every policy that `PolicyObjective` scored in a study, once each, by trial number."""
    trials = [t for t in study.get_trials(deepcopy=False) if "result" in t.user_attrs and t.state.is_finished()]
    results = [TrialResult.from_json(trial.user_attrs["result"]) for trial in trials]
    return list({result.policy: result for result in reversed(results) if result.measurement is not None}.values())[
        ::-1
    ]
