"""Costs of the policies of one study, by the predictor and the limits of today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from autoprune.allocation.limits import Predict, excess, violation
from autoprune.records import Policy
from autoprune.study.attempts import given_up
from autoprune.study.samplers import finished_trial
from autoprune.study.spec import StudySpec
from autoprune.trials import TrialResult


@dataclass(frozen=True)
class Pricing:
    """Prices policies for one study."""

    study_spec: StudySpec
    predict: Predict

    def beyond(self, policy: Policy) -> float:
        """Return how far a policy is beyond the loosest limit, as a share of it; 0 or less when it fits."""
        return violation(self.predict([policy])[0], self.study_spec.limits)

    def excess(self, policy: Policy) -> str:
        """Return why a policy is infeasible."""
        (costs,) = self.predict([policy])
        loosest = min(self.study_spec.limits, key=lambda limit: excess(costs, limit))
        return f"predicted {loosest.shown(costs)}: {excess(costs, loosest):.1%} beyond the loosest limit, {loosest}"

    def priced(self, result: TrialResult) -> TrialResult:
        """Return a result with the latency predicted now: a latency table that was fitted again moves old trials."""
        if result.measurement is None:
            return result
        latency_ms = float(self.predict([result.policy])[0, 0])
        return replace(result, measurement=replace(result.measurement, latency_ms=latency_ms))

    def finished_trial(self, result: TrialResult) -> FrozenTrial:
        """Return a result of another study as a trial of this one, priced by today's predictor and limits."""
        return finished_trial(self.priced(result), self.study_spec.space, self.beyond(result.policy))


def ended_early(attributes: Mapping[str, Any], timeout_s: float | None) -> bool:
    """Whether a trial with these attributes was given up because of a time limit shorter than `timeout_s`."""
    failed = attributes.get("result", {}).get("status") == "failed"
    attempts = attributes.get("attempts", ())
    return failed and bool(attempts) and given_up(attempts, timeout_s) is None
