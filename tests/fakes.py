"""A small world with a known answer: costs and loss are sums over units, and scoring takes no time."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.executors.base import Evaluate
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.trials import Fidelity, Measurement, TrialResult, TrialSpec

DENSE = {f"unit{i}": 8 for i in range(6)} | {"fixed": 5}
SPACE = SearchSpace(id="fake", levels={n: (2, 3, 4, 5, 6, 7, 8) for n in DENSE if n != "fixed"} | {"fixed": (5,)})
COST_MS = dict(zip(DENSE, (0.30, 0.05, 0.20, 0.10, 0.25, 0.10, 0.40), strict=True))
HARM = dict(zip(DENSE, (0.1, 3.0, 0.5, 2.0, 0.3, 1.0, 9.9), strict=True))
DENSE_MS = sum(COST_MS[n] * w for n, w in DENSE.items())
LIMITS = (Limit.of(latency_ms=0.7 * DENSE_MS), Limit.of(latency_ms=0.55 * DENSE_MS))
IMPORTANCE = {n: HARM[n] * np.arange(1, 2 * w, 2) / 100 for n, w in DENSE.items()}
"""Of every channel, the least first: what `loss_of` rises by as they are removed."""
PARAMS = dict(zip(DENSE, (1, 9, 2, 7, 1, 3, 4), strict=True))
DENSE_PARAMS = sum(PARAMS[n] * w for n, w in DENSE.items())


def latency_ms(policy: Policy) -> float:
    return sum(COST_MS[n] * w for n, w in policy.widths.items())


def sizes(policy: Policy) -> dict[str, int]:
    """Parameters weigh units otherwise than latency does; the peak is that of the widest unit."""
    params = sum(PARAMS[n] * w for n, w in policy.widths.items())
    peak = max(policy.widths.values())
    return {"params": params, "macs": 10 * params, "bytes": 4 * params, "activation_bytes": 100 * peak}


def unary(price: Mapping[str, float], constant: float = 0.0) -> AdditiveCost:
    """A cost of so much for each channel, as tables over the levels."""
    tables = [
        CostTable(units=(n,), values=price[n] * np.array(levels, dtype=float)) for n, levels in SPACE.levels.items()
    ]
    return AdditiveCost(constant=constant, tables=tuple(tables))


ADDITIVE = {"latency_ms": unary(COST_MS), "params": unary(PARAMS)}


def predict(policies: Sequence[Policy]) -> np.ndarray:
    return costs_of(latency_ms, policies, sizes)


def costs_of(
    latency_ms: Callable[[Policy], float],
    policies: Sequence[Policy],
    sizes: Callable[[Policy], Mapping[str, float]] = lambda policy: {},
) -> np.ndarray:
    """Costs `[P, K]` of a latency, and of sizes that are 1 where they do not matter."""
    rows = [dict.fromkeys(COSTS, 1.0) | sizes(policy) | {"latency_ms": latency_ms(policy)} for policy in policies]
    return np.array([[row[name] for name in COSTS] for row in rows], dtype=float)


def loss_of(policy: Policy) -> float:
    return sum(HARM[n] * (DENSE[n] - w) ** 2 / 100 for n, w in policy.widths.items()) + 1e-3


def evaluate(spec: TrialSpec) -> TrialResult:
    loss = loss_of(spec.policy) / (1 + spec.fidelity.rung) + spec.seed % 1000 * 1e-9
    measurement = Measurement(
        score=1 / (1 + loss),
        loss=loss,
        latency_ms=latency_ms(spec.policy),
        latency_source="predicted",
        **sizes(spec.policy),
    )
    return TrialResult(
        number=spec.number,
        policy=spec.policy,
        fidelity=spec.fidelity,
        status="done",
        seed=spec.seed,
        measurement=measurement,
        sample_passes=float(spec.fidelity.finetune_samples),
        attempt=spec.attempt,
    )


def plain() -> Evaluate:
    return evaluate


def shuffling() -> Evaluate:
    """Trials finish in another order than they start."""

    def scored(spec: TrialSpec) -> TrialResult:
        time.sleep(spec.seed % 7 * 0.004)
        return evaluate(spec)

    return scored


def raising() -> Evaluate:
    """Odd trials fail by themselves."""

    def scored(spec: TrialSpec) -> TrialResult:
        if spec.number % 2:
            raise TrialError("odd trials do not work")
        return evaluate(spec)

    return scored


def broken() -> Evaluate:
    raise TrialError("no data today")


def dying_at_start() -> Evaluate:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hanging(seconds: float) -> Evaluate:
    """The first attempt at trial 1 takes that long."""

    def scored(spec: TrialSpec) -> TrialResult:
        if spec.number == 1 and spec.attempt == 1:
            time.sleep(seconds)
        return evaluate(spec)

    return scored


def faulty(folder: Path, *faults: str) -> Evaluate:
    """The worker of trials 1, 4, 7, ... suffers one of these, at the first attempt: killed, memory, hang or nan."""

    def scored(spec: TrialSpec) -> TrialResult:
        mark = folder / f"{spec.fidelity.rung}-{spec.policy.digest()}"
        fault = faults[spec.number // 3 % len(faults)]
        if spec.number % 3 == 1 and not mark.exists():
            mark.touch()
            suffer(fault)
        return evaluate(spec)

    return scored


def suffer(fault: str) -> None:
    """Let it happen."""
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        bytearray(1 << 31)
    elif fault == "hang":
        time.sleep(1000)
    else:
        Measurement(**dict.fromkeys(MEASURED, float("nan")), latency_source="predicted")  # pyright: ignore


MEASURED = ("score", "loss", "latency_ms", "params", "macs", "bytes", "activation_bytes")


def environment() -> Evaluate:
    """Reports the thread setting of the worker as the number of parameters."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))

    def scored(spec: TrialSpec) -> TrialResult:
        result = evaluate(spec)
        assert result.measurement
        changed = Measurement(**vars(result.measurement) | {"params": threads})
        return TrialResult(**vars(result) | {"measurement": changed})

    return scored


def interpreting() -> Evaluate:
    """Runs a traced module node by node, as repairs do."""
    import torch  # which the workers of other tests start faster without

    reader = torch.fx.Interpreter(torch.fx.symbolic_trace(torch.nn.Linear(1, 1)))

    def scored(spec: TrialSpec) -> TrialResult:
        reader.run(torch.zeros(1, 1))
        return evaluate(spec)

    return scored


def logging_to(path: Path) -> Evaluate:
    """Slow enough to be killed on the way; appends its process and `rung policy` for every evaluation."""

    def scored(spec: TrialSpec) -> TrialResult:
        with path.open("a") as log:
            log.write(f"{os.getpid()} {spec.fidelity.rung} {spec.policy.digest()}\n")
        time.sleep(0.02)
        return evaluate(spec)

    return scored


def spec(number: int = 0, **widths: int) -> TrialSpec:
    return TrialSpec(number=number, policy=SPACE.policy(widths), fidelity=PROXY, seed=number)


PROXY = Fidelity(name="proxy", rung=0)
EFFORT = Effort(
    name="small",
    trials=18,
    rungs=(PROXY, Fidelity(name="brief", rung=1, finetune_samples=10)),
    promoted=(3,),
    full=Fidelity(name="full", rung=2, finetune_samples=100),
    finalists=1,
)


def search(path: Path, **changes: object) -> Search:
    fields = {
        "location": path / "study.db",
        "space": SPACE,
        "dense_widths": DENSE,
        "predict": predict,
        "limits": LIMITS,
        "effort": EFFORT,
        "run_seed": 3,
        "additive": ADDITIVE,
        "importance": IMPORTANCE,
        "strategy": "direct",
    }
    return Search(**fields | changes)  # pyright: ignore[reportArgumentType]


class Told:
    """An observer of rungs that calls a function after every finished trial."""

    def __init__(self, after):
        self._after = after

    def begin(self, rung):
        """Ignore."""

    def __call__(self, progress):
        self._after(progress)
