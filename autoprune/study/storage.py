"""Opening and copying studies. SQLite is opened so that `kill -9` at any moment loses nothing that was finished."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from autoprune.errors import RunFolderError, UsageError
from autoprune.files import require_plain
from autoprune.records import digest_of
from autoprune.study.attributes import unusable_study
from autoprune.study.location import (
    StudyLocation,
    file_of,
    is_empty,
    missing_file,
    readers_url,
    study_name,
    unusable_file,
)
from autoprune.study.optuna_private import Database, close_storage
from autoprune.study.spec import SPEC_KEY, StudySpec
from autoprune.trials import TrialResult

OpenStudy = Callable[[StudyLocation, StudySpec, Callable[[TrialResult], FrozenTrial]], tuple[BaseStorage, optuna.Study]]
"""The signature of `open_study`."""

_BUSY_SECONDS = 30.0
_LONGEST_LINE = 10_000_000
_CONNECT_SECONDS = 10


class _Connection(sqlite3.Connection):
    """Write-ahead log with one sync per checkpoint: ten times as fast, and still whole after `kill -9`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def storage_errors(location: StudyLocation) -> Iterator[None]:
    """Turn what the database raises (full disk, no permission, nobody there) into one `RunFolderError`."""
    try:
        yield
    except (OptunaError, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        cause = _root_cause(error)
        if isinstance(error, OSError) and (isinstance(location, Path) or location.scheme != "journal"):
            raise  # it comes from something else: databases have errors of their own
        if isinstance(error, ImportError):
            advice = "Install the database's client: pip install 'autoprune[cluster]'."
        elif isinstance(location, Path):
            raise unusable_file(location, cause) from error
        else:
            cause = location.redacted(cause)
            advice = "Check that it is running and reachable from here, and run the same command again."
        raise RunFolderError(
            f"the study {location} cannot be used: {cause}. What was finished is kept. {advice}"
        ) from error


def open_storage(location: StudyLocation, *, reading: bool = False) -> BaseStorage:
    """Open the storage of a location; raises what `storage_errors` turns into one error.

    A file is made when there is none. With `reading` it must be there, and one of SQLite is not written to.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = file_of(location)
    if reading and file is not None and not file.exists():
        raise missing_file(file)
    if isinstance(location, Path) and reading:
        # The path is unquoted twice: as a part of this URL, and as one of its own.
        url = f"sqlite:///{readers_url(location).replace('%', '%25')}&uri=true"
        options = {"connect_args": {"timeout": _BUSY_SECONDS}}
        return Database(url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)
    if isinstance(location, Path):
        connect: dict[str, Any] = {"factory": _Connection, "timeout": _BUSY_SECONDS}
        # Quoted, or a path with ? or % would mean another file.
        return _database(location, f"sqlite:///{quote(str(location))}", {"connect_args": connect})
    if location.scheme == "journal":
        _require_journal(location.path)
        try:
            return JournalStorage(JournalFileBackend(str(location.path)))
        except ValueError as error:
            raise RunFolderError(
                f"the journal {location.path} is damaged: {error}. Restore it from a backup, or begin a run of its own."
            ) from error
    # A connection that the server ended meanwhile is replaced: it may be restarted while trials run.
    connect = {"connect_timeout": _CONNECT_SECONDS}
    try:
        return _database(location, location.expanded(), {"pool_pre_ping": True, "connect_args": connect})
    except ValueError as error:
        raise UsageError(f"{location} is no URL of a database: {location.redacted(str(error))}") from error


def _require_journal(path: Path) -> None:
    """Raise `RunFolderError` for a file that is no journal, to which one would be appended."""
    require_plain(path)
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        first = file.readline(_LONGEST_LINE)
    begun = first.startswith(b"{") and b'"op_code"' in first  # one that is damaged further on is told as such
    if not begun and (first.endswith(b"\n") or not b'{"op_code"'.startswith(first[:10])):
        raise RunFolderError(f"{path} is no journal of studies, and stays as it is. Name another file.")


def _database(location: StudyLocation, url: str, engine: dict[str, Any]) -> Database:
    """Open a database; `RunFolderError` when another version of Optuna made it."""
    try:
        return Database(url, engine_kwargs=engine)
    except RuntimeError as error:
        raise unusable_study(location, str(error)) from error


@contextmanager
def opened(location: StudyLocation, *, reading: bool = False) -> Iterator[BaseStorage]:
    """Open the storage of a location for a moment; `RunFolderError` when it cannot be used, or read if that is all."""
    with storage_errors(location):
        storage = open_storage(location, reading=reading)
        try:
            yield storage
        finally:
            close_storage(storage)


def open_study(
    location: StudyLocation, study_spec: StudySpec, finished: Callable[[TrialResult], FrozenTrial]
) -> tuple[BaseStorage, optuna.Study]:
    """Open or create the study of a `StudySpec`; `RunFolderError` when it cannot be used or answers another question.

    Other limits are another study, called `rung-0.2` and so on. It begins with what those before it measured, as
    `finished` trials that take no slot: nothing is scored twice.
    """
    with storage_errors(location):
        storage, earlier, number = open_storage(location), list[FrozenTrial](), 1
        while True:
            name = study_name(location, study_spec.study_name) + (f".{number}" if number > 1 else "")
            study = optuna.create_study(
                study_name=name, storage=storage, directions=["minimize", "minimize"], load_if_exists=True
            )
            theirs = study.user_attrs.get(SPEC_KEY)
            if theirs is None:
                _begin(study, earlier, finished)
                study.set_user_attr(SPEC_KEY, study_spec.to_json())
            if theirs is None or not _changed_limits(theirs, study_spec, location):
                return storage, study
            earlier += study.get_trials(deepcopy=False)
            number += 1


def _begin(study: optuna.Study, earlier: Sequence[FrozenTrial], finished: Callable[[TrialResult], FrozenTrial]) -> None:
    begun = [trial.user_attrs.get("digest") for trial in study.get_trials(deepcopy=False)]  # and then cut off
    results = [TrialResult.from_json(trial.user_attrs["result"]) for trial in earlier if "result" in trial.user_attrs]
    by_digest = {result.policy.digest(): result for result in results if result.measurement is not None}
    new = [result for digest, result in by_digest.items() if digest not in begun]
    for number, result in enumerate(new, start=len(begun)):
        study.add_trial(finished(replace(result, number=number)))


def check_storage(location: StudyLocation, *, made: bool, begun: bool) -> None:
    """`RunFolderError` when a location cannot be used, before a search spends anything.

    A run that `made` its file needs it, and what it has `begun` to write to it: all would be searched again without.
    """
    file = file_of(location)
    if file is not None and (made if not file.exists() else begun and is_empty(location)):
        raise RunFolderError(
            f"{file}, which holds the studies of this run, is gone or empty. Restore it, or begin a run of its own "
            "with another --run-dir"
        )
    if not isinstance(location, Path):
        with opened(location):
            pass


@contextmanager
def sole_controller(location: StudyLocation) -> Iterator[None]:
    """Hold the studies of a run for one controller, on any host; `RunFolderError` names the holder.

    Of PostgreSQL it is the session that holds them, and so the lock ends with its process. Of files, the lease on the
    run folder is enough.
    """
    if isinstance(location, Path) or location.scheme == "journal":
        yield
        return
    name = f"autoprune {socket.gethostname()} {os.getpid()}"
    connect = {"connect_timeout": _CONNECT_SECONDS, "application_name": name}
    engine = create_engine(location.expanded(), isolation_level="AUTOCOMMIT", connect_args=connect)
    key, session = int(digest_of(location.run_id, length=15), 16), None
    try:
        with storage_errors(location):
            session = engine.connect()
            held = session.scalar(text("select pg_try_advisory_lock(:key)"), {"key": key})
            who = None if held else session.execute(text(_HOLDER), {"key": key}).first()
        if not held:
            host = f"{who[0]} since {who[1]:%Y-%m-%d %H:%M:%S}" if who else "another controller"
            raise RunFolderError(
                f"run {location.run_id} in {location} is in use by {host}. Wait until it ends, or stop it."
            )
        yield
    finally:
        if session is not None:
            session.invalidate()  # ends it, and so the lock, also when the server is gone
            session.close()
        engine.dispose()


_HOLDER = """
select a.application_name, a.backend_start from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and (l.classid::bigint << 32) + l.objid::bigint = :key
"""


def _changed_limits(theirs: Mapping[str, Any], study_spec: StudySpec, location: StudyLocation) -> bool:
    """Whether a study answers the same question within other limits; `RunFolderError` when it is another one."""
    ours = study_spec.to_json()
    changed = {key: f"{key} was {theirs.get(key)} and is {ours[key]}" for key in ours if theirs.get(key) != ours[key]}
    if changed.keys() - {"limits"}:
        reasons = ", ".join(changed.values())
        raise RunFolderError(
            f"{study_spec.study_name} in {location} answers another question: {reasons}. Use a new folder."
        )
    return bool(changed)


def _root_cause(error: BaseException) -> str:
    """First line of the error that began it: Optuna and SQLAlchemy wrap what SQLite says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
