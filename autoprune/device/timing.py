"""Timing whole models against each other, with the machine's drift measured and removed.

The protocol itself is in `measure.py`, which also runs on devices. Measured on a shared machine, 12 models timed 6
times: the ratio of quiet latencies (20th percentile) varies by 0.5 %, that of medians by 2.8 %.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.device import measure
from autoprune.device.measure import Block, Protocol, Run, quiet
from autoprune.device.target import Target
from autoprune.errors import LatencyError
from autoprune.latencies import LatencySample

__all__ = [
    "Feeds",
    "Kernels",
    "Model",
    "Protocol",
    "Timings",
    "busy_notes",
    "named_feeds",
    "open_session",
    "time_runs",
    "timings_of",
]

_WAITED = 0.1
"""Share of the time in which other work has the core that is out of the ordinary."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute value."""

Feeds = Sequence[np.ndarray]
Model = Any
"""A model that a runtime loads: an ONNX model as bytes or path, or an `nn.Module`."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Names of the kernels of one model in the order of execution, and their milliseconds `[runs, kernels]`."""

    names: tuple[str, ...]
    ms: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Latencies of models, in their order, and those of the reference model meanwhile.

    `ratios` are quiet latencies over the reference's in the same block, free of drift; `samples` are what the clock
    said. `reference_ms` is the reference's quiet latency over all blocks. `drift` is the largest relative move of the
    reference inside a block that was kept; `repeated_blocks` counts the blocks that were thrown away. `noise` is the
    relative standard deviation of a ratio, from the difference between two halves of the same samples. `waited` is the
    share of the wall time in which other work had the core, where latencies are processor time; else 0.
    """

    samples: tuple[LatencySample, ...]
    ratios: tuple[float, ...]
    reference: LatencySample
    reference_ms: float
    drift: float
    repeated_blocks: int
    noise: float
    waited: float = 0.0

    @property
    def latencies_ms(self) -> np.ndarray:
        """Quiet latency of every model, free of drift: float64 [models]."""
        return np.array(self.ratios) * self.reference_ms


def open_session(model: bytes | str | Path, target: Target, options: Any = None) -> Any:
    """Load an ONNX model; `LatencyError` with the runtime's reason when it cannot."""
    source = str(model) if isinstance(model, Path) else model
    try:
        return measure.open_session(source, target.provider, options or measure.session_options(target.threads))
    except Exception as error:
        raise LatencyError(f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}") from error


def named_feeds(session: Any, feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs by the names of one session; they are matched by position, because names differ between exports."""
    return {entry.name: value for entry, value in zip(session.get_inputs(), feeds, strict=True)}


def time_runs(
    openers: Iterable[Callable[[], Run]],
    reference: Run,
    *,
    protocol: Protocol | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time anything that can be called; `openers` make one callable each, when its block starts.

    Only one block of callables is alive at a time. `clock` gives seconds.
    """
    protocol = protocol or Protocol()
    rng = np.random.default_rng(seed)
    return timings_of(
        [
            measure.measure_block([opener() for opener in chunk], reference, protocol, rng, clock)
            for chunk in _chunks(openers, protocol.block)
        ]
    )


def timings_of(blocks: Sequence[Block]) -> Timings:
    """Put blocks together; `LatencyError` when there is none."""
    if not blocks:
        raise LatencyError("timing needs at least one model; got none")
    reference_ms = np.concatenate([block.reference_ms for block in blocks])
    return Timings(
        samples=tuple(_summary(row) for block in blocks for row in block.samples_ms),
        ratios=tuple(float(ratio) for block in blocks for ratio in block.ratios),
        reference=_summary(reference_ms),
        reference_ms=float(quiet(reference_ms)),
        drift=max(block.drift for block in blocks),
        repeated_blocks=sum(block.repeated for block in blocks),
        noise=float(np.median(np.concatenate([_half_difference(block) for block in blocks]))) * _NORMAL / 2,
        waited=float(np.mean([block.waited for block in blocks])),
    )


def busy_notes(timings: Sequence[Timings]) -> list[str]:
    """Return one line if other work had the core for more than a tenth of the time of the measurements; else none."""
    waited = float(np.mean([each.waited for each in timings])) if timings else 0.0
    if waited <= _WAITED:
        return []
    return [f"other work had the core for {waited:.0%} of the time; latencies are processor time of the timed thread"]


def _half_difference(block: Block) -> np.ndarray:
    """Relative difference of every model's quiet latency between the odd and the even rounds: [models]."""
    return np.abs(quiet(block.samples_ms[:, ::2]) / quiet(block.samples_ms[:, 1::2]) - 1)


def _chunks(items: Iterable[Callable[[], Run]], size: int) -> Iterator[list[Callable[[], Run]]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _summary(samples_ms: np.ndarray) -> LatencySample:
    p10, median, p90 = np.percentile(samples_ms, [10, 50, 90])
    return LatencySample(median_ms=float(median), p10_ms=float(p10), p90_ms=float(p90), runs=samples_ms.size)
