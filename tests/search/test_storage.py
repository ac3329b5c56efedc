from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from autoprune.errors import RunFolderError, UsageError
from autoprune.search.places import SharedStorage
from autoprune.search.storage import close_storage, open_storage, storage_errors


def test_a_full_disk_is_one_message_with_its_cause() -> None:
    full = sqlite3.OperationalError("database or disk is full")
    wrapped = OperationalError("commit", None, full)
    wrapped.__cause__ = full
    message = r"study\.db cannot be used: database or disk is full\. What was finished"
    with pytest.raises(RunFolderError, match=message), storage_errors(Path("study.db")):
        raise wrapped


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), storage_errors(Path("study.db")):
        raise KeyError("not the database")


@pytest.mark.parametrize("torn", ['{"op_code": 0, "worker_id"\n', '{"op_code": 0, "worker_id": "\\x"}\n'])
def test_a_damaged_journal_is_one_clear_message(tmp_path: Path, torn: str) -> None:
    place = SharedStorage(f"journal:{tmp_path / 'studies.journal'}", "run")
    place.path.write_text(torn + torn)
    with pytest.raises(RunFolderError, match=r"studies.journal is damaged: .* Restore it"):
        open_storage(place)


def test_a_url_without_a_port_number_is_one_clear_message() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UsageError, match=r"host:abc/db is no URL of a database"):
        open_storage(SharedStorage("postgresql+psycopg://me@host:abc/db", "run"))


@pytest.mark.parametrize("name", ["odd q?x", "p%20c", "50%", "a#b é", "br{x}"])
def test_a_study_is_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    close_storage(open_storage(folder / "study.db"))
    assert (folder / "study.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
