"""Costs of distribution: overhead of a trial by executor, of a proposal by history, and what a second worker gains.

python scripts/benchmarks/scale.py overhead --executors inline process ray --trials 200
python scripts/benchmarks/scale.py proposals --finished 100 1000 5000 --trials 20
python scripts/benchmarks/scale.py speedup --run-dir runs/mine --trials 16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import optuna

from autoprune.budgets import Limit
from autoprune.evaluation import EvaluatorFactory
from autoprune.executors.base import Evaluate, Executor
from autoprune.executors.cluster import authenticate
from autoprune.executors.inline import InlineExecutor
from autoprune.executors.process import ProcessExecutor
from autoprune.pipeline.run import Run
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.study.broker import WINDOW, Broker
from autoprune.study.samplers import finished_trial
from autoprune.study.spec import StudySpec
from autoprune.study.storage import opened
from autoprune.trials import Fidelity, Measurement, TrialResult, TrialSpec

UNITS, LEVELS = 30, 19
SPACE = SearchSpace(id="scale", levels={f"unit{i}": tuple(range(1, LEVELS + 1)) for i in range(UNITS)})
PROXY = Fidelity(name="proxy", rung=0)


def main() -> None:
    """Run the part that was asked for."""
    given = parse()
    {"overhead": overhead, "proposals": proposals, "speedup": speedup}[given.part](given)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("overhead", "proposals", "speedup"))
    parser.add_argument("--executors", nargs="+", default=["inline", "process"])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--run-dir", type=Path)
    return parser.parse_args()


def loss_of(policy: Policy) -> float:
    return 1e-3 + sum((LEVELS - width) ** 2 for width in policy.widths.values()) / 1e4


def scored(spec: TrialSpec) -> TrialResult:
    loss, latency = loss_of(spec.policy), float(predict([spec.policy])[0, 0])
    measurement = Measurement(
        score=1 / (1 + loss), loss=loss, latency_ms=latency, latency_source="predicted",
        params=1, macs=1, bytes=1, activation_bytes=1,
    )  # fmt: skip
    return TrialResult(
        number=spec.number, policy=spec.policy, fidelity=spec.fidelity, status="done", seed=spec.seed,
        measurement=measurement, attempt=spec.attempt,
    )  # fmt: skip


def trivial() -> Evaluate:
    return scored


def predict(policies: Sequence[Policy]) -> np.ndarray:
    costs = np.ones((len(policies), len(COSTS)))
    costs[:, 0] = [sum(policy.widths.values()) for policy in policies]
    return costs


def specs(count: int) -> list[TrialSpec]:
    rng = np.random.default_rng(0)
    policies = [
        SPACE.policy({name: int(rng.choice(SPACE.widths_of(name))) for name in SPACE.levels}) for _ in range(count)
    ]
    return [TrialSpec(number=n, policy=p, fidelity=PROXY, seed=n) for n, p in enumerate(policies)]


@contextmanager
def opened_executor(name: str, factory: Callable[[], Evaluate], workers: int) -> Iterator[Executor]:
    if name == "inline":
        executor: Executor = InlineExecutor(factory)
    elif name == "process":
        executor = ProcessExecutor(factory, workers=workers)
    else:
        authenticate(None)
        from autoprune.executors.ray import RayExecutor

        executor = RayExecutor(factory, workers=workers)
    with executor:
        yield executor


def seconds_for(executor: Executor, trials: Sequence[TrialSpec]) -> float:
    start = time.perf_counter()
    for spec in trials:
        executor.submit(spec)
    for _ in trials:
        result = executor.wait()
        assert result.status == "done", result.error
    return time.perf_counter() - start


def overhead(given: argparse.Namespace) -> None:
    """Milliseconds of a trial that does nothing, after each worker has served one."""
    for name in given.executors:
        start = time.perf_counter()
        with opened_executor(name, trivial, 2) as executor:
            seconds_for(executor, specs(8))
            ready = time.perf_counter() - start
            each = 1e3 * seconds_for(executor, specs(given.trials)) / given.trials
        print(f"{name}: {each:.1f} ms for each of {given.trials} trials, 2 slots; {ready:.1f} s until the first eight")


def proposals(given: argparse.Namespace) -> None:
    """Milliseconds to take a result and to propose the next trial, over 30 units, on the default storage."""
    study_spec = StudySpec(space=SPACE, fidelity=PROXY, limits=(Limit.of(latency_ms=400.0),), run_seed=0)
    for finished in given.finished:
        with TemporaryDirectory() as folder:
            place = Path(folder) / "study.db"
            Broker(place, study_spec, predict).close()
            with opened(place) as storage:
                study = optuna.load_study(study_name=study_spec.study_name, storage=storage)
                study.add_trials([finished_trial(scored(spec), SPACE, 0.0) for spec in specs(finished)])
            with closing(
                Broker(place, study_spec, predict, sampler=given.sampler, trials=WINDOW + given.trials)
            ) as broker:
                waiting, asks, tells = broker.ask(), [], []
                for _ in range(given.trials):
                    start = time.perf_counter()
                    broker.finish(scored(waiting.pop(0)))
                    told = time.perf_counter()
                    waiting += broker.ask()
                    asks.append(time.perf_counter() - told)
                    tells.append(told - start)
            ask, tell = (1e3 * float(np.median(seconds)) for seconds in (asks, tells))
            print(
                f"{given.sampler}, {finished} finished, {WINDOW} running: {ask + tell:.0f} ms a trial, "
                f"{tell:.0f} of it to write the result down"
            )


def speedup(given: argparse.Namespace) -> None:
    """Wall time of trials of a run's own task, on one worker process and on two."""
    run = Run.open(given.run_dir)
    config = run.config
    factory = EvaluatorFactory(
        task=config.task, model=config.model, data_dir=config.data_dir, run_dir=str(run.folder.path.resolve())
    )
    policies = [model.policy for model in [*run.models, *run.others, *run.baselines]]
    seconds = {}
    for workers in (1, 2):
        with opened_executor("process", factory, workers) as executor:
            trials = [
                TrialSpec(number=n, policy=policies[n % len(policies)], fidelity=PROXY, seed=n)
                for n in range(max(given.trials, workers))
            ]
            seconds_for(executor, trials[: 2 * workers])  # every worker fills its caches
            seconds[workers] = seconds_for(executor, trials)
    gain = seconds[1] / seconds[2]
    print(f"{given.trials} trials: {seconds[1]:.1f} s on 1 worker, {seconds[2]:.1f} s on 2, {gain:.2f}x")


if __name__ == "__main__":
    main()
