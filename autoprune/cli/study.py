"""`autoprune status`, `autoprune dashboard` and `autoprune study`: looking at the studies of a run, and moving them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.options import RunDir, out, say
from autoprune.errors import UsageError

if TYPE_CHECKING:
    from autoprune.runfolder import RunFolder

_WATCH_SECONDS = 5.0
_FAILURES_SHOWN = 5
_SHOWN = {"running": "running or queued"}
_TO_HELP = "postgresql+psycopg://USER:$PASSWORD@HOST/DATABASE, journal:PATH, or sqlite, the run's own file."

study_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Move the studies of a run.")


def status(
    run_dir: RunDir,
    watch: Annotated[bool, typer.Option("--watch", help="Every five seconds, until the run has a front.")] = False,
) -> None:
    """Show how far a run is: who works on it, its trials, the best of each budget, what failed."""
    from autoprune.runfolder import RunFolder

    folder = RunFolder(run_dir)
    while True:
        if watch:
            out.clear()
        for line in status_lines(run_dir):
            say(line)
        if not watch or finished(folder):
            return
        time.sleep(_WATCH_SECONDS)


def finished(folder: RunFolder) -> bool:
    """Return whether a run has a front for the budgets that it has now, which may have been others before."""
    from autoprune.pipeline.run import Run
    from autoprune.runfolder import read_json

    budgets = list(Run(folder).config.budgets)
    return folder.front.exists() and read_json(folder.front).get("budgets", budgets) == budgets


def status_lines(run_dir: Path) -> Iterator[str]:
    """Yield the lines that `status` prints; `RunFolderError` when there is no run."""
    from autoprune.lease import holder, is_gone
    from autoprune.pipeline.run import Run
    from autoprune.pipeline.studies import study_location
    from autoprune.runfolder import RunFolder
    from autoprune.study.status import study_states

    folder = RunFolder(run_dir)
    place = study_location(Run(folder).config, folder)
    who = holder(folder.lease)
    workers = _workers(folder)
    stage = "finished" if finished(folder) else "searching" if folder.has_study else "preparing"
    nobody = "nobody works on it" + (f": {who} has ended without its clean-up" if who else "")
    yield f"{folder.path}: {stage}; " + (nobody if who is None or is_gone(who) else f"worked on by {who}{workers}")
    if who is not None and not is_gone(who):
        yield from _time_left(folder)
    states = study_states(place) if folder.has_study else []
    for state in states:
        counts = [f"{count} {_SHOWN.get(name, name)}" for name, count in state.counts.items()]
        counts += [f"{state.earlier} of them from earlier budgets"] if state.earlier else []
        counts += [f"{state.lost} attempts lost"] if state.lost else []
        yield f"{state.name}: {', '.join(counts) or 'no trials'}"
        for limit, score in state.best.items():
            yield f"    best within {limit}: {score:.4f}"
        if state.open and state.per_minute is not None:
            yield f"    {state.per_minute:.1f} trials a minute over the last {state.recent}"
    failures = [f"{state.name}, {text}" for state in states for text in state.failures]
    for text in failures[-_FAILURES_SHOWN:]:
        yield f"failed: {text}"


def _time_left(folder: RunFolder) -> Iterator[str]:
    """Yield what the search noted last about the time that it needs; nothing where it did not."""
    from autoprune.errors import RunFolderError
    from autoprune.report.durations import duration_text
    from autoprune.runfolder import read_json

    with suppress(RunFolderError, KeyError, TypeError, ValueError):
        noted = read_json(folder.progress)
        age = (datetime.now(UTC) - datetime.fromisoformat(noted["updated"])).total_seconds()
        left = max(noted["seconds_left"] - age, 0.0)
        yield (
            f"{noted['stage']}: about {duration_text(left)} left in all ({noted['basis']}, "
            f"{duration_text(age)} ago); {duration_text(noted['seconds_spent'] + age)} so far"
        )


def _workers(folder: RunFolder) -> str:
    """Describe the workers of the controller; empty before the run has noted them."""
    from autoprune.errors import RunFolderError
    from autoprune.runfolder import read_json

    with suppress(RunFolderError, KeyError, TypeError):
        workers = read_json(folder.environment)["workers"]
        return f", {workers['slots']} worker(s), {workers['executor']}"
    return ""


def dashboard(
    run_dir: RunDir, port: Annotated[int, typer.Option("--port", help="Port on the loopback address.")] = 8080
) -> None:
    """Open optuna-dashboard on a copy of the studies of a run."""
    try:
        from optuna_dashboard import run_server  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("the dashboard is an extra: pip install 'autoprune[dashboard]'") from None
    from autoprune.pipeline.studies import studies_of
    from autoprune.study.copying import copy_studies

    with TemporaryDirectory(prefix="autoprune-dashboard-") as folder:
        copy = Path(folder) / "study.db"
        copy_studies(studies_of(run_dir), copy)
        out.print(
            "This is a copy as of now: changes are lost. The dashboard knows no constraints of this Optuna: policies "
            "beyond the budget are drawn like any other; they are in the state PRUNED or have a constraint above 0."
        )
        run_server(f"sqlite:///{copy}", host="127.0.0.1", port=port)


@study_app.callback()
def study() -> None:
    """Move the studies of a run."""


@study_app.command()
def copy(
    run_dir: RunDir,
    to: Annotated[str, typer.Option("--to", help=_TO_HELP)],
) -> None:
    """Copy the studies of a run to another storage, which the run then goes on with."""
    from autoprune.pipeline.studies import move_studies

    names = move_studies(run_dir, to)
    say(f"{run_dir} goes on with {to}, which has its {len(names)} studies: {', '.join(names)}")
