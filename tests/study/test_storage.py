from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from autoprune.errors import RunFolderError, UsageError
from autoprune.study.location import SharedStorage, study_name
from autoprune.study.optuna_private import close_storage
from autoprune.study.status import study_states
from autoprune.study.storage import check_storage, open_storage, opened, storage_errors


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
    location = SharedStorage(f"journal:{tmp_path / 'studies.journal'}", "run")
    location.path.write_text(torn + torn)
    with pytest.raises(RunFolderError, match=r"studies.journal is damaged: .* Restore it"):
        open_storage(location)


@pytest.mark.parametrize("kind", ["database", "journal"])
def test_a_run_needs_the_file_with_its_studies(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "studies"
    location = SharedStorage(f"journal:{file}", "run") if kind == "journal" else file
    check_storage(location, made=False, begun=False)
    file.unlink(missing_ok=True)
    with pytest.raises(RunFolderError, match="studies, which holds the studies of this run, is gone or empty"):
        check_storage(location, made=True, begun=False)
    assert not file.exists()
    file.touch()
    check_storage(location, made=True, begun=False)  # made a moment before it was cut off
    with pytest.raises(RunFolderError, match="is gone or empty"):
        check_storage(location, made=True, begun=True)


@pytest.mark.parametrize("kind", ["database", "journal"])
def test_whoever_looks_on_changes_nothing(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "studies"
    location = SharedStorage(f"journal:{file}", "run") if kind == "journal" else file
    with pytest.raises(RunFolderError, match="studies, which holds the studies of this run, is gone"):
        study_states(location)
    assert not list(tmp_path.iterdir())
    file.touch()
    assert study_states(location) == []
    file.unlink()
    with opened(location) as storage:
        optuna.create_study(study_name=study_name(location, "rung-0"), storage=storage)
    before = file.read_bytes()
    assert [state.name for state in study_states(location)] == ["rung-0"]
    assert file.read_bytes() == before


def test_a_database_in_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "study.db") as storage:
        optuna.create_study(study_name="rung-0", storage=storage)
    monkeypatch.setattr("os.access", lambda *_: False)
    (state,) = study_states(tmp_path / "study.db")
    assert state.name == "rung-0"
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_a_database_that_is_only_read_cannot_be_written(tmp_path: Path) -> None:
    with opened(tmp_path / "study.db"):
        pass
    with pytest.raises(RunFolderError, match="readonly"), opened(tmp_path / "study.db", reading=True) as storage:
        optuna.create_study(study_name="another", storage=storage)


@pytest.mark.parametrize("name", ["50%", "a?b=c", "a%3Fb", "a#b", "{x} y"])
def test_a_study_is_read_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with opened(tmp_path / name / "study.db") as storage:
        optuna.create_study(study_name="rung-0", storage=storage)
    assert [state.name for state in study_states(tmp_path / name / "study.db")] == ["rung-0"]


def test_a_url_without_a_port_number_is_one_clear_message() -> None:
    with pytest.raises(UsageError, match=r"a storage is postgresql\+psycopg://USER:\$PASSWORD@HOST:PORT/DATABASE"):
        SharedStorage("postgresql+psycopg://me@host:abc/db", "run")


@pytest.mark.parametrize("name", ["odd q?x", "p%20c", "50%", "a#b é", "br{x}"])
def test_a_study_is_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    close_storage(open_storage(folder / "study.db"))
    assert (folder / "study.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
