from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnxscript import values

import autoprune
from tests.measurers import SimulatedMeasurer
from tests.pipeline import tiny

pytest_plugins = ["tests.structure_fixtures"]

SPEC = f"{Path(tiny.__file__)}:make_task"
OPTIONS = {"budgets": ["80%", "65%"], "trials": 10, "executor": "inline"}


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """The exporter parses its 500 translations for each model, which takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        parsed: Any = values.TracedOnnxFunction.function_ir
        patch.setattr(values.TracedOnnxFunction, "function_ir", property(functools.cache(parsed.fget)))
        yield


@pytest.fixture
def measurer() -> SimulatedMeasurer:
    """A device that takes what it took when the finished run was made."""
    return SimulatedMeasurer()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> autoprune.Run:
    """A finished run that tests may read but not change."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    return autoprune.search(SPEC, run_dir=folder, measurer=SimulatedMeasurer(), **OPTIONS)


@pytest.fixture
def copied(finished: autoprune.Run, tmp_path: Path) -> autoprune.Run:
    """A copy of the finished run that tests may change."""
    shutil.copytree(finished.folder.path, tmp_path / "copy")
    return autoprune.Run.open(tmp_path / "copy")
