"""Starting a run with what another one has: its latency table, dense weights and scores, each where its digests fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.config import RunConfig, load_config
from autoprune.device.target import Target
from autoprune.errors import ConfigError, LatencyError, RunFolderError, TaskError, UsageError
from autoprune.latency.table import LatencyTable
from autoprune.manifest import Manifest
from autoprune.pipeline.events import Events
from autoprune.pipeline.spaces import SpaceFile
from autoprune.pipeline.studies import study_location
from autoprune.pipeline.tables import require_fitting
from autoprune.records import SearchSpace
from autoprune.runfolder import RunFolder, read_json
from autoprune.search.effort import Effort
from autoprune.structure import Structure
from autoprune.study.copying import copy_studies
from autoprune.study.location import StudyLocation
from autoprune.study.reading import StoredStudy, stored_studies
from autoprune.study.spec import SPEC_KEY
from autoprune.task.base import Task
from autoprune.training.dense import load_dense

_VERSIONS = ("autoprune", "torch")
"""Packages whose version decides about scores."""


def other_run(config: RunConfig, folder: RunFolder) -> RunFolder | None:
    """Return the run to start with; `None` without one, and for a search that has begun already.

    Raises:
        RunFolderError: for a folder that holds no run.
        UsageError: for the run's own folder.
    """
    if config.warm_start is None or folder.has_study:
        return None
    other = RunFolder(Path(config.warm_start))
    if other.path.resolve() == folder.path.resolve():
        raise UsageError(f"{other.path} is the run itself: leave out --warm-start, and the same command resumes it")
    if other.read_config() is None:
        raise RunFolderError(
            f"{other.path} is no run folder: it has no run.yaml. --warm-start takes the folder of another run"
        )
    return other


def take_files(
    config: RunConfig,
    folder: RunFolder,
    task: Task,
    structure: Structure,
    space_file: SpaceFile,
    target: Target,
    events: Events,
) -> None:
    """Copy the latency table and the dense weights of the other run where they fit, and note what is used.

    Args:
        config: of this run.
        folder: of this run, claimed for the task.
        task: of this run.
        structure: of its model.
        space_file: its search space.
        target: that latencies are measured on.
        events: receives one line for each part.
    """
    other = other_run(config, folder)
    if other is None:
        return
    if config.needs_latency and not folder.table.exists():
        reason = _take_table(config, folder, other, structure, space_file, target)
        _note(events, "latency table", other, "it is not measured again", reason)
    if not folder.dense.exists():
        reason = _take_weights(config, folder, other, task)
        _note(events, "dense model", other, "it is not trained again", reason)


def _note(events: Events, part: str, other: RunFolder, saved: str, reason: str | None) -> None:
    events.note(f"the {part} of {other.path} " + (f"fits: {saved}" if reason is None else f"does not fit: {reason}"))


def _take_table(
    config: RunConfig,
    folder: RunFolder,
    other: RunFolder,
    structure: Structure,
    space_file: SpaceFile,
    target: Target,
) -> str | None:
    """Copy the table; return why it is not used."""
    if config.table:
        return "--table names another one"
    if not other.table.exists():
        return "there is none yet"
    try:
        Manifest(other).require(other.table)
        table = LatencyTable.load(other.table)
        require_fitting(table, config, structure, target)
        space_file.of_table(table)
    except (ConfigError, LatencyError, RunFolderError) as error:
        return str(error)
    Manifest(folder).write(folder.table, table.content())
    return None


def _take_weights(config: RunConfig, folder: RunFolder, other: RunFolder, task: Task) -> str | None:
    """Copy the dense weights, and the order of channels and the recipe that follow from them; return why not."""
    if config.dense:
        return "--dense names another one"
    if not other.dense.exists():
        return "there is none yet"
    if _task(other) != _task(folder):
        return "it is of another task, whose data, metric or model differ"
    try:
        Manifest(other).require(other.dense, other.order, other.recipe)
        load_dense(task, other.dense)
    except (RunFolderError, TaskError) as error:
        return str(error)
    settings = {"scores": config.scores, "reconstruct": config.reconstruct, "seed": config.seed}
    ours, copied = Manifest(folder), list[tuple[str, list[Path]]]([("dense", [])])
    if other.order.exists() and settings.items() <= read_json(other.order).items():
        copied += [("order", [folder.dense])]
        if other.recipe.exists():
            copied += [("recipe", [folder.dense, folder.order])]
    for name, sources in copied:
        ours.write(getattr(folder, name), getattr(other, name).read_bytes(), sources)
    return None


def take_scores(
    config: RunConfig, folder: RunFolder, location: StudyLocation, space: SearchSpace, effort: Effort, events: Events
) -> None:
    """Copy the finished trials of the other run that this search would score the same, and note how many they are.

    Fully fine-tuned models are not among them: they are fine-tuned for the budgets of this run.

    Args:
        config: of this run.
        folder: of this run, with its dense weights and the order of its channels.
        location: of its studies.
        space: that is searched.
        effort: of the search.
        events: receives one line.
    """
    other = other_run(config, folder)
    if other is None:
        return
    theirs = load_config(None, other.read_config() or {})
    source = study_location(theirs, other)
    studies = stored_studies(source) if other.has_study else []
    reason = _other_scores(config, folder, other, theirs) or ("" if studies else "none was scored yet")
    fitting = [study for study in studies if _answers(study, config, space, effort)]
    if not reason and not fitting:
        reason = "another search space or effort"
    if reason:
        events.note(f"scores of {other.path} do not fit: {reason}")
        return
    copy_studies(source, location, {study.name for study in fitting})
    results = [trial.attributes.get("result") for study in fitting for trial in study.trials]
    count = len({str(result["policy"]) for result in results if result and result["measurement"]})
    events.note(f"scores of {other.path} fit: {count:,} policies are not scored again")


def _other_scores(config: RunConfig, folder: RunFolder, other: RunFolder, theirs: RunConfig) -> str:
    """Return why another run scores policies otherwise; "" when it does not."""
    if _task(other) != _task(folder):
        return "another task"
    if theirs.seed != config.seed:
        return f"seed was {theirs.seed} and is {config.seed}"
    for path, what in (("dense", "other dense weights"), ("order", "channels are ranked otherwise")):
        if _bytes(getattr(folder, path)) != _bytes(getattr(other, path)):
            return what
    if _bytes(folder.recipe) != _bytes(other.recipe):
        return "another recipe for fine-tunings"
    ours_of, theirs_of = (read_json(run.environment).get("versions", {}) for run in (folder, other))
    changed = [name for name in _VERSIONS if theirs_of.get(name) != ours_of.get(name)]
    return ", ".join(f"{name} was {theirs_of.get(name)} and is {ours_of.get(name)}" for name in changed)


def _answers(study: StoredStudy, config: RunConfig, space: SearchSpace, effort: Effort) -> bool:
    """Return whether a study scored policies of the same space as one of the rungs of this search does."""
    spec: Mapping[str, Any] = study.attributes.get(SPEC_KEY, {})
    known = [rung.to_json() for rung in effort.rungs]
    return spec.get("space") == space.id and spec.get("run_seed") == config.seed and spec.get("fidelity") in known


def _task(run: RunFolder) -> str | None:
    return read_json(run.environment).get("task") if run.environment.exists() else None


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
