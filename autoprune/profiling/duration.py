"""How much a profile measures at the least, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoprune.device.measure import clock_of
from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.sampling import every_other, scanned_rows
from autoprune.latency.table import FIT, HELD_OUT, SCAN
from autoprune.records import SearchSpace
from autoprune.structure import Structure

MAX_SECONDS = 60.0
"""After so long a profile measures no more than it must."""
MOST_TIMES_AS_LONG = 3.0
"""Beside other work a profile takes at most so many times as long as on an idle host."""

HELD_OUT_POLICIES = 40
"""Policies that are timed and never fitted to."""
REMEASURED = 16
"""Held-out policies that are timed a second time."""
ROUND, LEAST_ROUNDS = 40, 1
"""Policies of a round, and the rounds that are always made."""
LOAD_S = 0.004
"""Seconds of resizing and loading a small model."""

OPERATORS, REMEASURING = "operators", "measuring again"
STAGES = {SCAN: "scanning widths", HELD_OUT: "timing held-out policies", FIT: "timing policies"}
"""Stages of a profile, those of policies by their role: operators come first, and the second look at last."""


SCAN_SHARE = 0.3
"""Share of the time in which widths are scanned, as many as fit into it."""
USUAL_ROUNDS, MOST_ROUNDS = 5, 8
"""Rounds that a profile makes when time allows: until errors no longer fall (measured: 3 to 8), or at most."""


@dataclass(frozen=True, kw_only=True)
class ProfileSize:
    """How many models a profile times: scans of few widths and of about all of them, and rounds when time allows."""

    few_scans: int
    all_scans: int
    rounds: int

    @classmethod
    def of(cls, structure: Structure, space: SearchSpace) -> ProfileSize:
        """Return the size of the profile of a space; scans of all widths are reckoned from those of a few."""
        widths = {name: space.widths_of(name) for name in space.unit_names}
        few = {name: _thinned(levels, 4) for name, levels in widths.items()}
        scans = len(scanned_rows(space, PricedOperators.of(structure, space.layer_names).varying, few))
        ratio = sum(map(len, widths.values())) / max(sum(map(len, few.values())), 1)
        rounds = MOST_ROUNDS if space.layer_names else USUAL_ROUNDS
        return cls(few_scans=scans, all_scans=round(ratio * scans), rounds=rounds)

    @property
    def least(self) -> int:
        """Models that are timed at the least."""
        return self.few_scans + HELD_OUT_POLICIES + LEAST_ROUNDS * ROUND + REMEASURED

    def models(self, run_s: float, max_seconds: float = MAX_SECONDS) -> float:
        """Return about how many models are timed if the dense model runs for `run_s` and exports are resized."""
        most = max_seconds / seconds_each(run_s, LOAD_S, Protocol())
        scans = min(self.all_scans, max(self.few_scans, SCAN_SHARE * most))
        return max(self.least, min(most, scans + HELD_OUT_POLICIES + self.rounds * ROUND + REMEASURED))

    def seconds(self, run_s: float, max_seconds: float = MAX_SECONDS) -> float:
        """Return about how long the profile takes: at most `max_seconds`, or longer where its least takes longer."""
        return self.models(run_s, max_seconds) * seconds_each(run_s, LOAD_S, Protocol())


@dataclass
class ProfileProgress:
    """Models that a profile has timed, of those that it is expected to time, from what its stages tell.

    Before widths are scanned nothing is known: the pace of the first stages is that of exports.

    Args:
        rounds: that are expected when time allows.
        max_seconds: after so long no further round is begun.
    """

    rounds: int = USUAL_ROUNDS
    max_seconds: float = MAX_SECONDS
    _timed: float = 0.0
    _before: dict[str, float] = field(default_factory=dict)
    _rounds_done: int = 0
    _begun_s: float = 0.0

    def __call__(self, stage: str, done: int, total: int, elapsed_s: float) -> tuple[float, float] | None:
        """Return models timed so far and in all, after `done` of `total` in a stage; `None` while that is unknown."""
        self._timed += max(done - self._before.get(stage, 0), 0)
        self._before[stage] = done if done < total else 0
        in_round = stage == STAGES[FIT] and total == ROUND
        self._rounds_done += in_round and done == total
        if stage == REMEASURING:
            return self._timed, self._timed + total - done
        if stage not in STAGES.values():
            self._timed, self._begun_s = 0, elapsed_s  # operators take less than policies
            return None
        left = total - done + (HELD_OUT_POLICIES if stage == STAGES[SCAN] else 0)
        begun = in_round and done < total
        certain = left + REMEASURED + (ROUND if not (self._rounds_done or begun) else 0)
        more = ROUND * max(self.rounds - self._rounds_done - begun, 0)
        in_time = max(self.max_seconds - elapsed_s, 0.0) * self._timed / max(elapsed_s - self._begun_s, 1e-9)
        return self._timed, self._timed + max(certain, min(left + REMEASURED + more, in_time))


def patient_clock(target: Target) -> Callable[[], float]:
    """Return a clock for the time that a profile of a target may take, in seconds.

    Where this process measures by its processor time, so does the clock, but at no less than a third of the pace of the
    wall's: beside other work a profile has the processor for as long as on an idle host, and takes up to three times as
    long. Everywhere else it is the clock on the wall.
    """
    if target.address or clock_of(target.provider, target.threads) is time.perf_counter:
        return time.monotonic
    begun_s, begun_cpu_s = time.monotonic(), time.process_time()
    return lambda: max(time.process_time() - begun_cpu_s, (time.monotonic() - begun_s) / MOST_TIMES_AS_LONG)


def _thinned(levels: Sequence[int], most: int) -> Sequence[int]:
    while len(levels) > most:
        levels = every_other(levels)
    return levels


def seconds_each(run_s: float, build_s: float, protocol: Protocol) -> float:
    """Return the seconds that timing one policy takes, if it costs what the dense model does."""
    sample_s = run_s + max(run_s, protocol.sample_ms / 1e3)
    rounds = protocol.repeats * (1 + protocol.reference_samples / protocol.block)
    return build_s + sample_s * rounds + (protocol.warmup_runs + 6) * run_s
