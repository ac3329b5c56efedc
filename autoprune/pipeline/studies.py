"""Where the studies of a run are kept, and moving them."""

from __future__ import annotations

from pathlib import Path

from autoprune.config import RunConfig
from autoprune.errors import RunFolderError, UsageError
from autoprune.pipeline.run import Run
from autoprune.runfolder import RunFolder
from autoprune.study.allowed import remember, require_allowed
from autoprune.study.location import OWN_FILE, SharedStorage, StudyLocation, absolute


def study_location(config: RunConfig, folder: RunFolder, *, named: bool = False) -> StudyLocation:
    """Return where the studies of a run are kept: in its folder, unless its configuration names a storage.

    Args:
        config: of the run.
        folder: of the run.
        named: whether the user names the storage now, and does not only own a folder that does.

    Raises:
        RunFolderError: for a server that the user never named.
    """
    if not config.storage:
        return folder.study
    storage = SharedStorage(config.storage, config.run_id)
    if named:
        remember(storage)
    else:
        require_allowed(storage)
    return storage


def studies_of(run_dir: Path) -> StudyLocation:
    """Return where the studies of a run are kept; `RunFolderError` when it has none."""
    run = Run(RunFolder(run_dir))
    if not run.folder.has_study:
        raise RunFolderError(f"the search of {run_dir} has not begun: there are no studies yet")
    return study_location(run.config, run.folder)


def move_studies(run_dir: Path, url: str) -> list[str]:
    """Copy the studies of a run to another storage, with which the run goes on; the old ones stay where they are.

    Args:
        run_dir: folder of the run.
        url: a storage, or `sqlite` for the run's own file.

    Returns:
        Names of the studies.

    Raises:
        RunFolderError: when the storage has a study of that name that holds more.
        UsageError: when the studies are there already.
    """
    from autoprune.study.copying import copy_studies  # Optuna takes a second to import
    from autoprune.study.storage import sole_controller

    run, source = Run(RunFolder(run_dir)), studies_of(run_dir)
    shared = None if url == OWN_FILE else absolute(url)
    target = SharedStorage(shared, run.config.run_id) if shared else run.folder.study
    if isinstance(target, SharedStorage):
        remember(target)
    if source == target:
        raise UsageError(f"the studies of {run_dir} are in {target} already")
    with run.folder.locked(), sole_controller(source), sole_controller(target):
        names = copy_studies(source, target)
        if shared:
            run.folder.write_shared_study(shared, run.config.run_id)
        run.folder.write_config(run.config.model_copy(update={"storage": shared}).model_dump(mode="json"))
        if not shared:
            run.folder.shared_study.unlink(missing_ok=True)
    return names
