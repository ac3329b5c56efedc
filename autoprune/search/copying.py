"""Copying the studies of a run from one place to another."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.storages import BaseStorage

from autoprune.search.places import Place, study_name
from autoprune.search.storage import opened


def copy_studies(source: Place, target: Place) -> list[str]:
    """Copy every study of a run to another place; returns their names. It goes on where one before was cut off.

    Raises `RunFolderError` when a study of that name is there that holds more than the beginning of ours.
    """
    with opened(source, reading=True) as origin, opened(target) as into:
        studies = sorted(origin.get_all_studies(), key=lambda study: study._study_id)  # as they were begun
        prefix = study_name(source, "")
        plain = [s.study_name.removeprefix(prefix) for s in studies if s.study_name.startswith(prefix)]
        for name in plain:
            ours, theirs = _trials(origin, prefix + name), _trials(into, study_name(target, name))
            if theirs is not None and theirs == ours:
                continue
            if theirs is not None and ours is not None and _is_beginning(theirs, ours):
                into.delete_study(into.get_study_id_from_name(study_name(target, name)))
            optuna.copy_study(
                from_study_name=prefix + name,
                from_storage=origin,
                to_storage=into,
                to_study_name=study_name(target, name),
            )
    return plain


def _trials(storage: BaseStorage, name: str) -> list[tuple[str | None, bool]] | None:
    """The digest of each trial of a study and whether it is finished; `None` when there is no such study."""
    if name not in {study.study_name for study in storage.get_all_studies()}:
        return None
    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    return [(trial.user_attrs.get("digest"), trial.state.is_finished()) for trial in trials]


def _is_beginning(theirs: Sequence[tuple[str | None, bool]], ours: Sequence[tuple[str | None, bool]]) -> bool:
    """Whether nothing is in their trials that is not in ours."""
    same = all(a == b and done <= also for (a, done), (b, also) in zip(theirs, ours, strict=False))
    return len(theirs) <= len(ours) and same
