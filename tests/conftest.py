from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import autoprune
from tests.pipeline import tiny

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
