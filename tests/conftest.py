from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.export.verify import Verification, verify
from autoprune.latency.table import LatencyTable
from autoprune.latency.timing import Protocol
from autoprune.pipeline import finalists, verification
from autoprune.runfolder import RunFolder
from tests.pipeline import tiny


def _steady(
    model: Any, onnx_path: Path, dense_onnx: Path, inputs: Any, target: Any, predicted_ms: float
) -> Verification:
    """Real export, real parity, real timing of both models; but the ratio is the predicted one."""
    found = verify(model, onnx_path, dense_onnx, inputs, target, predicted_ms, protocol=Protocol(repeats=2))
    dense_ms = LatencyTable.load(RunFolder(dense_onnx.parent).table).dense_ms
    return dataclasses.replace(found, ratio=predicted_ms / dense_ms)


@pytest.fixture(scope="session", autouse=True)
def steady_clock() -> Iterator[None]:
    """Whether a model meets its budget must not depend on what else the machine does while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            finalists, "_measured_ratio", lambda setup, policy: setup.predict_ms(policy) / setup.table.dense_ms
        )
        patch.setattr(verification, "verify", _steady)
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
