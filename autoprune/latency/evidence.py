"""From timed policies to a table: the same path for a profile, a device kit, and a run that measured its candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from autoprune.errors import LatencyError
from autoprune.latencies import Geometry
from autoprune.latency.efficient_widths import staircases, useful_treatments
from autoprune.latency.fitting import Fit, HeldOut, fit, held_out
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.monotonicity import ordered_chains
from autoprune.latency.predictor import MISSING, Costs, GeometryIndex, LatencyPredictor, Prediction
from autoprune.latency.table import CANDIDATE, HELD_OUT, Entry, LatencyTable, ProfiledPolicy
from autoprune.records import SearchSpace
from autoprune.structure import Structure
from autoprune.structure.layer_decisions import policy_of

_DENSE_WEIGHT = 5.0
"""Budgets are shares of the dense latency, so the table must be exact there; it is also the best measured model."""

_CANDIDATE_WEIGHT = 3.0
"""Candidates of a search are where the table must be right, and they are measured longer."""

_LEAST_FACTOR = 0.25
_LEAST_NOISE = 0.001


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Timed policies: rows `[M, U + L]`, latency as a share of the dense model's `[M]`, and why each was timed."""

    rows: np.ndarray
    ratios: np.ndarray
    roles: tuple[str, ...]

    def where(self, *roles: str) -> np.ndarray:
        """Mask `[M]` of the policies of some roles."""
        return np.isin(np.array(self.roles), roles)

    def fitted(self) -> np.ndarray:
        """Mask `[M]` of the policies that a table may be fitted to."""
        return ~self.where(HELD_OUT)

    def plus(self, rows: np.ndarray, ratios: np.ndarray, role: str) -> Evidence:
        """This evidence and some more of one role."""
        return Evidence(
            rows=np.concatenate([self.rows, rows]),
            ratios=np.concatenate([self.ratios, ratios]),
            roles=(*self.roles, *[role] * len(rows)),
        )

    @classmethod
    def none(cls, columns: int) -> Evidence:
        """No policies of so many units and layers."""
        return cls(rows=np.empty((0, columns), dtype=np.int64), ratios=np.empty(0), roles=())


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How evidence was timed: numbers that the fit of a table needs, and others that the table keeps for its readers.

    `dense_ms` is the latency of the dense model, `noise` the relative standard deviation of a ratio, `again` `[A]`
    second ratios of the first `A` held-out policies, `drift` how far the dense model moved within a block (relative),
    `seconds` what all of it took, `refits` how often a run has fitted the evidence again.
    """

    dense_ms: float
    noise: float
    seed: int
    again: np.ndarray
    drift: float = 0.0
    repeated_blocks: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()
    refits: int = 0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.dense_ms) and self.dense_ms > 0 and np.isfinite(self.noise) and self.noise >= 0):
            raise LatencyError(
                "policies are timed beside a dense model with a latency above 0, and their noise is 0 or more; "
                f"got {self.dense_ms} ms and {self.noise}. Measure again."
            )


def occurrences(numbers: np.ndarray, entries: int) -> np.ndarray:
    """How often every entry occurs in every policy: float64 `[P, E]`, from positions `[P, operators]`.

    Operators without an entry (`MISSING`, `ABSENT`) are counted nowhere.
    """
    counts = np.zeros((len(numbers), entries + 2))
    np.add.at(counts, (np.arange(len(numbers))[:, None], numbers), 1)
    return counts[:, :entries]


def fit_evidence(
    structure: Structure, index: GeometryIndex, geometries: Sequence[Geometry], evidence: Evidence,
    prior_ms: np.ndarray, *, dense_ms: float, noise: float, runtime: str, seed: int = 0,
) -> Fit:  # fmt: skip
    """Fit the entries of `geometries` to the evidence that is not held out, and to the dense model.

    Not to the dense model where PyTorch runs it: a pruned model is a graph module there, which has another overhead.
    """
    mask = evidence.fitted()
    rows, ratios = evidence.rows[mask], evidence.ratios[mask]
    weights = np.where(evidence.where(CANDIDATE)[mask], _CANDIDATE_WEIGHT, 1.0)
    if runtime != "torch":
        full = np.zeros((1, rows.shape[1]), dtype=np.int64)  # layers are dense: their code is 0
        full[0, : len(structure.units)] = [unit.width for unit in structure.units]
        rows, ratios = np.concatenate([rows, full]), np.append(ratios, 1.0)
        weights = np.append(weights, _DENSE_WEIGHT)
    numbers = index.numbers(rows)
    known = (numbers != MISSING).all(axis=1)
    if known.sum() < 2:
        raise LatencyError(f"a latency table needs at least two timed policies; got {int(known.sum())}")
    counts = occurrences(numbers[known], len(geometries))
    chains = ordered_chains(geometries)
    numbers_of = {kind: number for number, kind in enumerate(dict.fromkeys(g.kind for g in geometries))}
    kinds = np.array([numbers_of[geometry.kind] for geometry in geometries])
    return fit(
        counts, ratios[known] * dense_ms, prior_ms, weights[known], chains, kinds, max(noise, _LEAST_NOISE), seed
    )


def predictor_of(
    index: GeometryIndex, known: Mapping[str, Sequence[int]], fitted: Fit, layers: Sequence[str] = ()
) -> LatencyPredictor:
    """Return the predictor of a fit; `known` are the widths of units and codes of `layers` that have entries."""
    costs = Costs(entries_ms=fitted.entries_ms, spread_ms=fitted.spread_ms)
    return LatencyPredictor(index, known, costs, (fitted.remainder_ms, fitted.remainder_spread_ms), layers)


def build_table(
    structure: Structure,
    priced: PricedOperators,
    space: SearchSpace,
    target: Mapping[str, Any],
    evidence: Evidence,
    prior: Mapping[Geometry, float],
    conditions: Conditions,
) -> LatencyTable:
    """Fit a table and prove it on the held-out policies.

    Args:
        structure: The profiled structure.
        priced: The charges of that structure.
        space: The levels that the table is profiled for.
        target: Fingerprint of the measured target.
        evidence: The timed policies.
        prior: Every geometry of the table with its prior cost in milliseconds.
        conditions: How the policies were timed.

    Raises:
        LatencyError: Fewer than two policies to fit, or none held out.
    """
    geometries, prior_ms, dense_ms = tuple(prior), np.array([*prior.values()]), conditions.dense_ms
    index = GeometryIndex(priced.varying, geometries)
    fitted = fit_evidence(
        structure, index, geometries, evidence, prior_ms,
        dense_ms=dense_ms, noise=conditions.noise, runtime=target["runtime"], seed=conditions.seed,
    )  # fmt: skip
    known = _known(space, evidence)
    layers = space.layer_names
    predictor = predictor_of(index, known, fitted, layers)
    useful = {stair.unit: stair.useful for stair in staircases(predictor, space, priced.varying)}
    useful |= useful_treatments(predictor, space)
    fitted, proof = _proven(fitted, index, evidence, conditions)
    predicted = predictor_of(index, known, fitted, layers).predict_with_sd(evidence.rows)
    return LatencyTable(
        target=dict(target),
        space=space,
        structure=structure.digest(),
        seed=conditions.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(conditions.seconds, 1),
        dense_ms=dense_ms,
        remainder_ms=fitted.remainder_ms,
        remainder_spread_ms=tuple(map(float, fitted.remainder_spread_ms)),
        entries=_entries(geometries, prior_ms, fitted),
        fixed=tuple(str(op.geometry(op.sizes(evidence.rows[:1])[0])) for op in priced.constant),
        known=known,
        useful=known | useful,
        held_out=proof,
        drift_percent=conditions.drift * 100,
        repeated_blocks=conditions.repeated_blocks,
        noise=conditions.noise,
        again_ms=tuple(map(float, conditions.again * dense_ms)),
        samples=_samples(tuple(known), layers, evidence, dense_ms, predicted),
        notes=tuple(conditions.notes),
        refits=conditions.refits,
    )


def refit_table(table: LatencyTable, structure: Structure, rows: np.ndarray, ratios: np.ndarray) -> LatencyTable:
    """Fit a table again with candidates that a run measured.

    The useful widths of the table stay: a search that has begun keeps its space, also when it is resumed.

    Args:
        table: The table to start from, with its own timed policies.
        structure: The structure that the table was measured for.
        rows: Widths and treatments of the candidates, int64 `[C, U + L]` (`structure.rows(policies, table.layers)`).
        ratios: Measured latency of the candidates as a share of the dense model's, float64 `[C]`.

    Returns:
        A new table, fitted to the policies of the old one and to the candidates.
    """
    before = Evidence(
        rows=structure.rows([sample.policy for sample in table.samples], table.layers),
        ratios=np.array([sample.measured_ms for sample in table.samples]) / table.dense_ms,
        roles=tuple(sample.role for sample in table.samples),
    )
    refitted = build_table(
        structure,
        PricedOperators.of(structure, table.layers),
        table.space,
        table.target,
        before.plus(rows, ratios, CANDIDATE),
        {geometry: entry.prior_ms for geometry, entry in table.entries.items()},
        Conditions(
            dense_ms=table.dense_ms,
            noise=table.noise,
            seed=table.seed,
            again=np.array(table.again_ms) / table.dense_ms,
            drift=table.drift_percent / 100,
            repeated_blocks=table.repeated_blocks,
            seconds=table.seconds,
            notes=table.notes,
            refits=table.refits + 1,
        ),
    )
    return replace(refitted, useful=table.useful, accuracy_levels=table.accuracy_levels)


def _proven(fitted: Fit, index: GeometryIndex, evidence: Evidence, conditions: Conditions) -> tuple[Fit, HeldOut]:
    """The fit, as sure as the held-out policies allow, and how well it predicts them."""
    tested = evidence.where(HELD_OUT)
    if not tested.any():
        raise LatencyError("a latency table needs held-out policies to be proven on; got none")
    counts = occurrences(index.numbers(evidence.rows[tested]), len(fitted.entries_ms))
    measured_ms = evidence.ratios[tested] * conditions.dense_ms
    fitted = _calibrated(fitted, counts, measured_ms)
    # The deviation is of the true latency; a measured one has its noise on top.
    sd_ms = np.hypot(fitted.sd_ms(counts), conditions.noise * measured_ms)
    return fitted, held_out(fitted.predict(counts), measured_ms, conditions.again * conditions.dense_ms, sd_ms)


def _entries(geometries: Sequence[Geometry], prior_ms: np.ndarray, fitted: Fit) -> dict[Geometry, Entry]:
    rows = zip(geometries, fitted.entries_ms, prior_ms, fitted.spread_ms.T, strict=True)
    return {
        geometry: Entry(latency_ms=float(ms), prior_ms=float(before), spread_ms=tuple(map(float, spread)))
        for geometry, ms, before, spread in rows
    }


def _calibrated(fitted: Fit, counts: np.ndarray, measured_ms: np.ndarray) -> Fit:
    """The fit with its spread multiplied so that it agrees with the errors on held-out policies; to three digits."""
    error, sd_ms = fitted.predict(counts) - measured_ms, fitted.sd_ms(counts)
    factor = max(_LEAST_FACTOR, float(np.sqrt(np.mean(error**2) / max(np.mean(sd_ms**2), 1e-18))))
    return replace(
        fitted,
        spread_ms=_three_digits(fitted.spread_ms * factor),
        remainder_spread_ms=_three_digits(fitted.remainder_spread_ms * factor),
    )


def _three_digits(values: np.ndarray) -> np.ndarray:
    """More digits of a spread than its own accuracy would only make the file larger."""
    return np.array([float(f"{value:.3g}") for value in values.ravel()]).reshape(values.shape)


def _known(space: SearchSpace, evidence: Evidence) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sorted({*codes, *map(int, np.unique(evidence.rows[:, column]))}))
        for column, (name, codes) in enumerate(space.codes.items())
    }


def _samples(
    names: Sequence[str], layers: Sequence[str], evidence: Evidence, dense_ms: float, predicted: Prediction
) -> tuple[ProfiledPolicy, ...]:
    policies = (policy_of(names, row, layers) for row in evidence.rows)
    rows = zip(policies, evidence.ratios, predicted.latency_ms, predicted.sd_ms, evidence.roles, strict=True)
    return tuple(
        ProfiledPolicy(
            widths=dict(policy.widths),
            treatments=dict(policy.treatments),
            measured_ms=float(ratio * dense_ms),
            predicted_ms=float(ms),
            sd_ms=float(sd),
            role=role,
        )
        for policy, ratio, ms, sd, role in rows
    )
