"""`autoprune verify DIR`: every file of a run is proven, made again, or named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.config import OBJECT_TASK
from autoprune.errors import AutopruneError
from autoprune.manifest import Manifest, State
from autoprune.pipeline.events import Events
from autoprune.pipeline.measurer import Measurer
from autoprune.pipeline.run import Run
from autoprune.pipeline.studies import study_location
from autoprune.run_documents import read_front, read_metrics
from autoprune.runfolder import RunFolder
from autoprune.study.reading import stored_studies
from autoprune.task.base import Task


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """A file of a run, its state before the check, and whether it was made again."""

    name: str
    state: State
    redone: bool = False

    @property
    def is_proven(self) -> bool:
        """Whether the file now holds what the run wrote."""
        return self.redone or self.state is State.PROVEN


@dataclass(frozen=True, kw_only=True)
class FolderCheck:
    """Result of `check_folder`: all files by name, and those that cannot be used or made again."""

    files: tuple[CheckedFile, ...]
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every file is proven, and nothing else is wrong."""
        return not self.problems and all(file.is_proven for file in self.files)


def check_folder(
    run_dir: str | Path,
    events: Events,
    *,
    redo: bool = True,
    task: Task | None = None,
    measurer: Measurer | None = None,
) -> FolderCheck:
    """Prove every file of a run by its digest and its content, and make again those that can be.

    A finished run makes files again as a resumed search does: nothing that is proven is computed again. Without `redo`
    no code of the run's task is run, and nothing is written.

    Args:
        run_dir: folder of the run.
        events: receives progress.
        redo: make files again that are changed, gone or stale; only for a finished run.
        task: of a run that was started with a `Task` object.
        measurer: measures what is made again (default: the device that the run's target names).

    Raises:
        RunFolderError: when the folder holds no run.
    """
    run = Run(RunFolder(Path(run_dir)), task)
    config = run.config  # raises where there is no run
    before = Manifest(run.folder).states()
    wanting = [file for file in before if file.state is not State.PROVEN]
    named = {file.name: file.state for file in before}
    able = redo and named.get(run.folder.front.name) in (State.PROVEN, State.CHANGED, State.STALE, State.UNRECORDED)
    if not wanting or not able or (config.task == OBJECT_TASK and task is None):
        problems = _problems(run)
        return FolderCheck(files=tuple(CheckedFile(name=f.name, state=f.state) for f in before), problems=problems)
    problems = _made_again(run, task, events, measurer)
    after = {file.name: file.state for file in Manifest(run.folder).states()}
    files = [
        CheckedFile(name=name, state=state, redone=state is not State.PROVEN and after.get(name) is State.PROVEN)
        for name, state in {**after, **named}.items()
    ]
    return FolderCheck(files=tuple(sorted(files, key=lambda file: file.name)), problems=problems or _problems(run))


def _made_again(run: Run, task: Task | None, events: Events, measurer: Measurer | None) -> tuple[str, ...]:
    from autoprune.pipeline.main import search

    try:
        search(task, run_dir=run.folder.path, events=events, measurer=measurer)
    except AutopruneError as error:
        return (str(error),)
    return ()


def _problems(run: Run) -> tuple[str, ...]:
    """Return what is wrong with the content of files; each text names the file."""
    folder = run.folder
    try:
        if folder.has_study:
            stored_studies(study_location(run.config, folder))
        if folder.front.exists():
            document = read_front(folder)
            for entry in (*document["models"], *document["others"], *document["baselines"]):
                read_metrics(folder, entry["digest"])
    except AutopruneError as error:
        return (str(error),)
    return ()
