"""How much a profile measures at the least, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.device.timing import Protocol
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.sampling import every_other, scanned_rows
from autoprune.records import SearchSpace
from autoprune.structure import Structure

MAX_SECONDS = 60.0
"""After so long a profile measures no more than it must."""

HELD_OUT_POLICIES = 40
"""Policies that are timed and never fitted to."""
REMEASURED = 16
"""Held-out policies that are timed a second time."""
ROUND, LEAST_ROUNDS = 40, 1
"""Policies of a round, and the rounds that are always made."""
LOAD_S = 0.004
"""Seconds of resizing and loading a small model."""


def expected_seconds(
    structure: Structure, space: SearchSpace, run_s: float, *, max_seconds: float = MAX_SECONDS
) -> float:
    """About how long `profile` takes if the dense model runs for `run_s` and its exports are resized.

    That is `max_seconds`, or more for a large model, of which the least that is measured takes longer.
    """
    widths = {name: _thinned(space.widths_of(name), 4) for name in space.unit_names}
    policies = len(scanned_rows(space, PricedOperators.of(structure, space.layer_names).varying, widths))
    policies += HELD_OUT_POLICIES + LEAST_ROUNDS * ROUND + REMEASURED
    return max(max_seconds, policies * seconds_each(run_s, LOAD_S, Protocol()))


def _thinned(levels: Sequence[int], most: int) -> Sequence[int]:
    while len(levels) > most:
        levels = every_other(levels)
    return levels


def seconds_each(run_s: float, build_s: float, protocol: Protocol) -> float:
    """Return the seconds that timing one policy takes, if it costs what the dense model does."""
    sample_s = run_s + max(run_s, protocol.sample_ms / 1e3)
    rounds = protocol.repeats * (1 + protocol.reference_samples / protocol.block)
    return build_s + sample_s * rounds + (protocol.warmup_runs + 6) * run_s
