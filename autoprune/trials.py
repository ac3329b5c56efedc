"""Trials, their results, and the models of a front. Continues `records`; the same rules hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from autoprune.errors import UsageError
from autoprune.records import COSTS, Policy, digest_of

Status = Literal["done", "infeasible", "failed", "lost"]
"""A trial `failed` by its policy's own fault; it is `lost` when its worker, its host or its time was lost."""

BASELINES = ("uniform", "global magnitude", "LAMP", "ERK")
"""Strategies of the models that every search is compared with; all but the first share out zeros among weights."""

FORWARD_SHARE = 1 / 3
"""Sample passes of a forward pass alone: a backward pass takes about twice as many multiplications."""

HELD_OUT_EXAMPLES = 128
"""Validation examples, at most, by which a fine-tuning goes back to an earlier state."""

CHECKS_SHARE = 0.1
"""Passes over these examples during a fine-tuning, at most, as a share of its training; two more are at its ends."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How expensively a policy is scored: `finetune_samples` training examples after BN recalibration.

    `rung` orders fidelities from cheap to dear; the proxy has no fine-tuning at all. `val_samples` caps the validation
    examples that the score is taken on (0: all).
    """

    name: str
    rung: int
    finetune_samples: int = 0
    val_samples: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fidelity:
        """Build the value that `to_json` wrote."""
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Score and costs of one policy at one fidelity.

    `score` is the task's metric on validation data (higher is better); `loss` is the divergence from the dense model's
    outputs on the same data (lower is better, less noisy than the score). `latency_source` says whether `latency_ms`
    was predicted or measured, or ("none") only puts policies in an order, because no budget limits latency. `bytes`
    counts parameters and float buffers in fp32, `activation_bytes` the live activations of one example at their peak.
    """

    score: float
    loss: float
    latency_ms: float
    latency_source: Literal["predicted", "measured", "none"]
    params: int
    macs: int
    bytes: int
    activation_bytes: int

    def __post_init__(self) -> None:
        for name in ("score", "loss", "latency_ms"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"a measurement must be finite; {name} is {getattr(self, name)}")

    def costs(self) -> tuple[float, ...]:
        """Return the costs `[K]`, in the order of `COSTS`."""
        return tuple(float(getattr(self, name)) for name in COSTS)

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """Build the value that `to_json` wrote."""
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One policy to be scored at one fidelity: all that an executor needs to know.

    A trial that is run again keeps its number and its seed and is another `attempt`. Only the result of the last
    attempt counts.
    """

    number: int
    policy: Policy
    fidelity: Fidelity
    seed: int
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Outcome of a trial: a measurement when it is `done`, a reason when it `failed` or was `lost`.

    `weights` is the safetensors file of a model that is to be kept; it is no part of the JSON value. `undone` says that
    fine-tuning ended with a lower score than it had begun with, so that the model before fine-tuning was kept.
    """

    number: int
    policy: Policy
    fidelity: Fidelity
    status: Status
    seed: int
    measurement: Measurement | None = None
    error: str | None = None
    seconds: float = 0.0
    sample_passes: float = 0.0
    attempt: int = 1
    undone: bool = False
    weights: bytes | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.status == "done") != (self.measurement is not None):
            raise UsageError(f"a trial has a measurement exactly when it is done; status is {self.status!r}")
        if self.status in ("failed", "lost") and not self.error:
            raise UsageError("a trial that failed or was lost says why")

    @classmethod
    def without_measurement(cls, spec: TrialSpec, status: Status, reason: str, seconds: float = 0.0) -> TrialResult:
        """Build the result of a trial that measured nothing, with the reason."""
        return cls(
            number=spec.number,
            policy=spec.policy,
            fidelity=spec.fidelity,
            status=status,
            seed=spec.seed,
            error=reason,
            seconds=seconds,
            attempt=spec.attempt,
        )

    def to_json(self) -> dict[str, Any]:
        """Return a plain JSON value."""
        return {name: value for name, value in vars(self).items() if name != "weights"} | {
            "policy": self.policy.to_json(),
            "fidelity": self.fidelity.to_json(),
            "measurement": self.measurement.to_json() if self.measurement else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialResult:
        """Build the value that `to_json` wrote."""
        measurement = value["measurement"]
        return cls(
            **dict(value)
            | {
                "policy": Policy.from_json(value["policy"]),
                "fidelity": Fidelity.from_json(value["fidelity"]),
                "measurement": Measurement.from_json(measurement) if measurement else None,
            }
        )


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """One finished trial, as `search(on_trial=...)` and trackers get it; what was not computed is `None`.

    Args:
        number: of the trial in the study of its rung.
        rung: how expensively it was scored: `sensitivity`, `proxy`, `brief`, `longer` or `full`.
        policy: widths and treatments.
        status: `done`, `infeasible`, `failed` or `lost`.
        score: on validation data, higher is better.
        loss: divergence from the outputs of the dense model, lower is better.
        latency_ms_predicted: by the latency table, if there is one.
        params: of the model.
        macs: multiply-adds of one example.
        bytes: of the weights.
        activation_bytes: peak of one example.
        seconds: that the trial took.
        sample_passes: that it took.
        error: why there is no score.
        best_scores: by budget, the score of the best policy of this rung so far, which is that of the lowest loss.
    """

    number: int
    rung: str
    policy: Policy
    status: Status
    score: float | None = None
    loss: float | None = None
    latency_ms_predicted: float | None = None
    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    activation_bytes: int | None = None
    seconds: float = 0.0
    sample_passes: float = 0.0
    error: str | None = None
    best_scores: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def digest(self) -> str:
        """Name of the policy."""
        return self.policy.digest()

    @classmethod
    def of(cls, result: TrialResult, rung: str, best_scores: Mapping[str, float]) -> FinishedTrial:
        """Return what a result says, beside the best scores of its rung."""
        measured = result.measurement
        sizes = ("score", "loss", "params", "macs", "bytes", "activation_bytes")
        numbers: dict[str, Any] = {} if measured is None else {name: getattr(measured, name) for name in sizes}
        if measured is not None and measured.latency_source != "none":
            numbers["latency_ms_predicted"] = measured.latency_ms
        return cls(
            number=result.number,
            rung=rung,
            policy=result.policy,
            status=result.status,
            seconds=result.seconds,
            sample_passes=result.sample_passes,
            error=result.error,
            best_scores=best_scores,
            **numbers,
        )


def trial_seed(run_seed: int, fidelity: Fidelity) -> int:
    """Return the seed of a trial, from the run seed and the fidelity alone: the same in every executor and order.

    All policies of a rung see the same batches in the same order, so that results differ by the policies alone.
    """
    return int(digest_of([run_seed, fidelity.to_json()], length=8), 16) & 0x7FFFFFFF


@dataclass(frozen=True, kw_only=True)
class FrontModel:
    """One model of `front.json`: a policy with its predicted and, once verified, its measured latency and scores.

    No latency is predicted where no budget limits it; a verified model is measured then, too.
    """

    digest: str
    policy: Policy
    score: float
    test_score: float | None
    latency_ms_predicted: float | None
    latency_ms_measured: float | None
    latency_ratio: float
    params: int
    macs: int
    bytes: int
    fidelity: str
    strategy: str
    budget: str | None = None
    meets_budget: bool | None = None
    onnx: str | None = None
    activation_bytes: int | None = None
    """Absent in runs of versions that did not count them."""
