"""Where latencies come from: the one value through which the pipeline measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from autoprune.config import RunConfig
from autoprune.device import timing
from autoprune.device.connect import make_target
from autoprune.device.runner import time_models
from autoprune.device.target import Target
from autoprune.device.timing import Feeds, Model, Timings
from autoprune.profiling.policy_timer import PolicyTimer, Progress, make_policy_timer
from autoprune.structure import Structure

CANDIDATE_PROTOCOL = timing.Protocol(repeats=60)
"""Candidates are few, and they decide: each is repeated more often than a policy of a profile."""


class Measurer(Protocol):
    """Measures models on one target. Give `search` one of your own to measure in another way.

    Whatever an implementation raises ends the stage that asked; a `LatencyError` is shown as one line.
    """

    @property
    def target(self) -> Target:
        """The target that latencies are measured on; it decides the form of the models (`Target.runtime`)."""
        ...

    def policy_timer(
        self, structure: Structure, *, layers: Sequence[str] = (), seed: int, on_progress: Progress | None = None
    ) -> PolicyTimer:
        """Return what times policies of a structure beside its dense model, for a latency table.

        `layers` are the names of those that the policies may treat.
        """
        ...

    def timings(
        self, models: Sequence[Model], reference: Model, feeds: Feeds, *, protocol: timing.Protocol | None = None
    ) -> Timings:
        """Time models beside a reference.

        Args:
            models: ONNX files, or modules for a target that runs PyTorch.
            reference: the dense model in the same form.
            feeds: one array for each input, at the batch of the target.
            protocol: how often each model runs (default: `CANDIDATE_PROTOCOL`).
        """
        ...


@dataclass(frozen=True)
class DeviceMeasurer:
    """Measures on a real target: this host, or another one over ssh."""

    target: Target

    @classmethod
    def of(cls, config: RunConfig) -> DeviceMeasurer:
        """Return the measurer of the target that a configuration names; the device is asked who it is.

        Raises:
            UsageError: for a target that this host does not have.
            LatencyError: when another host cannot be asked.
        """
        return cls(make_target(config.target, config.threads, config.batch, config.precision))

    def policy_timer(
        self, structure: Structure, *, layers: Sequence[str] = (), seed: int, on_progress: Progress | None = None
    ) -> PolicyTimer:
        """Return a timer of policies on the target."""
        return make_policy_timer(structure, self.target, layers=layers, seed=seed, on_progress=on_progress)

    def timings(
        self, models: Sequence[Model], reference: Model, feeds: Feeds, *, protocol: timing.Protocol | None = None
    ) -> Timings:
        """Time models interleaved with the reference; `LatencyError` for one that the target cannot run."""
        return time_models(models, self.target, feeds, reference=reference, protocol=protocol or CANDIDATE_PROTOCOL)
