"""Noise of measured latencies: when it is worth measuring longer, when nothing can be told, and what makes it.

The noise of a measurement is the relative standard deviation of a latency as a share of the dense model's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import LatencyError

QUIET = 0.05
"""Up to this noise models are timed as long as usual; above it longer, until the mean of the runs has this noise."""

MOST = 0.15
"""Above this noise policies cannot be told apart, and measuring ends."""

_LONGEST = 4
_WATCHED_S = 0.3
_BUSY = 0.2
_CLOCK_CHANGE = 1.15
_SHOWN = 3
_PROC, _CGROUP, _CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


class NoiseError(LatencyError):
    """Latencies vary too much to be used."""


def times_longer(noise: float) -> int:
    """Return how many times as long models are timed at some noise: it falls with the root of that; 4 at most."""
    return max(1, min(_LONGEST, math.ceil((noise / QUIET) ** 2)))


def require_quiet(noise: float, *, allow: bool) -> None:
    """Raise `NoiseError` above the most noise, unless it is allowed."""
    if noise > MOST and not allow:
        raise NoiseError(
            f"a latency table needs latencies that vary by at most {MOST:.0%} from one measurement to the next; here "
            f"they vary by {noise:.0%} ({what_is_busy()}). Wait or stop what is busy, time one thread (--threads 1: "
            "its processor time is counted), or go on with --allow-noise, which marks every report"
        )


def what_is_busy() -> str:
    """Return in words what keeps this machine busy, as far as the system tells: load, and the busiest processes."""
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    before = _cpu_seconds()
    time.sleep(_WATCHED_S)
    after = _cpu_seconds()
    shares = {
        pid: (seconds - before[pid][1]) / _WATCHED_S
        for pid, (_, seconds) in after.items()
        if pid in before and pid != os.getpid()
    }
    busiest = sorted((pid for pid, share in shares.items() if share > _BUSY), key=shares.__getitem__, reverse=True)
    words = [f"{after[pid][0]} (process {pid}) takes {shares[pid]:.0%} of a core" for pid in busiest[:_SHOWN]]
    return "; ".join(filter(None, (load, *words))) or "the system does not say what is busy"


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """Return name and processor seconds of every process; nothing where the system has no `/proc`."""
    ticks, of_process = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100, {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            name, _, fields = entry.read_text(errors="replace").partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        numbers = fields.split()
        of_process[int(entry.parent.name)] = name, (int(numbers[11]) + int(numbers[12])) / ticks
    return of_process


@dataclass(frozen=True)
class HostState:
    """Limits, heat and clocks of a host at one moment.

    `throttled` counts the periods in which the control group had used up its share of processor time and `periods` all
    of them; `cores` is that share (0: no limit). `heat` counts how often cores slowed down because they were hot.
    `hertz` are the clocks of the cores. What the system does not tell is missing.
    """

    throttled: int = 0
    periods: int = 0
    cores: float = 0.0
    heat: int = 0
    hertz: tuple[int, ...] = ()

    @classmethod
    def now(cls) -> HostState:
        """Read the state of this host."""
        stat = _pairs(_CGROUP / "cpu.stat") or _pairs(_CGROUP / "cpu" / "cpu.stat")
        return cls(
            throttled=int(stat.get("nr_throttled", 0)),
            periods=int(stat.get("nr_periods", 0)),
            cores=_granted_cores(),
            heat=sum(_numbers("cpu[0-9]*/thermal_throttle/core_throttle_count")),
            hertz=tuple(1_000 * kilohertz for kilohertz in _numbers("cpu[0-9]*/cpufreq/scaling_cur_freq")),
        )

    def notes_since(self, before: HostState) -> list[str]:
        """Return lines about limits, heat and changes of the clock that a measurement met since an earlier state."""
        notes = []
        periods, throttled = self.periods - before.periods, self.throttled - before.throttled
        if throttled > 0 and periods > 0:
            notes.append(
                f"this process may use {self.cores:.1f} cores and had to wait in {throttled / periods:.0%} of the "
                "periods (a limit of its control group)"
            )
        if self.heat > before.heat:
            notes.append(f"cores slowed down {self.heat - before.heat} times because they were hot")
        clocks = [*before.hertz, *self.hertz]
        if clocks and max(clocks) > _CLOCK_CHANGE * min(clocks):
            notes.append(f"clocks of the cores were between {min(clocks) / 1e9:.1f} and {max(clocks) / 1e9:.1f} GHz")
        return notes


def _granted_cores() -> float:
    """Return how many cores the control group may use; 0 without a limit."""
    whole = _words(_CGROUP / "cpu.max")
    if len(whole) == 2:
        quota, period = whole
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((_words(_CGROUP / "cpu" / name) or ["-1"])[0] for name in names)
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else 0.0


def _words(path: Path) -> Sequence[str]:
    try:
        return path.read_text().split()
    except OSError:
        return ()


def _pairs(path: Path) -> Mapping[str, str]:
    words = _words(path)
    return dict(zip(words[::2], words[1::2], strict=False))


def _numbers(pattern: str) -> list[int]:
    return [int(words[0]) for path in sorted(_CPUS.glob(pattern)) if (words := _words(path)) and words[0].isdecimal()]
