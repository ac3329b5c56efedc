"""`autoprune status`, `autoprune dashboard` and `autoprune study`: looking at the studies of a run, and moving them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.options import RunDir, out, say
from autoprune.cli.tables import JsonOption, show_json
from autoprune.errors import UsageError
from autoprune.temporary import TemporaryFolder

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
    as_json: JsonOption = False,
) -> None:
    """Show how far a run is: who works on it, its trials, the best of each budget, what failed."""
    from autoprune.runfolder import RunFolder

    if watch and as_json:
        raise UsageError("--json is one document, and --watch goes on; leave out one or the other")
    if as_json:
        show_json(status_document(run_dir))
        return
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
    from autoprune.run_documents import read_front

    budgets = list(Run(folder).config.budgets)
    return folder.front.exists() and read_front(folder).get("budgets", budgets) == budgets


def status_document(run_dir: Path) -> dict[str, Any]:
    """Return what `status` shows, as a JSON value; `RunFolderError` when there is no run."""
    from autoprune.lease import holder, is_gone
    from autoprune.pipeline.run import Run
    from autoprune.pipeline.studies import study_location
    from autoprune.runfolder import RunFolder
    from autoprune.study.status import study_states

    folder = RunFolder(run_dir)
    place = study_location(Run(folder).config, folder)
    who = holder(folder.lease)
    states = study_states(place) if folder.has_study else []
    return {
        "run_dir": str(folder.path),
        "state": "finished" if finished(folder) else "searching" if folder.has_study else "preparing",
        "holder": None if who is None else str(who),
        "holder_is_gone": who is not None and is_gone(who),
        "workers": _workers(folder),
        "time": _time_left(folder),
        "studies": [
            {
                "name": state.name,
                "trials": dict(state.counts),
                "trials_of_earlier_budgets": state.earlier,
                "lost_attempts": state.lost,
                "best_score_by_limit": dict(state.best),
                "trials_per_minute": state.per_minute,
                "recent_trials": state.recent,
            }
            for state in states
        ],
        "failures": [f"{state.name}, {text}" for state in states for text in state.failures],
    }


def status_lines(run_dir: Path) -> Iterator[str]:
    """Yield the lines that `status` prints; `RunFolderError` when there is no run."""
    known = status_document(run_dir)
    who, gone = known["holder"], known["holder_is_gone"]
    workers = known["workers"]
    of_workers = f", {workers['slots']} worker(s), {workers['executor']}" if workers else ""
    nobody = "nobody works on it" + (f": {who} has ended without its clean-up" if who else "")
    yield f"{known['run_dir']}: {known['state']}; " + (
        nobody if who is None or gone else f"worked on by {who}{of_workers}"
    )
    if who is not None and not gone and known["time"] is not None:
        yield _time_line(known["time"])
    for study in known["studies"]:
        yield from _study_lines(study)
    for text in known["failures"][-_FAILURES_SHOWN:]:
        yield f"failed: {text}"


def _study_lines(study: dict[str, Any]) -> Iterator[str]:
    earlier, lost = study["trials_of_earlier_budgets"], study["lost_attempts"]
    counts = [f"{count} {_SHOWN.get(name, name)}" for name, count in study["trials"].items()]
    counts += [f"{earlier} of them from earlier budgets"] if earlier else []
    counts += [f"{lost} attempts lost"] if lost else []
    yield f"{study['name']}: {', '.join(counts) or 'no trials'}"
    for limit, score in study["best_score_by_limit"].items():
        yield f"    best within {limit}: {score:.4f}"
    if study["trials"].get("running") and study["trials_per_minute"] is not None:
        yield f"    {study['trials_per_minute']:.1f} trials a minute over the last {study['recent_trials']}"


def _time_left(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the search noted last about the time that it needs, and how long ago; `None` where it did not."""
    from autoprune.errors import RunFolderError
    from autoprune.runfolder import read_json

    with suppress(RunFolderError, KeyError, TypeError, ValueError):
        noted = read_json(folder.progress, "seconds_left", "seconds_spent", "basis", "stage")
        age_s = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(noted["updated"])).total_seconds())
        return {key: value for key, value in noted.items() if key != "schema"} | {"age_seconds": round(age_s, 1)}
    return None


def _time_line(noted: dict[str, Any]) -> str:
    from autoprune.report.durations import duration_text

    age_s = noted["age_seconds"]
    return (
        f"{noted['stage']}: about {duration_text(noted['seconds_left'] - age_s)} left in all ({noted['basis']}, "
        f"{duration_text(age_s)} ago); {duration_text(noted['seconds_spent'] + age_s)} so far"
    )


def _workers(folder: RunFolder) -> dict[str, Any] | None:
    """Return the workers of the controller; `None` before the run has noted them."""
    from autoprune.errors import RunFolderError
    from autoprune.runfolder import read_json

    with suppress(RunFolderError, KeyError, TypeError):
        workers = read_json(folder.environment)["workers"]
        return {"slots": workers["slots"], "executor": workers["executor"]}
    return None


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

    with TemporaryFolder("dashboard") as folder:
        copy = folder / "study.db"
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
    as_json: JsonOption = False,
) -> None:
    """Copy the studies of a run to another storage, which the run then goes on with."""
    from autoprune.pipeline.studies import move_studies

    names = move_studies(run_dir, to)
    if as_json:
        show_json({"run_dir": str(run_dir), "storage": to, "studies": list(names)})
        return
    say(f"{run_dir} goes on with {to}, which has its {len(names)} studies: {', '.join(names)}")
