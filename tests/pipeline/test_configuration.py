"""The same command starts a run and resumes it, whatever its options came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.errors import RunFolderError
from autoprune.pipeline.configuration import resolve
from autoprune.runfolder import RunFolder


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """A run with a study, started from `config.yaml` in the folder beside it."""
    (tmp_path / "config.yaml").write_text("task: mnist5k\nbudgets: [50%]\n")
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_config(resolve(folder, tmp_path / "config.yaml", {}).model_dump(mode="json"))
    folder.study.touch()
    return folder


def test_a_configuration_file_resumes_the_run_that_it_started(begun: RunFolder) -> None:
    stored = begun.read_config() or {}
    for given in ({}, {"workers": 2}):
        found = resolve(begun, begun.path.parent / "config.yaml", given)
        assert found.run_id == stored["run_id"]
        assert found.workers == given.get("workers", stored["workers"])
    (begun.path.parent / "config.yaml").write_text("task: mnist5k\nbudgets: [50%]\nstrategy: random\n")
    with pytest.raises(RunFolderError, match="strategy was 'guided' and is 'random'"):
        resolve(begun, begun.path.parent / "config.yaml", {})


def test_studies_that_moved_are_not_looked_for_where_the_file_says_nothing(begun: RunFolder) -> None:
    moved = (begun.read_config() or {}) | {"storage": "journal:/shared/studies"}
    begun.write_config(moved)
    assert resolve(begun, begun.path.parent / "config.yaml", {}).storage == "journal:/shared/studies"


def test_relative_paths_of_a_file_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("task: mine.py:make\nstorage: journal:my.journal\ndense: dense.safetensors\n")
    found = resolve(RunFolder(tmp_path / "run"), Path("config.yaml"), {})
    assert found.task == f"{tmp_path}/mine.py:make"
    assert found.storage == f"journal:{tmp_path}/my.journal"
    assert found.dense == f"{tmp_path}/dense.safetensors"
