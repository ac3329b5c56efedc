"""How well latencies are measured beside busy processes: processor time of the timed thread against the wall clock.

    OMP_NUM_THREADS=1 python scripts/benchmarks/noise.py [--model resnet20] [--busy 0 1 2 4] [--repeats 4]
        [--table widths]

Random policies of one model are timed `repeats` times with each clock, in turns, beside so many processes that multiply
matrices without end. Printed are the standard deviation of a policy's ratio to the dense model over the repeats (mean
and largest over policies), the dense latency, how far ratios are from those of the quietest line by processor time,
and the share of the time that other work had the core.

With `--table SPACE` whole latency tables are made instead, one beside each number of busy processes, and their errors
on 40 held-out policies, noise, verdict and time are printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from autoprune.device import measure
from autoprune.device.connect import make_target
from autoprune.device.noise import MOST, QUIET
from autoprune.device.timing import Model, Timings, named_feeds, open_session, time_runs
from autoprune.profiling.policy_timer import PolicyTimer, make_policy_timer
from autoprune.profiling.profile import profile
from autoprune.records import SearchSpace
from autoprune.space import build_space, find_space, load_spec
from autoprune.structure import Structure, analyze
from autoprune.task.builtin import MODELS

PIXELS, CLASSES, POLICIES = 28, 10, 16
CLOCKS: Mapping[str, Callable[[], float]] = {"processor": time.thread_time, "wall": time.perf_counter}
_BUSY = "import numpy as np\na = np.random.rand(300, 300)\nwhile True:\n    a @ a\n    sorted(range(9999))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--table", metavar="SPACE", help="make a latency table of this space beside the busy processes")
    given = parser.parse_args()
    structure = analyze(MODELS[given.model](1, PIXELS, CLASSES).eval(), (torch.zeros(1, 1, PIXELS, PIXELS),))
    if given.table:
        tables(structure, given.table, given.busy)
    else:
        clocks(structure, given)


def clocks(structure: Structure, given: argparse.Namespace) -> None:
    """Time the same policies by both clocks."""
    timer = make_policy_timer(structure, make_target("ort-cpu", threads=1, batch=1))
    full = np.array([unit.width for unit in structure.units])
    rows = np.maximum(1, full * np.random.default_rng(0).uniform(0.2, 1, (POLICIES, len(full)))).astype(np.int64)
    models, quietest = list(timer.models(rows, "")), None
    for count in given.busy:
        with busy(count):
            turns = [
                {name: timed(timer, models, clock) for name, clock in CLOCKS.items()} for _ in range(given.repeats)
            ]
        for name in CLOCKS:
            timings = [turn[name] for turn in turns]
            ratios = np.array([each.ratios for each in timings])
            quietest = ratios.mean(axis=0) if quietest is None else quietest
            print(f"{count} busy, {name:9s}: {_line(timings, ratios, quietest)}", flush=True)


def tables(structure: Structure, space: str, busy_counts: Sequence[int]) -> None:
    """Make a latency table beside each number of busy processes; print a line for each."""
    spec, layers = load_spec(find_space(space)), structure.layers

    def built(useful: Mapping[str, Sequence[int]] | None = None) -> SearchSpace:
        return build_space(spec, structure.units, structure.digest(), useful=useful, layers=layers)

    for count in busy_counts:
        with busy(count):
            start = time.monotonic()
            table = profile(structure, built(), make_target("ort-cpu", 1, 1), narrow=built, allow_noise=True)
            seconds = time.monotonic() - start
        verdict = "quiet" if table.noise <= QUIET else "timed longer" if table.noise <= MOST else "refused"
        print(f"{count} busy: held-out error {table.held_out.mape_percent:.1f} % (largest "
              f"{table.held_out.max_percent:.1f}), Spearman {table.held_out.spearman:.3f}, noise {table.noise:.1%} "
              f"({verdict}), {len(table.samples)} policies in {seconds:.0f} s", flush=True)  # fmt: skip


def _line(timings: Sequence[Timings], ratios: np.ndarray, quietest: np.ndarray) -> str:
    varies = ratios.std(axis=0, ddof=1) / ratios.mean(axis=0)
    error = np.abs(ratios / quietest - 1)
    dense_us = [round(1e3 * each.reference_ms) for each in timings]
    waited = np.mean([each.waited for each in timings])
    return (
        f"ratios vary by {varies.mean():.2%} (largest {varies.max():.2%}), are {error.mean():.2%} ({error.max():.2%}) "
        f"off; dense {min(dense_us)} to {max(dense_us)} us; others had the core for {waited:.0%}"
    )


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes busy meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def timed(timer: PolicyTimer, models: Sequence[Model], clock: Callable[[], float]) -> Timings:
    """Time models beside the dense one by a clock."""

    def opened(model: Model) -> measure.Run:
        session = open_session(model, timer.target)
        named_feeds(session, timer.feeds)
        return measure.runner(session, timer.feeds)

    with measure.pinned(1, one_each=True):
        return time_runs([lambda m=m: opened(m) for m in models], opened(timer.dense), clock=clock)


if __name__ == "__main__":
    main()
