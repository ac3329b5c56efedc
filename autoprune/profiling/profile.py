"""Profiling a search space on a target: scan the widths, time sampled policies end to end, fit the table, prove it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoprune.device.target import Target
from autoprune.device.timing import Kernels, Protocol, Timings
from autoprune.latency.efficient_widths import staircases
from autoprune.latency.evidence import Conditions, Evidence, build_table, fit_evidence, occurrences, predictor_of
from autoprune.latency.fitting import Fit
from autoprune.latency.geometries import PricedOperator, PricedOperators, possible_geometries
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.prior import prior_ms
from autoprune.latency.sampling import covering_widths, every_other, random_widths, scanned_widths, uniform_ladder
from autoprune.latency.table import FIT, HELD_OUT, SCAN, LatencyTable
from autoprune.profiling.node_times import profiled_ms
from autoprune.profiling.policy_timer import PolicyTimer, Progress, make_policy_timer
from autoprune.records import Geometry, SearchSpace
from autoprune.structure import Structure

Narrow = Callable[[Mapping[str, Sequence[int]]], SearchSpace]
"""Makes the space to profile from the useful widths of every unit."""

MAX_SECONDS = 60.0
"""After so long a profile measures no more than it must."""

_HELD_OUT = 40
_REMEASURED = 16
_ROUND = 40
_MOST_ROUNDS = 8
_LEAST_ROUNDS = 1
_GAIN = 0.95
"""A round is worth its time when it takes the error below this share of the best so far."""

_STAGES = {SCAN: "scanning widths", FIT: "timing policies", HELD_OUT: "timing held-out policies"}
_SCAN_SHARE, _NODE_SHARE = 0.3, 0.15
_MOST_NODES, _LEAST_NODES = 120, 24
_NODE_RUNS = 20
_LOAD_S = 0.004


def profile(
    structure: Structure,
    space: SearchSpace,
    target: Target,
    *,
    narrow: Narrow | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
    max_seconds: float = MAX_SECONDS,
    protocol: Protocol | None = None,
    timer: PolicyTimer | None = None,
) -> LatencyTable:
    """Measure a latency table on a target: first the staircase of every unit, then policies of the space.

    Rounds of 40 policies follow the scan until the error of new policies no longer falls, or the time is over; one
    round is always made. 40 further policies are held out, and the table says how well it predicts them.

    Args:
        structure: The structure to profile.
        space: The widths to scan.
        target: What measures.
        narrow: Makes the space whose policies are timed from the useful widths of every unit; default: `space` itself.
        seed: Seed of the sampled policies and of the order in which they are timed.
        on_progress: Called with every model that is built.
        max_seconds: After so long no further round is begun.
        protocol: How often every model is timed.
        timer: What times policies of `structure` on `target`, with its own seed and progress; default: the target's.

    Raises:
        StructureError: The model cannot be exported.
        LatencyError: The exported models cannot be timed.
    """
    work = _Profile(
        timer=timer or make_policy_timer(structure, target, seed=seed, on_progress=on_progress),
        priced=PricedOperators.of(structure),
        space=space,
        protocol=protocol or Protocol(),
        rng=np.random.default_rng(seed),
        evidence=Evidence.none(len(structure.units)),
        deadline=time.monotonic() + max_seconds,
    )
    start = time.monotonic()
    prior = work.scan(_SCAN_SHARE * max_seconds, _NODE_SHARE * max_seconds)
    work.space = space if narrow is None else narrow(work.useful(prior))
    prior = work.prior()
    tested = random_widths(work.space, work.timer.unit_names, _HELD_OUT, work.rng)
    work.time(tested, HELD_OUT)
    work.rounds(prior)
    again = work.measure(tested[:_REMEASURED], "measuring again")
    return build_table(
        structure,
        work.priced,
        work.space,
        target.fingerprint(),
        work.evidence,
        prior,
        work.conditions(again, seed=seed, seconds=time.monotonic() - start),
    )


def expected_seconds(
    structure: Structure, space: SearchSpace, run_s: float, *, max_seconds: float = MAX_SECONDS
) -> float:
    """About how long `profile` takes if the dense model runs for `run_s` and its exports are resized.

    That is `max_seconds`, or more for a large model, of which the least that is measured takes longer.
    """
    names = tuple(unit.name for unit in structure.units)
    widths = {name: _thinned(levels, 4) for name, levels in space.levels.items()}
    policies = len(scanned_widths(space, names, PricedOperators.of(structure).varying, widths))
    policies += _HELD_OUT + _LEAST_ROUNDS * _ROUND + _REMEASURED
    return max(max_seconds, policies * _seconds_each(run_s, _LOAD_S, Protocol()))


def _thinned(levels: Sequence[int], most: int) -> Sequence[int]:
    while len(levels) > most:
        levels = every_other(levels)
    return levels


@dataclass(kw_only=True)
class _Profile:
    """A profile in the making: the timer, the policies timed so far, and their timings."""

    timer: PolicyTimer
    priced: PricedOperators
    space: SearchSpace
    protocol: Protocol
    rng: np.random.Generator
    evidence: Evidence
    deadline: float
    timings: list[Timings] = field(default_factory=list)
    profiled: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    kernels: list[Kernels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def varying(self) -> tuple[PricedOperator, ...]:
        """The operators that some unit changes."""
        return self.priced.varying

    @property
    def dense_ms(self) -> float:
        """Quiet latency of the dense model over everything that was timed."""
        return float(np.median([timings.reference_ms for timings in self.timings]))

    @property
    def noise(self) -> float:
        """Relative standard deviation of one measured ratio."""
        return float(np.median([timings.noise for timings in self.timings]))

    def conditions(self, again: np.ndarray, *, seed: int, seconds: float) -> Conditions:
        """How everything so far was timed; `again` `[A]` are second ratios of the first `A` held-out policies."""
        return Conditions(
            dense_ms=self.dense_ms,
            noise=self.noise,
            seed=seed,
            again=again,
            drift=max(timings.drift for timings in self.timings),
            repeated_blocks=sum(timings.repeated_blocks for timings in self.timings),
            seconds=seconds,
            notes=(*self.timer.notes, *self.notes),
        )

    def measure(self, widths: np.ndarray, stage: str) -> np.ndarray:
        """Ratios to the dense model, in random order: slow changes cannot tell kinds of policies apart."""
        order = self.rng.permutation(len(widths))
        self.timings.append(self.timer.time(widths[order], stage, self.protocol))
        return np.array(self.timings[-1].ratios)[np.argsort(order)]

    def time(self, widths: np.ndarray, role: str) -> None:
        """Measure rows of widths and keep them as evidence."""
        if len(widths):
            ratios = self.measure(widths, _STAGES[role])
            self.evidence = self.evidence.plus(widths, ratios, role)

    def scan(self, seconds: float, node_seconds: float) -> dict[Geometry, float]:
        """Time every width of every unit, as many as fit into the time, and profile some kernels; returns the prior."""
        run_s, build_s = self._cost()
        most = int(seconds / _seconds_each(run_s, build_s, self.protocol))
        widths, rows = dict(self.space.levels), self._scan_rows(self.space.levels)
        while len(rows) > most and max(len(levels) for levels in widths.values()) > 4:
            widths = {name: every_other(levels) if len(levels) > 4 else levels for name, levels in widths.items()}
            rows = self._scan_rows(widths)
        if len(rows) > most:
            self.notes.append(f"scanning took {len(rows)} models, more than the time allows")
        self.space = SearchSpace(id=self.space.id, levels=widths)
        nodes = int(np.clip(node_seconds / (build_s + 2 * _LOAD_S + _NODE_RUNS * run_s), _LEAST_NODES, _MOST_NODES))
        self.profiled = random_widths(self.space, self.timer.unit_names, nodes, self.rng)
        self.kernels = self.timer.kernels(self.profiled)
        self.time(rows, SCAN)
        return self.prior(scans_only=True)

    def _scan_rows(self, widths: Mapping[str, Sequence[int]]) -> np.ndarray:
        return scanned_widths(self.space, self.timer.unit_names, self.varying, widths)

    def _cost(self) -> tuple[float, float]:
        """Seconds of one run of the dense model, and of building and loading one policy."""
        smallest = np.array([[levels[0] for levels in self.space.levels.values()]])
        start = time.monotonic()
        timed = self.timer.time(smallest, "a first look", replace(self.protocol, repeats=3, retries=0))
        took, run_s = time.monotonic() - start, timed.reference_ms / 1e3
        if self.timer.target.address:
            return run_s, _LOAD_S  # copying a kit takes long even if it holds one model
        sample_s = max(run_s, self.protocol.sample_ms / 1e3) + run_s
        runs_s = 3 * (self.protocol.reference_samples + 1) * sample_s + 20 * run_s
        return run_s, max(_LOAD_S, (took - runs_s) / 2)

    def prior(self, scans_only: bool = False) -> dict[Geometry, float]:
        """Geometries of the scans and (later) of every policy of the space, with their prior cost."""
        keys = scanned_geometries(self.varying, self.evidence.widths)
        if not scans_only:
            keys |= dict.fromkeys(possible_geometries(self.varying, self.space, self.timer.unit_names))
        geometries = tuple(keys)
        numbers = GeometryIndex(self.varying, geometries).numbers(self.profiled)
        known_ms = profiled_ms(numbers, self.kernels, self.timer.dense_onnx, self.priced)
        return as_prior(geometries, prior_ms(geometries, known_ms))

    def useful(self, prior: Mapping[Geometry, float]) -> dict[str, tuple[int, ...]]:
        """Useful widths of every unit, from the scans alone."""
        geometries, values = tuple(prior), np.array([*prior.values()])
        index = GeometryIndex(self.varying, geometries)
        fitted = self.fit(index, geometries, values)
        predictor = predictor_of(index, self.space.levels, fitted)
        useful = {stair.unit: stair.useful for stair in staircases(predictor, self.space, self.varying)}
        return {name: useful.get(name, tuple(levels)) for name, levels in self.space.levels.items()}

    def fit(self, index: GeometryIndex, geometries: Sequence[Geometry], prior_ms: np.ndarray) -> Fit:
        """The fit to the evidence so far."""
        return fit_evidence(
            self.timer.structure, index, geometries, self.evidence, prior_ms,
            dense_ms=self.dense_ms, noise=self.noise, runtime=self.timer.target.runtime,
        )  # fmt: skip

    def rounds(self, prior: Mapping[Geometry, float]) -> None:
        """Time policies that cover the entries until the error of new ones no longer falls, or the time is over."""
        names, index = self.timer.unit_names, GeometryIndex(self.varying, tuple(prior))
        prior_values, geometries = np.array([*prior.values()]), tuple(prior)
        self.time(uniform_ladder(self.space, names), FIT)
        errors: list[float] = []
        for _ in range(_MOST_ROUNDS):
            start = time.monotonic()
            seen = occurrences(index.numbers(self.evidence.widths[self.evidence.fitted()]), len(prior)).sum(axis=0)
            widths = covering_widths(self.space, names, index, _ROUND, seen, self.rng)
            dense_ms = self.dense_ms
            fitted = self.fit(index, geometries, prior_values)
            self.time(widths, FIT)
            measured = self.evidence.ratios[-len(widths) :] * dense_ms
            predicted = fitted.predict(occurrences(index.numbers(widths), len(prior)))
            errors.append(float(np.abs(predicted / measured - 1).mean()))
            took = time.monotonic() - start
            late = time.monotonic() + took * (1 + _REMEASURED / _ROUND) > self.deadline
            stalled = len(errors) > 2 and min(errors[-2:]) > _GAIN * min(errors[:-2])
            if len(errors) >= _LEAST_ROUNDS and (late or stalled):
                break


def scanned_geometries(varying: Sequence[PricedOperator], widths: np.ndarray) -> dict[Geometry, None]:
    """Every geometry that some row of `widths` `[P, U]` holds, in a stable order."""
    return dict.fromkeys(geometry for op in varying for geometry in op.geometries(widths))


def as_prior(geometries: Sequence[Geometry], costs_ms: np.ndarray) -> dict[Geometry, float]:
    """Prior cost by geometry."""
    return dict(zip(geometries, map(float, costs_ms), strict=True))


def _seconds_each(run_s: float, build_s: float, protocol: Protocol) -> float:
    """Seconds that timing one policy takes, if it costs what the dense model does."""
    sample_s = run_s + max(run_s, protocol.sample_ms / 1e3)
    rounds = protocol.repeats * (1 + protocol.reference_samples / protocol.block)
    return build_s + sample_s * rounds + (protocol.warmup_runs + 6) * run_s
