"""Simulated devices: a clock that only moves when something runs, and a timer whose latencies are known exactly."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autoprune.device.timing import Protocol, Timings
from autoprune.latencies import LatencySample
from autoprune.latency.evidence import Conditions, Evidence, build_table, fit_evidence
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.prior import work_ms
from autoprune.latency.sampling import covering_rows, random_rows
from autoprune.latency.table import FIT, HELD_OUT
from autoprune.profiling.duration import LOAD_S
from autoprune.profiling.policy_timer import PolicyTimer, make_policy_timer
from autoprune.records import SearchSpace
from autoprune.structure import Structure

QUICK = Protocol(repeats=2, reference_samples=1, sample_ms=0.02, warmup_runs=1, retries=0)


class Machine:
    """Seconds pass only in runs; `slowness(now)` multiplies them."""

    def __init__(self, slowness=lambda now: 1.0):
        self.now = 0.0
        self.slowness = slowness
        self.runs = 0

    def run(self, ms):
        def once():
            self.runs += 1
            self.now += ms * 1e-3 * self.slowness(self.now)

        return once

    def clock(self):
        return self.now


def stairs(step, overhead_ms=0.002):
    """Cost of a geometry on vector registers of `step` lanes: channels are rounded up to whole registers."""

    def cost(g):
        positions = max(1, g.out_rows) * max(1, g.out_columns)
        lanes_in, lanes_out = (math.ceil(max(1, c) / step) * step for c in (g.c_in, g.c_out))
        work = lanes_out if g.groups > 1 or g.op == "relu" else lanes_in * lanes_out
        speed = 3 if g.treatment else 1
        return overhead_ms + 2e-5 / speed * positions * work * math.prod(g.kernel or (1,))

    return cost


class AdditiveMachine:
    """A model costs a remainder and `cost(geometry)` for every operator; a measured ratio has relative `noise`.

    `now` are seconds that only pass when models are timed, `model_s` for each.
    """

    def __init__(self, structure, cost=None, *, remainder_ms=0.05, noise=0.0, seed=0, layers=()):
        self.structure, self.cost = structure, cost or stairs(4)
        self.remainder_ms, self.noise = remainder_ms, noise
        self.rng = np.random.default_rng(seed)
        self.layers = tuple(layers)
        self.repeats, self.now, self.model_s = [], 0.0, LOAD_S
        self.priced = PricedOperators.of(structure, self.layers).all

    def ms(self, rows):
        total = np.full(len(rows), self.remainder_ms)
        for op in self.priced:
            keys = zip(op.sizes(rows), op.treatment.of(rows), strict=True)
            total += op.present(rows) * [self.cost(op.geometry(size, code)) for size, code in keys]
        return total

    @property
    def dense_ms(self):
        return float(self.ms(self.structure.rows([self.structure.dense_policy()], self.layers))[0])

    def ratios(self, widths):
        self.now += self.model_s * len(widths)
        noise = 1 + self.noise * self.rng.standard_normal(len(widths))
        return self.ms(widths) / self.dense_ms * noise


@dataclass(frozen=True, kw_only=True)
class SimulatedTimer(PolicyTimer):
    """Times policies on an additive machine; has no runtime, so no profiler either."""

    machine: Any
    speed: float = 1.0

    def time(self, widths, stage, protocol):
        for _ in self.models(widths, stage):
            pass
        self.machine.repeats.append(protocol.repeats)
        dense_ms = self.machine.dense_ms / self.speed
        ratios = tuple(map(float, self.machine.ratios(widths)))
        sample = LatencySample(median_ms=dense_ms, p10_ms=dense_ms, p90_ms=dense_ms, runs=protocol.repeats)
        return Timings(
            samples=(sample,) * len(widths),
            ratios=ratios,
            reference=sample,
            reference_ms=dense_ms,
            drift=0.001,
            repeated_blocks=0,
            noise=self.machine.noise,
        )


@dataclass(frozen=True, kw_only=True)
class RecordingTimer(PolicyTimer):
    """A real timer that keeps its timings."""

    timings: list[Timings] = field(default_factory=list)

    def time(self, widths, stage, protocol):
        self.timings.append(super().time(widths, stage, protocol))
        return self.timings[-1]


def recording_timer(structure, target, seed=0):
    return RecordingTimer(**vars(make_policy_timer(structure, target, seed=seed)))


def simulated_timer(machine, target, *, on_progress=None, speed=1.0, seed=0):
    return SimulatedTimer(
        structure=machine.structure,
        target=target,
        seed=seed,
        dense_onnx=None,
        dense=None,
        feeds=[],
        untreated=lambda policy: policy,
        on_progress=on_progress or (lambda stage, done, total: None),
        notes=(),
        clock=lambda: machine.now,
        machine=machine,
        speed=speed,
    )


def simulated_table(machine, space: SearchSpace, target, *, policies=120, tested=40, seed=0):
    """A table of an additive machine, from covering policies; its prior only knows multiplications and traffic."""
    structure: Structure = machine.structure
    rng = np.random.default_rng(seed)
    names = tuple(space.levels)
    priced = PricedOperators.of(structure, space.layer_names)
    prior = {g: work_ms(g) for g in possible_geometries(priced.varying, space, names)}
    index = GeometryIndex(priced.varying, tuple(prior))
    fitted = covering_rows(space, names, index, policies, np.zeros(len(prior)), rng)
    held = random_rows(space, names, tested, rng)
    evidence = Evidence.none(len(names)).plus(fitted, machine.ratios(fitted), FIT)
    evidence = evidence.plus(held, machine.ratios(held), HELD_OUT)
    return build_table(
        structure,
        priced,
        space,
        target.fingerprint(),
        evidence,
        prior,
        Conditions(
            dense_ms=machine.dense_ms,
            noise=machine.noise,
            seed=seed,
            again=machine.ratios(held[:16]),
            drift=0.01,
            repeated_blocks=2,
            seconds=1.5,
            notes=("simulated",),
        ),
    )


def index_of(structure, geometries):
    return GeometryIndex(PricedOperators.of(structure).varying, tuple(geometries))


def doubled(table):
    """A table whose entries cost twice what was measured."""
    entries = {g: replace(entry, latency_ms=2 * entry.latency_ms) for g, entry in table.entries.items()}
    return replace(table, entries=entries)


def rows_of(space, count, seed):
    return random_rows(space, space.unit_names, count, np.random.default_rng(seed))


def prior_of(structure, space):
    varying = PricedOperators.of(structure).varying
    return {g: work_ms(g) for g in possible_geometries(varying, space, space.unit_names)}


ORT = {"runtime": "onnxruntime"}


def fitted_to(structure, prior, evidence, dense_ms, runtime="onnxruntime"):
    index, geometries, prior_ms = index_of(structure, prior), tuple(prior), np.array([*prior.values()])
    return fit_evidence(
        structure, index, geometries, evidence, prior_ms, dense_ms=dense_ms, noise=0.001, runtime=runtime
    )


def timed_once(machine, noise=0.001):
    return Conditions(dense_ms=machine.dense_ms, noise=noise, seed=0, again=np.array([]))
