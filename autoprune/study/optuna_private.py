"""Every use of a name that Optuna keeps private; no other file has one.

`PRIVATE_NAMES` lists these names with the reason that each is needed. A test looks up every name, so a version of
Optuna without one fails there by name instead of somewhere in a search.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Mapping
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

PRIVATE_NAMES: Mapping[str, str] = {
    "Study._study_id": "storages know a study by its id alone",
    "FrozenStudy._study_id": "ids give the order in which the studies of a storage were begun",
    "FrozenTrial._trial_id": "storages know a trial by its id alone",
    "Trial._trial_id": "storages know a trial by its id alone",
    "Study._storage": "what a sampler notes about a study or a trial is read and written through the storage alone",
    "Study._get_trials": "the method by which TPE reads a study: it is shown fewer trials",
    "RDBStorage._get_prepared_new_trial": "writes a new trial; overridden to write all its rows in three statements",
    "RDBStorage.engine": "the number of a trial is read by one statement, and connections are closed",
    "RDBStorage.remove_session": "the session of a thread is closed",
    "models.TrialModel": "table of trials",
    "models.TrialParamModel": "table of parameters",
    "models.TrialUserAttributeModel": "table of a trial's own attributes",
    "models.TrialSystemAttributeModel": "table of the attributes that samplers write",
}
"""By name: why it is needed."""

FIXED_PARAMETERS = "fixed_params"
"""System attribute of a trial whose parameters were enqueued."""

_GENERATION = ":generation"
"""End of the names of the system attributes in which a genetic sampler keeps its populations."""

_CONSTRAINT = "constraints:"
"""Beginning of the names of the system attributes in which Optuna keeps constraints."""


def study_id(study: Any) -> int:
    """Id of a study, or of one that a storage lists, in its storage; a study that was begun later has a higher id."""
    return study._study_id


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """Id of a trial in its storage."""
    return trial._trial_id


def sampler_notes(study: optuna.Study) -> dict[str, Any]:
    """Copy of the attributes that samplers wrote to a study."""
    return dict(study._storage.get_study_system_attrs(study._study_id))


def write_sampler_notes(study: optuna.Study, notes: Mapping[str, Any]) -> None:
    """Write attributes to a study as if its sampler had."""
    for name, value in notes.items():
        study._storage.set_study_system_attr(study._study_id, name, value)


def generation_of(study: optuna.Study, trial: optuna.Trial) -> dict[str, Any]:
    """Attributes of a trial in which a genetic sampler keeps its generation; empty for other samplers."""
    attributes = study._storage.get_trial_system_attrs(trial._trial_id)
    return {name: value for name, value in attributes.items() if name.endswith(_GENERATION)}


def note_on_trial(study: optuna.Study, trial: FrozenTrial, system: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Write attributes of a running trial as its sampler: those of samplers, and those that people read."""
    for name, value in system.items():
        study._storage.set_trial_system_attr(trial._trial_id, name, value)
    for name, value in user.items():
        study._storage.set_trial_user_attr(trial._trial_id, name, value)


def constraint_attribute(name: str, value: float) -> dict[str, float]:
    """System attribute in which Optuna keeps the value of a constraint: above 0 the trial is infeasible."""
    return {f"{_CONSTRAINT}{name}": value}


class StudyView:
    """A study for one proposal of TPE, which reads `trials` in place of all trials; the rest is the study's own."""

    def __init__(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        self._study = study
        self._trials = trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def read_trials(study: optuna.Study, states: Container[TrialState]) -> list[FrozenTrial]:
    """Trials of a study in these states, not copied: copying takes longer than a proposal."""
    return study._get_trials(deepcopy=False, states=states)


class Database(RDBStorage):
    """Optuna's SQL storage, three times as fast at recording a new trial of thirty units.

    All rows of a new trial are written at once. Optuna looks every parameter up among all trials first, to see that its
    distribution did not change, and reads the trial before it writes an attribute. Here all trials of a study have the
    distributions of its `StudySpec`, which is compared when the study is opened. If a version of Optuna no longer calls
    `_get_prepared_new_trial`, it records trials in its own, slower way.
    """

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        bare = copy.copy(template_trial)
        if bare is not None:
            bare.params, bare.distributions, bare.user_attrs, bare.system_attrs = {}, {}, {}, {}
        trial = super()._get_prepared_new_trial(study_id, bare, session)
        if template_trial is not None:
            for model, rows in _rows(template_trial).items():
                if rows:
                    session.execute(insert(model), [{"trial_id": trial.trial_id, **row} for row in rows])
        return trial

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """Read the number alone: Optuna reads the whole trial, which is a quarter of the time of recording one."""
        number = select(models.TrialModel.number).where(models.TrialModel.trial_id == trial_id)
        with self.engine.connect() as connection:
            return connection.execute(number).scalar_one()


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a storage; one without connections is left alone."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _rows(trial: FrozenTrial) -> dict[type[Any], list[dict[str, Any]]]:
    """Rows of the parameters and attributes of a trial, by Optuna's table."""
    parameters = [
        {
            "param_name": name,
            "param_value": distribution.to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in trial.distributions.items()
    ]
    attributes = {
        models.TrialUserAttributeModel: trial.user_attrs,
        models.TrialSystemAttributeModel: trial.system_attrs,
    }
    return {models.TrialParamModel: parameters} | {
        model: [{"key": key, "value_json": json.dumps(value)} for key, value in given.items()]
        for model, given in attributes.items()
    }
