from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoprune.errors import RunFolderError
from autoprune.files import parsed_json, write_atomic
from autoprune.lease import held, holder
from autoprune.printable import printable
from autoprune.runfolder import RunFolder


def test_links_and_devices_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("link", "a symbolic link"), ("pipe", "a pipe"), (".", "a folder")):
        with pytest.raises(RunFolderError, match=f"is {kind}, and stays as it is"):
            write_atomic(tmp_path / name, b"new")
    with pytest.raises(RunFolderError, match="is a device"):
        write_atomic(Path("/dev/null"), b"new")
    assert target.read_bytes() == b"kept"


def test_a_lease_through_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text('{"host": "h", "pid": 1, "born": "", "since": ""}')
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(RunFolderError, match="cannot be used"), held(tmp_path / ".lock"):
        pass
    assert holder(tmp_path / ".lock") is None
    assert target.read_text().startswith('{"host"')


def test_a_new_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    folder.create()
    with folder.locked():
        assert [path.stat().st_mode & 0o077 for path in (folder.path, folder.lease)] == [0, 0]


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("a" * 255), b"content")
    with pytest.raises(RunFolderError, match="File name too long"):
        write_atomic(tmp_path / ("a" * 256), b"content")
    with pytest.raises(RunFolderError, match="null byte"):
        write_atomic(tmp_path / "a\0b", b"content")


def test_json_that_is_too_deep_is_an_error_like_any_other() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed_json("[" * 100_000)


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2066", "\x7f"])
def test_what_steers_a_terminal_is_shown_instead(char: str) -> None:
    assert printable(f"a{char}b\n\tü") == f"a{char.encode('unicode_escape').decode()}b\n\tü"
