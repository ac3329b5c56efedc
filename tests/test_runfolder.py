from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from autoprune.errors import RunFolderError
from autoprune.runfolder import RunFolder, read_json, write_atomic, write_json


def test_json_carries_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"schema": 1, "a": 1}
    assert read_json(path)["a"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    write_atomic(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"No space left on device\. The file is as it was before"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"schema": 99}', "has schema 99"), ('{"schema"', "cannot be read"), ("[]", "has schema None")],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_json(tmp_path / "f.json")


def test_a_file_without_a_key_that_is_needed(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"a": 1})
    assert read_json(tmp_path / "f.json", "a")["a"] == 1
    with pytest.raises(RunFolderError, match=r"f\.json has no 'b'\. Delete it"):
        read_json(tmp_path / "f.json", "a", "b")


def test_an_absent_file_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="autoprune search"):
        read_json(tmp_path / "front.json")


def test_the_configuration_round_trips(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_config() is None
    folder.write_config({"task": "digits", "budgets": ["50%"]})
    assert folder.read_config() == {"task": "digits", "budgets": ["50%"]}
    folder.config.write_text("schema: 2\n")
    with pytest.raises(RunFolderError, match="has schema 2; this version of autoprune reads 1"):
        folder.read_config()


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path / "taken").create()


def test_a_second_controller_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    refused = pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}")
    with folder.locked(), refused, RunFolder(tmp_path).locked():
        pass
    with folder.locked():
        pass
