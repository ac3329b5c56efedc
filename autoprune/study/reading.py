"""Studies as they are stored, for a look from outside. A run's own SQLite file is read without Optuna.

Importing Optuna takes most of a second, and `autoprune status` prints a few lines. The four tables that are read here
are part of Optuna's file format; a test compares what this file reads with what Optuna reads.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from autoprune.files import parsed_json
from autoprune.study.attributes import decoding, require_spec, require_trial
from autoprune.study.location import StudyLocation, missing_file, readers_url, study_name, unusable_file
from autoprune.study.spec import SPEC_KEY

_BUSY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class StoredTrial:
    """A trial of a study: its number, whether it is running, when it ended (local time), and its own attributes."""

    number: int
    is_running: bool
    ended: datetime | None
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study without the run's prefix in its name, its own attributes, and its trials by number."""

    name: str
    attributes: Mapping[str, Any]
    trials: Sequence[StoredTrial]


def stored_studies(location: StudyLocation) -> list[StoredStudy]:
    """Read the studies of a run, in the order in which they were begun; nothing is written.

    Raises:
        RunFolderError: the file is gone or cannot be read, or the database cannot be reached.
    """
    with decoding(location):
        studies = _of_file(location) if isinstance(location, Path) else _by_optuna(location)
        for study in studies:
            if SPEC_KEY in study.attributes:
                require_spec(study.attributes[SPEC_KEY])
            for trial in study.trials:
                require_trial(trial.attributes)
    return studies


def _of_file(path: Path) -> list[StoredStudy]:
    if not path.exists():
        raise missing_file(path)
    try:
        with closing(sqlite3.connect(readers_url(path), uri=True, timeout=_BUSY_SECONDS)) as database:
            database.execute("BEGIN")  # one state of the file for all that is read
            studies = database.execute("SELECT study_id, study_name FROM studies ORDER BY study_id").fetchall()
            attributes = _attributes(database.execute("SELECT study_id, key, value_json FROM study_user_attributes"))
            of_trials = _attributes(database.execute("SELECT trial_id, key, value_json FROM trial_user_attributes"))
            trials: dict[int, list[StoredTrial]] = defaultdict(list)
            rows = database.execute(
                "SELECT study_id, trial_id, number, state, datetime_complete FROM trials ORDER BY number"
            )
            for study, trial, number, state, ended in rows:
                trials[study].append(
                    StoredTrial(
                        number=number,
                        is_running=state == "RUNNING",
                        ended=datetime.fromisoformat(ended) if ended else None,
                        attributes=of_trials.get(trial, {}),
                    )
                )
    except sqlite3.Error as error:
        raise unusable_file(path, str(error)) from error
    return [StoredStudy(name=name, attributes=attributes.get(i, {}), trials=trials[i]) for i, name in studies]


def _attributes(rows: Iterable[tuple[int, str, str]]) -> dict[int, dict[str, Any]]:
    """Decoded attributes by the id of their study or trial."""
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    for owner, key, value in rows:
        attributes[owner][key] = parsed_json(value)
    return attributes


def _by_optuna(location: StudyLocation) -> list[StoredStudy]:
    from optuna.trial import TrialState

    from autoprune.study.optuna_private import study_id
    from autoprune.study.storage import opened

    prefix = study_name(location, "")
    with opened(location, reading=True) as storage:
        studies = [s for s in storage.get_all_studies() if s.study_name.startswith(prefix)]
        return [
            StoredStudy(
                name=study.study_name.removeprefix(prefix),
                attributes=study.user_attrs,
                trials=[
                    StoredTrial(
                        number=trial.number,
                        is_running=trial.state == TrialState.RUNNING,
                        ended=trial.datetime_complete,
                        attributes=trial.user_attrs,
                    )
                    for trial in storage.get_all_trials(study_id(study), deepcopy=False)
                ],
            )
            for study in sorted(studies, key=study_id)
        ]
