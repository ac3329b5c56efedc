"""How busy a cluster is kept, by the real controller and strategy.

    python scripts/benchmarks/cluster.py simulated --workers 16 64 256 1024 --strategy guided [--run-dir runs/mine]
    python scripts/benchmarks/cluster.py ray --workers 16 64 --seconds 10

`simulated` workers live on a clock to which the controller's own time is added; `ray` starts actors that sleep. Trials
take `--seconds` with a spread of 10 % or, with `--run-dir`, what those of a run took. There are `--each` trials for
every worker, and more where a strategy measures sensitivities; none is fine-tuned.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.budgets import Limit
from autoprune.executors.base import Evaluate, Executor
from autoprune.executors.cluster import authenticate
from autoprune.pipeline.studies import studies_of
from autoprune.runfolder import RunFolder
from autoprune.search.controller import run_search
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.study.optuna_private import study_id
from autoprune.study.storage import opened
from autoprune.trials import Fidelity, TrialResult, TrialSpec

sys.path.insert(0, str(Path(__file__).parent))

from scale import PROXY, SPACE, predict, scored, seconds_for, specs

SPREAD = 0.1
RUGGEDNESS = 0.3
SHARES = (0.75, 0.5, 0.33, 0.25)


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("simulated", "ray"))
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--strategy", default="guided")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--each", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--run-dir", type=Path)
    given = parser.parse_args()
    {"simulated": simulated, "ray": sleeping_actors}[given.kind](given)


class SimulatedCluster(Executor):
    """Workers on a simulated clock: it stands still while the controller waits, and runs while it works."""

    def __init__(self, workers: int, seconds_of: Callable[[TrialSpec], float]) -> None:
        self.slots = workers
        self.ran_s: list[float] = []
        self.span_s = 0.0
        self._seconds_of = seconds_of
        self._now, self._since = 0.0, time.perf_counter()
        self._free = [0.0] * workers
        self._ends: list[tuple[float, int, TrialSpec]] = []

    def submit(self, spec: TrialSpec) -> None:
        """Give it to the worker that is free first."""
        start = max(self._clock(), heapq.heappop(self._free))
        self.ran_s.append(self._seconds_of(spec))
        end = start + self.ran_s[-1]
        heapq.heappush(self._free, end)
        heapq.heappush(self._ends, (end, len(self.ran_s), spec))

    def wait(self) -> TrialResult:
        """Set the clock to the end of the next trial."""
        end, _, spec = heapq.heappop(self._ends)
        self._now, self._since = max(self._clock(), end), time.perf_counter()
        self.span_s = max(self.span_s, end)
        return rugged(spec)

    def close(self) -> None:
        """Nothing is held."""

    def _clock(self) -> float:
        return self._now + time.perf_counter() - self._since


def simulated(given: argparse.Namespace) -> None:
    """Share of the time that simulated workers are busy, from the first trial to the last."""
    for workers in given.workers:
        cluster = SimulatedCluster(workers, seconds_by(given))
        print(f"{given.strategy}, {workers} workers: {searched(given, cluster, workers)}", flush=True)


def sleeping_actors(given: argparse.Namespace) -> None:
    """The same of Ray actors that sleep, after each has served a trial."""
    authenticate(None)
    from autoprune.executors.ray import RayExecutor

    for workers in given.workers:
        share = {"cpu": (os.cpu_count() or 1) / workers}
        with RayExecutor(partial(sleeping, seconds_by(given)), workers=workers, resources=share) as executor:
            seconds_for(executor, specs(workers))
            print(f"{given.strategy}, {workers} Ray actors: {searched(given, Timed(executor), workers)}", flush=True)


def recorded_seconds(run_dir: Path) -> np.ndarray:
    """Seconds that the trials of a run took, at the fidelity that took most of the time."""
    place = studies_of(RunFolder(run_dir).path)
    seconds: dict[str, list[float]] = {}
    with opened(place) as storage:
        for study in storage.get_all_studies():
            results: list[dict[str, Any]] = [
                t.user_attrs["result"] for t in storage.get_all_trials(study_id(study)) if "result" in t.user_attrs
            ]
            seconds[study.study_name] = [r["seconds"] for r in results if r["status"] == "done"]
    return np.array(max(seconds.values(), key=sum))


class Timed(Executor):
    """An executor whose trials are timed."""

    def __init__(self, executor: Executor) -> None:
        self.slots = executor.slots
        self.span_s = 0.0
        self.ran_s: list[float] = []
        self._executor = executor
        self._start = time.perf_counter()

    def submit(self, spec: TrialSpec) -> None:
        """As it does."""
        self._executor.submit(spec)

    def close(self) -> None:
        """Whoever opened it closes it."""

    def wait(self) -> TrialResult:
        """Note what the trial took."""
        result = self._executor.wait()
        self.ran_s.append(result.seconds)
        self.span_s = time.perf_counter() - self._start
        return result


def seconds_by(given: argparse.Namespace) -> Callable[[TrialSpec], float]:
    """Return seconds by trial, always the same for the same trial."""
    recorded = recorded_seconds(given.run_dir) if given.run_dir else given.seconds * np.array([1.0])
    spread = 0.0 if given.run_dir else SPREAD

    def seconds(spec: TrialSpec) -> float:
        rng = np.random.default_rng(int(spec.policy.digest(), 16))
        return float(rng.choice(recorded) * rng.lognormal(0, spread))

    return seconds


def rugged(spec: TrialSpec) -> TrialResult:
    """A result that no sum over units explains: there is always something to refine."""
    result = scored(spec)
    assert result.measurement is not None
    loss = result.measurement.loss * np.random.default_rng(int(spec.policy.digest(), 16)).lognormal(0, RUGGEDNESS)
    return replace(result, measurement=replace(result.measurement, loss=float(loss)))


def sleeping(seconds_of: Callable[[TrialSpec], float]) -> Evaluate:
    def slept(spec: TrialSpec) -> TrialResult:
        time.sleep(seconds_of(spec))
        return replace(rugged(spec), seconds=seconds_of(spec))

    return slept


def searched(given: argparse.Namespace, cluster: SimulatedCluster | Timed, workers: int) -> str:
    """Run a search of so many trials for each worker, without fine-tuning; how busy it kept them."""
    space, trials = SPACE, given.each * workers
    effort = Effort(
        name="scale", trials=trials, rungs=(PROXY,), promoted=(), finalists=1,
        full=Fidelity(name="full", rung=1, finetune_samples=1),
    )  # fmt: skip
    most = float(predict([space.largest()])[0, 0])
    tables = [CostTable(units=(n,), values=np.array(levels, dtype=float)) for n, levels in space.levels.items()]
    with TemporaryDirectory() as folder:
        search = Search(
            location=Path(folder) / "study.db", space=space, dense_widths=space.largest().widths, predict=predict,
            limits=tuple(Limit.of(latency_ms=share * most) for share in SHARES), effort=effort,
            run_seed=0, additive={"latency_ms": AdditiveCost(constant=0.0, tables=tuple(tables))},
            strategy=given.strategy, sampler=given.sampler,
        )  # fmt: skip
        run_search(search, cluster)
    busy = sum(cluster.ran_s) / (workers * cluster.span_s)
    return f"{len(cluster.ran_s)} trials in {cluster.span_s / 60:.1f} min, busy {busy:.1%}"


if __name__ == "__main__":
    main()
