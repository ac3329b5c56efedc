"""Profiling a search space on a target: sample policies, time them end to end, fit the table, prove it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from autoprune.latency.bench import Bench, Progress, make_bench
from autoprune.latency.fitting import Fit, fit, held_out
from autoprune.latency.geometries import possible_geometries, priced_operators
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.prior import prior_ms
from autoprune.latency.sampling import covering_widths, random_widths
from autoprune.latency.table import LatencyTable, ProfiledPolicy
from autoprune.latency.target import Target
from autoprune.latency.timing import Protocol, Timings, named_feeds, open_session
from autoprune.records import Geometry, SearchSpace
from autoprune.structure import Structure

_MOST_POLICIES = 260
_LEAST_POLICIES = 40
_HELD_OUT = 40
_REMEASURED = 12
_NODE_RUNS = 20
_NODE_SHARE = 0.3
_LOAD_S = 0.01
_DENSE_WEIGHT = 5.0
"""Budgets are shares of the dense latency, so the table must be exact there; it is also the best measured model."""


def profile(
    structure: Structure,
    space: SearchSpace,
    target: Target,
    *,
    seed: int = 0,
    on_progress: Progress | None = None,
    max_seconds: float = 60.0,
    protocol: Protocol | None = None,
) -> LatencyTable:
    """Measure a latency table for all policies of `space` on `target`, from about 260 timed policies.

    Fewer when `max_seconds` is short (never under 40). 40 further policies are held out; their errors are in the table.
    Raises `StructureError` when the model cannot be exported and `LatencyError` when its exports cannot be timed.
    """
    start = time.monotonic()
    protocol = protocol or Protocol()
    rng = np.random.default_rng(seed)
    bench = make_bench(structure, space, target, seed=seed, on_progress=on_progress)
    priced = priced_operators(structure.operators)
    geometries = possible_geometries(priced, space, bench.unit_names, seed=seed)
    index = GeometryIndex(priced, geometries)
    nodes, timed = _affordable(bench, protocol, max_seconds - (time.monotonic() - start))
    chosen = covering_widths(space, bench.unit_names, index, max(nodes, timed), rng)
    prior, unseen = prior_ms(bench, priced, geometries, index, chosen[:nodes])
    fitted = chosen[:timed]
    tested = random_widths(space, bench.unit_names, _HELD_OUT, rng)
    timings, measured_ms = _timed(bench, np.concatenate([fitted, tested, tested[:_REMEASURED]]), protocol, rng)
    counts = _counts(index.numbers(np.concatenate([fitted, tested])), len(geometries))
    result = _fit(bench, index, counts[: len(fitted)], measured_ms[: len(fitted)], prior, timings.reference_ms)
    predicted_ms = result.predict(counts)
    _, test_ms, again_ms = np.split(measured_ms, [len(fitted), len(counts)])
    return LatencyTable(
        target=target.fingerprint(),
        space_id=space.id,
        structure=structure.digest(),
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dense_ms=timings.reference_ms,
        intercept_ms=result.intercept_ms,
        entries_ms=dict(zip(geometries, map(float, result.entries_ms), strict=True)),
        held_out=held_out(predicted_ms[len(fitted) :], test_ms, again_ms),
        drift_percent=timings.drift * 100,
        samples=_samples(bench.unit_names, np.concatenate([fitted, tested]), measured_ms, predicted_ms, len(fitted)),
        notes=(*bench.notes, *_coverage_note(unseen, geometries)),
    )


def _affordable(bench: Bench, protocol: Protocol, seconds: float) -> tuple[int, int]:
    """How many policies fit into the time for node times and for whole runs, if all cost what the dense one does."""
    build_s = _fastest_s(lambda: bench.build(bench.space.largest()), 2) + _LOAD_S
    session = open_session(bench.dense.SerializeToString(), bench.target)
    feeds = named_feeds(session, bench.feeds)
    run_s = _fastest_s(lambda: session.run(None, feeds), 10)
    node_s = build_s + _NODE_RUNS * run_s
    nodes = int(np.clip(_NODE_SHARE * seconds / node_s, _LEAST_POLICIES, _MOST_POLICIES))
    sample_s = run_s + max(protocol.sample_ms / 1e3, run_s)
    each_s = build_s + sample_s * protocol.repeats * (1 + protocol.reference_samples / protocol.block)
    left_s = seconds - nodes * node_s - each_s * (_HELD_OUT + _REMEASURED)
    return nodes, int(np.clip(left_s / each_s, _LEAST_POLICIES, _MOST_POLICIES))


def _fastest_s(run: Callable[[], object], times: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return min(once() for _ in range(times))


def _timed(
    bench: Bench, widths: np.ndarray, protocol: Protocol, rng: np.random.Generator
) -> tuple[Timings, np.ndarray]:
    """Time rows of widths in random order, so that slow changes of the machine cannot tell kinds of policies apart."""
    order = rng.permutation(len(widths))
    timings = bench.time(widths[order], protocol)
    return timings, timings.latencies_ms[np.argsort(order)]


def _fit(
    bench: Bench, index: GeometryIndex, counts: np.ndarray, times_ms: np.ndarray, prior: np.ndarray, dense_ms: float
) -> Fit:
    """Fit the entries to the policies and, if the space contains it, to the dense model."""
    weights = np.ones(len(counts))
    dense = bench.structure.widths([bench.space.largest()])
    if (dense[0] == [unit.width for unit in bench.structure.units]).all():
        counts = np.concatenate([counts, _counts(index.numbers(dense), counts.shape[1])])
        times_ms, weights = np.append(times_ms, dense_ms), np.append(weights, _DENSE_WEIGHT)
    return fit(counts, times_ms, prior, weights)


def _counts(numbers: np.ndarray, entries: int) -> np.ndarray:
    """How often every entry occurs in every policy: float64 `[P, E]`."""
    counts = np.zeros((len(numbers), entries))
    np.add.at(counts, (np.arange(len(numbers))[:, None], numbers), 1)
    return counts


def _samples(
    names: Sequence[str], widths: np.ndarray, measured_ms: np.ndarray, predicted_ms: np.ndarray, fitted: int
) -> tuple[ProfiledPolicy, ...]:
    return tuple(
        ProfiledPolicy(
            widths=dict(zip(names, map(int, row), strict=True)),
            measured_ms=float(measured),
            predicted_ms=float(predicted),
            held_out=number >= fitted,
        )
        for number, (row, measured, predicted) in enumerate(zip(widths, measured_ms, predicted_ms, strict=False))
    )


def _coverage_note(unseen: int, geometries: Sequence[Geometry]) -> list[str]:
    return [f"{unseen} of {len(geometries)} entries start from their neighbours' node times"] if unseen else []
