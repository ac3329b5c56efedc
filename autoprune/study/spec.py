"""Specification of the study of one rung, and its objectives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace
from autoprune.trials import Fidelity, Measurement, TrialSpec, trial_seed

SPEC_KEY = "question"
"""User attribute of a study under which it keeps its specification."""

SMALLEST_LOSS = 1e-9
"""Losses below this are the same to every sampler."""


def objectives(measurement: Measurement) -> tuple[float, float]:
    """Return what a sampler minimises: the logarithm of the loss (far less noisy than the score) and milliseconds."""
    return math.log(max(measurement.loss, SMALLEST_LOSS)), measurement.latency_ms


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The question of a study: which policies of `space` score best at `fidelity` within the limits.

    Without limits any policy may be asked. `stage` names a study that is not the one of its rung.
    """

    space: SearchSpace
    fidelity: Fidelity
    limits: tuple[Limit, ...]
    run_seed: int
    stage: str = ""

    @property
    def study_name(self) -> str:
        """Name of the study in its file."""
        return self.stage or f"rung-{self.fidelity.rung}"

    def trial(self, number: int, policy: Policy, attempt: int = 1) -> TrialSpec:
        """Return the trial of a policy at the fidelity of the study; every attempt has the same seed."""
        seed = trial_seed(self.run_seed, self.fidelity)
        return TrialSpec(number=number, policy=policy, fidelity=self.fidelity, seed=seed, attempt=attempt)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value that a study on disk must agree with; limits are rounded to 6 digits."""
        return {
            "space": self.space.id,
            "fidelity": self.fidelity.to_json(),
            "limits": [{n: float(f"{most:.6g}") for n, most in limit.to_json().items()} for limit in self.limits],
            "run_seed": self.run_seed,
        }
