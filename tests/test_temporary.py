"""Temporary folders and files: gone with their process, or at the next start; never those of a living process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoprune.files import remove_torn, write_atomic
from autoprune.temporary import TemporaryFolder, remove_leftovers

OWNER = """
import os, signal, sys
from pathlib import Path
from autoprune.temporary import TemporaryFolder, temporary_file
folder = TemporaryFolder("ray")
(folder.path / "weights").write_bytes(b"1")
print(folder.path, temporary_file("token", b"secret"), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that has a temporary folder and a temporary file in `tmp_path`, as we have from now on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-c", OWNER]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.kill()


def paths_of(process: subprocess.Popen[str]) -> list[Path]:
    assert process.stdout
    return sorted(map(Path, process.stdout.readline().split()))


def test_what_a_killed_process_left_is_removed_and_not_what_a_living_one_has(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder, token = paths_of(owner)
    assert token.stat().st_mode & 0o777 == 0o600
    assert remove_leftovers() == []
    owner.kill()
    owner.wait()
    strangers = [tmp_path / "autoprune-mine", tmp_path / "precious"]
    for stranger in strangers:
        stranger.mkdir()
        (stranger / "kept").touch()
    link = tmp_path / "autoprune-ray-x.held"
    link.symlink_to(strangers[1])
    (folder / "link").symlink_to(strangers[1])
    assert sorted(remove_leftovers()) == [folder, token]
    assert sorted(tmp_path.iterdir()) == sorted([*strangers, link])
    assert all((stranger / "kept").exists() for stranger in strangers)


def test_an_orderly_end_leaves_nothing(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    assert len(paths_of(owner)) == 2
    owner.communicate("\n")
    assert list(tmp_path.iterdir()) == []
    with TemporaryFolder("export") as folder:
        assert remove_leftovers() == []
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_files_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / "autoprune-token-theirs.held"
    theirs.touch()
    os.chown(theirs, 65534, 65534)
    assert remove_leftovers() == []
    assert theirs.exists()


def test_a_file_whose_writing_was_cut_off_is_removed_from_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    torn = [tmp_path / ".ffa5b716b5a5.7.tmp", tmp_path / "models" / ".2672b5b3f4e2.99999999.tmp"]
    others = [tmp_path / ".notes.tmp", tmp_path / "model.tmp"]
    for path in (*torn, *others):
        path.touch()
    write_atomic(tmp_path / "front.json", b"{}")
    remove_torn(tmp_path)
    assert [path.exists() for path in (*torn, *others)] == [False, False, True, True]
