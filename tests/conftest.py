from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxscript import values

import autoprune
from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latency.table import LatencyTable
from autoprune.pipeline import finalists, tables, verification
from autoprune.pipeline import refit as settle
from autoprune.pipeline.prepare import Setup
from autoprune.profiling import profile as profiling
from autoprune.records import Policy, SearchSpace
from autoprune.structure import Structure
from tests.machines import AdditiveMachine, SimulatedTimer, simulated_timer, stairs
from tests.pipeline import tiny

pytest_plugins = ["tests.structure_fixtures"]

QUICK = Protocol(repeats=3, sample_ms=0.05, warmup_runs=1, retries=0)


def _simulated_profile(structure: Structure, space: SearchSpace, target: Target, **options: Any) -> LatencyTable:
    """A real profile of a simulated device: which widths are useful must not depend on the machine that runs tests."""

    def timer(structure: Structure, target: Target, *, seed: int, on_progress: Any, **_: Any) -> SimulatedTimer:
        cost = stairs(4)
        machine = AdditiveMachine(structure, lambda g: cost(g) / 500, remainder_ms=0.001, noise=0.004, seed=seed)
        return simulated_timer(machine, target, on_progress=on_progress, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "make_policy_timer", timer)
        return profiling.profile(structure, space, target, protocol=QUICK, **options)


def _predicted_ratios(setup: Setup, policies: Sequence[Policy]) -> np.ndarray:
    return np.array([setup.predict_ms(policy) for policy in policies]) / setup.table.dense_ms


def _steady(setup: Setup, policy: Policy, target_model: Any) -> dict[str, Any]:
    """Real timing of both models; but what counts is the predicted ratio."""
    found = _measured(setup, policy, target_model)
    if setup.foreign:
        return found
    ratio = float(_predicted_ratios(setup, [policy])[0])
    return found | {
        "latency_ratio": ratio,
        "latency_ms_measured": ratio * setup.table.dense_ms,
        "prediction_error": 0.0,
    }


_measured = verification._latencies


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """The exporter parses its 500 translations for each model, which takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        parsed: Any = values.TracedOnnxFunction.function_ir
        patch.setattr(values.TracedOnnxFunction, "function_ir", property(functools.cache(parsed.fget)))
        yield


@pytest.fixture(scope="session", autouse=True)
def steady_clock() -> Iterator[None]:
    """What a run does must not depend on what else the machine does while tests run, and not take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "profile", _simulated_profile)
        patch.setattr(settle, "measured_ratios", _predicted_ratios)
        patch.setattr(finalists, "measured_ratios", _predicted_ratios)
        patch.setattr(verification, "_latencies", _steady)
        yield


SPEC = f"{Path(tiny.__file__)}:make_task"
OPTIONS = {"budgets": ["80%", "65%"], "trials": 10, "executor": "inline"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> autoprune.Run:
    """A finished run that tests may read but not change."""
    return autoprune.search(SPEC, run_dir=tmp_path_factory.mktemp("run") / "tiny", **OPTIONS)


@pytest.fixture
def copied(finished: autoprune.Run, tmp_path: Path) -> autoprune.Run:
    """A copy of the finished run that tests may change."""
    shutil.copytree(finished.folder.path, tmp_path / "copy")
    return autoprune.Run.open(tmp_path / "copy")
