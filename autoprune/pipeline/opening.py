"""Opening a run: its configuration, its folder held for one controller, and its task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.config import OBJECT_TASK, RunConfig, load_config
from autoprune.errors import UsageError, unknown_name
from autoprune.memory import require_memory
from autoprune.pipeline.configuration import check_cluster, check_names, resolve, with_absolute_paths
from autoprune.pipeline.run import open_task
from autoprune.pipeline.studies import study_location
from autoprune.pipeline.warm_start import other_run
from autoprune.runfolder import RunFolder
from autoprune.study.location import StudyLocation
from autoprune.study.storage import check_storage, sole_controller
from autoprune.task.base import Task
from autoprune.temporary import remove_leftovers

_ARGUMENTS = ("config_file", "events", "fresh", "measurer", "on_trial", "run_dir")
"""Arguments of `search` that are no options of a configuration."""


@dataclass(frozen=True, kw_only=True)
class OpenedRun:
    """A run that begins or goes on; `own_task` is the task when it was given as an object."""

    config: RunConfig
    folder: RunFolder
    location: StudyLocation
    task: Task
    own_task: Task | None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder and its studies for this controller; `RunFolderError` names another one that does."""
        with self.folder.locked(), sole_controller(self.location):
            yield

    @contextmanager
    def kept_config(self) -> Iterator[None]:
        """Store the configuration; budgets for which the stages before the search fail are not kept."""
        before = self.folder.read_config()
        self.folder.write_config(self.config.model_dump(mode="json"))
        try:
            yield
        except BaseException:
            if before and "budgets" in before:
                self.folder.write_config(self.config.model_dump(mode="json") | {"budgets": before["budgets"]})
            raise


@contextmanager
def opened_run(
    task: Task | str | None,
    run_dir: str | Path,
    config_file: str | Path | None,
    *,
    fresh: bool,
    options: Mapping[str, Any],
) -> Iterator[OpenedRun]:
    """Open or begin the run of a folder, and hold it for this controller; the arguments are those of `search`.

    Raises:
        AutopruneError: with one clear message, for anything that cannot work.
    """
    for name in options:
        if name not in RunConfig.model_fields:
            raise unknown_name("option", name, [*RunConfig.model_fields, *_ARGUMENTS])
    own = task if isinstance(task, Task) else None
    named = {"task": OBJECT_TASK, "executor": "inline"} if own else {"task": task} if task else {}
    folder = RunFolder(Path(run_dir))
    config = resolve(
        folder, Path(config_file) if config_file else None, with_absolute_paths({**options, **named}), fresh=fresh
    )
    if config.task == OBJECT_TASK and own is None:
        raise UsageError("this run was started with a Task object: pass it again as `task`")
    check_names(config)
    named = bool(options.get("storage")) or bool(config_file and load_config(Path(config_file), {}).storage)
    location = study_location(config, folder, named=named)
    check_storage(location, made=folder.has_study, begun=folder.has_results)
    check_cluster(config)
    require_memory(config.slots if config.executor == "process" else 0)
    other_run(config, folder)
    ready = own or open_task(config)
    folder.create()
    remove_leftovers()
    run = OpenedRun(config=config, folder=folder, location=location, task=ready, own_task=own)
    with run.held():
        yield run
