"""Where studies live: one SQLite file, opened so that `kill -9` at any moment loses nothing that was finished."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from autoprune.errors import RunFolderError
from autoprune.search.question import Question

_BUSY_SECONDS = 30.0


class _Connection(sqlite3.Connection):
    """Write-ahead log with one sync per checkpoint: ten times as fast, and still whole after `kill -9`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the database raises (full disk, no permission, a foreign file) into one `RunFolderError`."""
    try:
        yield
    except (OptunaError, SQLAlchemyError, sqlite3.Error) as error:
        raise RunFolderError(
            f"the study {path} cannot be used: {_root_cause(error)}. What was finished is kept. Check that its "
            "folder can be written, has space left, and that the file is a study of this program."
        ) from error


def open_study(path: Path, question: Question) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
    """Open or create the study of a question; `RunFolderError` when the file cannot be used or answers another one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connect = {"factory": _Connection, "timeout": _BUSY_SECONDS}
    with storage_errors(path):
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": connect})
        study = optuna.create_study(
            study_name=question.study_name,
            storage=storage,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        _claim(study, question, path)
    return storage, study


def _claim(study: optuna.Study, question: Question, path: Path) -> None:
    ours, theirs = question.to_json(), study.user_attrs.get("question")
    if theirs is None:
        study.set_user_attr("question", ours)
    elif theirs != ours:
        changed = ", ".join(_differences(theirs, ours))
        raise RunFolderError(f"{question.study_name} in {path} answers another question: {changed}. Use a new folder.")


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterable[str]:
    return (f"{key} was {theirs.get(key)} and is {ours[key]}" for key in ours if theirs.get(key) != ours[key])


def _root_cause(error: BaseException) -> str:
    """First line of the error that began it: Optuna and SQLAlchemy wrap what SQLite says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
