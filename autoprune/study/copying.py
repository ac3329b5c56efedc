"""Copying the studies of a run from one location to another."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage

from autoprune.study.location import StudyLocation, study_name
from autoprune.study.optuna_private import study_id
from autoprune.study.storage import opened


def copy_studies(source: StudyLocation, target: StudyLocation, only: Container[str] | None = None) -> list[str]:
    """Copy the studies of a run to another location; returns their names. It goes on where one before was cut off.

    Args:
        source: where they are.
        target: where they go.
        only: names of those that are copied (default: all).

    Raises:
        RunFolderError: when a study of that name is there that holds more than the beginning of ours.
    """
    with opened(source, reading=True) as origin, opened(target) as into:
        studies = sorted(origin.get_all_studies(), key=study_id)  # as they were begun
        prefix = study_name(source, "")
        plain = [s.study_name.removeprefix(prefix) for s in studies if s.study_name.startswith(prefix)]
        plain = [name for name in plain if only is None or name in only]
        for name in plain:
            name_there = study_name(target, name)
            ours, theirs = _trials(origin, prefix + name), _trials(into, name_there)
            if theirs is not None and theirs == ours and _notes(origin, prefix + name) == _notes(into, name_there):
                continue
            if theirs is not None and ours is not None and _is_beginning(theirs, ours):
                into.delete_study(into.get_study_id_from_name(name_there))
            optuna.copy_study(
                from_study_name=prefix + name,
                from_storage=origin,
                to_storage=into,
                to_study_name=name_there,
            )
    return plain


_Step = tuple[str | None, bool, bool, int]
"""Progress of one trial: digest, whether it is finished, whether it has a result, how many attempts ended."""


def _trials(storage: BaseStorage, name: str) -> list[_Step] | None:
    """How far each trial of a study is; `None` when there is no such study."""
    if name not in {study.study_name for study in storage.get_all_studies()}:
        return None
    progress = []
    for trial in storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False):
        notes = trial.user_attrs
        attempts = len(notes.get("attempts", ()))
        progress.append((notes.get("digest"), trial.state.is_finished(), "result" in notes, attempts))
    return progress


def _notes(storage: BaseStorage, name: str) -> dict[str, Any]:
    return storage.get_study_user_attrs(storage.get_study_id_from_name(name))


def _is_beginning(theirs: Sequence[_Step], ours: Sequence[_Step]) -> bool:
    """Whether nothing is in their trials that is not in ours."""
    pairs = zip(theirs, ours, strict=False)
    same = all(a == b and all(x <= y for x, y in zip(then, now, strict=True)) for (a, *then), (b, *now) in pairs)
    return len(theirs) <= len(ours) and same
