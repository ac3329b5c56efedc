"""A table of scored policies: what a search would be told, without a model. No torch.

A CSV file with a line for every policy and fidelity; `scripts/benchmarks/replay.py make` writes it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.trials import Fidelity, Measurement, TrialResult

Array = npt.NDArray[np.float64]

RUNGS = (
    Fidelity(name="proxy", rung=0, val_samples=1_000),
    Fidelity(name="brief", rung=1, finetune_samples=2_000, val_samples=1_000),
    Fidelity(name="epoch", rung=2, finetune_samples=55_000),
)
"""Fidelities of the table: repaired only, 2,000 samples of fine-tuning, one epoch (scored on all validation data)."""

_RESULT = ("score", "loss", "sample_passes")
_ABSENT = 1e30
"""Every cost of a policy outside the table."""


def header(units: Sequence[str]) -> list[str]:
    """Columns of the file, for the units of a model."""
    return ["origin", "fidelity", *units, *COSTS, *_RESULT]


def line(origin: str, result: TrialResult) -> dict[str, str]:
    """The line of a result, whose latency is a prediction."""
    measurement = measured(result)
    values = {"origin": origin, "fidelity": result.fidelity.name}
    values |= {unit: str(width) for unit, width in result.policy.widths.items()}
    values |= {name: str(getattr(measurement, name)) for name in COSTS} | {
        "latency_ms": f"{measurement.latency_ms:.6g}"
    }
    return values | {
        "score": f"{measurement.score:.6g}",
        "loss": f"{measurement.loss:.6g}",
        "sample_passes": f"{result.sample_passes:.0f}",
    }


def measured(result: TrialResult) -> Measurement:
    """The measurement of a trial that is done."""
    assert result.measurement is not None
    return result.measurement


@dataclass(frozen=True)
class ReplayTable:
    """Results by fidelity and policy, and the origin of each. The space has every width of every policy."""

    space: SearchSpace
    results: Mapping[str, Mapping[Policy, TrialResult]]
    origins: Mapping[Policy, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, space_id: str = "replay") -> ReplayTable:
        """Read a table, as policies of a space with that name."""
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # an interruption may have cut off the last line
        lines = csv.DictReader(whole.splitlines())
        units = [name for name in lines.fieldnames or () if name not in header(())]
        rows = list(lines)
        levels = {name: tuple(sorted({int(row[name]) for row in rows} or {1})) for name in units}
        space = SearchSpace(id=space_id, levels=levels)
        rungs = {rung.name: rung for rung in RUNGS}
        results: dict[str, dict[Policy, TrialResult]] = {name: {} for name in rungs}
        origins: dict[Policy, str] = {}
        for row in rows:
            policy = space.policy({name: int(row[name]) for name in units})
            results[row["fidelity"]][policy] = _result(policy, rungs[row["fidelity"]], row)
            origins.setdefault(policy, row["origin"])
        return cls(space=space, results=results, origins=origins)

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        """All that have a proxy score."""
        return tuple(self.results[RUNGS[0].name])

    @cached_property
    def costs(self) -> Array:
        """Costs of `policies`, `[P, K]`."""
        return np.array([measured(result).costs() for result in self.results[RUNGS[0].name].values()])

    @cached_property
    def levels(self) -> npt.NDArray[np.int64]:
        """Which of its levels every searched unit has in every policy, `[P, units]`."""
        return np.array([self.level(policy) for policy in self.policies])

    def level(self, policy: Policy) -> npt.NDArray[np.int64]:
        """As `levels`, of one policy of the space."""
        return np.array(self.space.places(policy))

    def predict(self, policies: Sequence[Policy]) -> Array:
        """Costs `[P, K]`, those of policies outside the table beyond any limit."""
        rows = [self._row.get(policy) for policy in policies]
        absent = np.full(len(COSTS), _ABSENT)
        return np.array([absent if row is None else self.costs[row] for row in rows]).reshape(-1, len(COSTS))

    def limit(self, share: float) -> Limit:
        """A share of the latency of the largest policy."""
        return Limit.of(latency_ms=share * float(self.predict([self.space.largest()])[0, 0]))

    def within(self, limit: Limit, fidelity: str) -> dict[Policy, Measurement]:
        """Everything that fits a limit and has that score."""
        measurements = {policy: measured(result) for policy, result in self.results[fidelity].items()}
        return {policy: one for policy, one in measurements.items() if fits(one.costs(), limit)}

    def nearest(
        self, policy: Policy, space: SearchSpace, predict: object, limit: Limit, rng: np.random.Generator
    ) -> Policy | None:
        """Counterpart of `limit_fitting.fit_to_limit`: the nearest policy that no other within the limit widens.

        Distances are summed shares of each unit's levels; of several that are as near, any. `None` when nothing fits.
        """
        del space, predict
        candidates = self._maximal(limit)
        if not candidates.size:
            return None
        most = np.array([len(self.space.levels[name]) - 1 for name in self.space.searched])
        distance = (np.abs(self.levels[candidates] - self.level(policy)) / most).sum(axis=1)
        return self.policies[int(rng.choice(candidates[distance <= distance.min() + 1e-9]))]

    @cached_property
    def _row(self) -> dict[Policy, int]:
        return {policy: row for row, policy in enumerate(self.policies)}

    @cached_property
    def _maximal(self) -> Callable[[Limit], npt.NDArray[np.int64]]:
        @cache
        def maximal(limit: Limit) -> npt.NDArray[np.int64]:
            rows = np.flatnonzero(fits(self.costs, limit))
            levels = self.levels[rows]
            wider = (levels[None] >= levels[:, None]).all(axis=2) & (levels[None] > levels[:, None]).any(axis=2)
            return rows[~np.any(wider, axis=1)]

        return maximal


def _result(policy: Policy, rung: Fidelity, row: Mapping[str, str]) -> TrialResult:
    sizes = {name: int(row[name]) for name in COSTS if name != "latency_ms"}
    measurement = Measurement(
        score=float(row["score"]),
        loss=float(row["loss"]),
        latency_ms=float(row["latency_ms"]),
        latency_source="predicted",
        **sizes,
    )
    passes = float(row["sample_passes"])
    return TrialResult(
        number=0, policy=policy, fidelity=rung, status="done", seed=0, measurement=measurement, sample_passes=passes
    )
