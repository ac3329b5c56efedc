"""Timing whole models against each other on ONNX Runtime, with the machine's drift measured and removed.

Candidates are timed in blocks, interleaved in random order with one reference model (the dense one), and compared
with it by their quiet latency: the 20th percentile of the samples, because disturbances only ever add time. Measured on
a shared machine, 12 models timed 6 times: the ratio of quiet latencies varies by 0.5 %, that of medians by 2.8 %.
A block during which the reference itself moved is measured again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from autoprune.errors import LatencyError
from autoprune.latency.target import Target
from autoprune.records import LatencySample

Feeds = Sequence[np.ndarray]
Model = bytes | str | Path
Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long and how often a model is timed.

    One sample is the mean of as many runs as fill `sample_ms`; a model has `repeats` samples, taken in as many rounds
    over its block, in each of which the reference is sampled `reference_samples` times. A block whose reference moves
    more than `max_drift` (relative) is repeated `retries` times at most.
    """

    repeats: int = 20
    reference_samples: int = 4
    sample_ms: float = 1.0
    warmup_runs: int = 5
    block: int = 16
    max_drift: float = 0.03
    retries: int = 2


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What each model took, in their order, and what the reference model did meanwhile.

    `ratios` are quiet latencies over the reference's in the same block, free of drift; `samples` are what the clock
    said. `reference_ms` is the reference's quiet latency over all blocks. `drift` is the largest relative move of the
    reference inside a block that was kept; `repeated_blocks` counts the blocks that were thrown away.
    """

    samples: tuple[LatencySample, ...]
    ratios: tuple[float, ...]
    reference: LatencySample
    reference_ms: float
    drift: float
    repeated_blocks: int

    @property
    def latencies_ms(self) -> np.ndarray:
        """Quiet latency of every model, free of drift: float64 [models]."""
        return np.array(self.ratios) * self.reference_ms


@dataclass(frozen=True, kw_only=True)
class _Block:
    """`samples_ms` [models, rounds] and `reference_ms` [rounds * reference_samples], in order of time."""

    samples_ms: np.ndarray
    reference_ms: np.ndarray

    @property
    def drift(self) -> float:
        """Relative difference between the reference's two halves of the block."""
        first, second = np.array_split(self.reference_ms, 2)
        return abs(float(_quiet(first) / _quiet(second)) - 1)

    @property
    def ratios(self) -> np.ndarray:
        """Quiet latency of every model over the reference's: [models]."""
        return _quiet(self.samples_ms) / _quiet(self.reference_ms)


def session_options(target: Target) -> ort.SessionOptions:
    """Options with everything pinned that changes a latency: threads, order of execution, spinning, optimisation."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Spinning workers answer faster, but would steal the cores of the other sessions of a block between their runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(model: Model, target: Target, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """Load an ONNX model; `LatencyError` with the runtime's reason when it cannot."""
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options or session_options(target), providers=[target.provider])
    except Exception as error:
        raise LatencyError(f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}") from error


def named_feeds(session: ort.InferenceSession, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs by the names of one session; they are matched by position, because names differ between exports."""
    return {entry.name: value for entry, value in zip(session.get_inputs(), feeds, strict=True)}


def time_models(
    models: Iterable[Model],
    target: Target,
    feeds: Feeds,
    *,
    reference: Model,
    protocol: Protocol | None = None,
    seed: int = 0,
) -> Timings:
    """Time every model end to end on `feeds`, interleaved with `reference`.

    `models` may be a generator: only one block of sessions is in memory at a time.
    """
    reference_run = _runner(open_session(reference, target), feeds)
    openers = (_opener(model, target, feeds) for model in models)
    return time_runs(openers, reference_run, protocol=protocol, seed=seed)


def time_runs(
    openers: Iterable[Callable[[], Run]],
    reference: Run,
    *,
    protocol: Protocol | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time anything that can be called; `openers` make one callable each, when its block starts.

    `clock` gives seconds.
    """
    protocol = protocol or Protocol()
    rng = np.random.default_rng(seed)
    kept: list[_Block] = []
    repeated = 0
    for chunk in _chunks(openers, protocol.block):
        runs = [opener() for opener in chunk]
        attempts = list(_attempts(runs, reference, protocol, rng, clock))
        kept.append(min(attempts, key=lambda block: block.drift))
        repeated += len(attempts) - 1
    if not kept:
        raise LatencyError("timing needs at least one model; got none")
    reference_ms = np.concatenate([block.reference_ms for block in kept])
    return Timings(
        samples=tuple(_summary(row) for block in kept for row in block.samples_ms),
        ratios=tuple(float(ratio) for block in kept for ratio in block.ratios),
        reference=_summary(reference_ms),
        reference_ms=float(_quiet(reference_ms)),
        drift=max(block.drift for block in kept),
        repeated_blocks=repeated,
    )


def _opener(model: Model, target: Target, feeds: Feeds) -> Callable[[], Run]:
    return lambda: _runner(open_session(model, target), feeds)


def _runner(session: ort.InferenceSession, feeds: Feeds) -> Run:
    names = [output.name for output in session.get_outputs()]
    wanted = named_feeds(session, feeds)
    return lambda: session.run(names, wanted)


def _chunks(items: Iterable[Callable[[], Run]], size: int) -> Iterator[list[Callable[[], Run]]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _attempts(
    runs: Sequence[Run], reference: Run, protocol: Protocol, rng: np.random.Generator, clock: Callable[[], float]
) -> Iterator[_Block]:
    """Measure a block until its reference holds still, `retries` more times at most."""
    loops = [_loops(run, protocol, clock) for run in runs]
    reference_loops = _loops(reference, protocol, clock)
    for _ in range(1 + protocol.retries):
        block = _time_block(runs, loops, reference, reference_loops, protocol, rng, clock)
        yield block
        if block.drift <= protocol.max_drift:
            return


def _loops(run: Run, protocol: Protocol, clock: Callable[[], float]) -> int:
    """Warm up, and find how many runs fill one sample."""
    for _ in range(protocol.warmup_runs):
        run()
    fastest = min(_time(run, 1, clock) for _ in range(3))
    return max(1, int(np.ceil(protocol.sample_ms / max(fastest, 1e-6))))


def _time(run: Run, loops: int, clock: Callable[[], float]) -> float:
    """Mean milliseconds of one run; one run before it is not counted, because it finds another model in the caches."""
    run()
    start = clock()
    for _ in range(loops):
        run()
    return (clock() - start) * 1e3 / loops


def _time_block(
    runs: Sequence[Run],
    loops: Sequence[int],
    reference: Run,
    reference_loops: int,
    protocol: Protocol,
    rng: np.random.Generator,
    clock: Callable[[], float],
) -> _Block:
    samples = np.empty((len(runs), protocol.repeats))
    reference_ms: list[float] = []
    for turn in range(protocol.repeats):
        for index in rng.permutation(len(runs) + protocol.reference_samples):
            if index < len(runs):
                samples[index, turn] = _time(runs[index], loops[index], clock)
            else:
                reference_ms.append(_time(reference, reference_loops, clock))
    return _Block(samples_ms=samples, reference_ms=np.array(reference_ms))


def _quiet(samples_ms: np.ndarray) -> np.ndarray:
    """Latency when nothing disturbs: the 20th percentile over the last axis."""
    return np.percentile(samples_ms, 20, axis=-1)


def _summary(samples_ms: np.ndarray) -> LatencySample:
    p10, median, p90 = np.percentile(samples_ms, [10, 50, 90])
    return LatencySample(median_ms=float(median), p10_ms=float(p10), p90_ms=float(p90), runs=samples_ms.size)
