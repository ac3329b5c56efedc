"""`autoprune profile`: measure a latency table, check it later, look at it, or have a device measure it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.options import (
    BatchOption,
    DataOption,
    ForeignOption,
    ModelOption,
    NoiseOption,
    PrecisionOption,
    SeedOption,
    SpaceOption,
    TargetOption,
    TaskOption,
    ThreadsOption,
    given_options,
    say,
)  # fmt: skip
from autoprune.cli.progress import LogFileOption, QuietOption, shown_events
from autoprune.cli.tables import JsonOption, show_json, show_table
from autoprune.errors import UsageError
from autoprune.printable import printable

if TYPE_CHECKING:
    from autoprune.latency.efficient_widths import Staircase
    from autoprune.latency.table import LatencyTable

_MODEL = ("task", "model", "data_dir")
_MEASURING = ("target", "threads", "batch", "precision", "seed")
_SHOWING = ("quiet", "log_file", "as_json")
_READ_WITH = {
    "check": (*_MODEL, *_MEASURING, "allow_foreign_table", *_SHOWING),
    "destination": (*_MODEL, *_MEASURING, "space", "explain", "allow_noise", *_SHOWING),
    "explain": (*_MODEL, "table", *_SHOWING),
}
"""Options that each use of the command reads besides its own one; the first use that is given decides."""

profile_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@profile_app.callback()
def profile(
    context: typer.Context,
    destination: Annotated[Path | None, typer.Option("--out", help="Latency table to write.")] = None,
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    space: SpaceOption = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Measure some policies of this table again: does it still hold?")
    ] = None,
    table: Annotated[Path | None, typer.Option("--table", help="With --explain: a table that is there.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print and plot latency against width of every unit.")
    ] = False,
    allow_foreign_table: ForeignOption = False,
    allow_noise: NoiseOption = False,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a latency table for a model and a search space (--out), check it later, or look at it."""
    _refuse_ignored(context)
    if context.invoked_subcommand is not None:
        return
    from autoprune.pipeline import profiles

    given = given_options(
        task=task, model=model, data_dir=data_dir, space=space, target=target, threads=threads, batch=batch,
        precision=precision, seed=seed, allow_foreign_table=allow_foreign_table or None,
        allow_noise=allow_noise or None,
    )  # fmt: skip
    if check is not None:
        with shown_events(quiet, log_file, to_stderr=as_json) as events:
            result = profiles.check_profile(check, events, **given)
        if as_json:
            show_json({"holds": result.holds, **asdict(result)})
        elif quiet:
            say("the table still holds" if result.holds else "the table no longer holds")
        raise typer.Exit(0 if result.holds else 1)
    if destination is None and not (explain and table):
        raise UsageError("say where the table goes (--out TABLE.json), or look at one (--explain --table TABLE.json)")
    if destination is not None:
        with shown_events(quiet, log_file, to_stderr=as_json) as events:
            made = profiles.profile_table(destination, events, **given)
        if as_json and not explain:
            _show_table(destination, made)
    if explain:
        _explain(destination or table or Path(), given, as_json=as_json)


def _show_table(destination: Path, table: LatencyTable) -> None:
    show_json({"table": str(destination), "dense_ms": table.dense_ms, "held_out": vars(table.held_out)})


def _refuse_ignored(context: typer.Context) -> None:
    """Raise `UsageError` for options that nothing would read."""
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    sources = {name: context.get_parameter_source(name) for name in options}
    given = {name: options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    command = context.invoked_subcommand
    if command is not None and given:
        raise UsageError(
            f"{', '.join(given.values())} would be ignored before {command!r}; write the options of "
            f"`autoprune profile {command}` behind it"
        )
    way = next((name for name in _READ_WITH if name in given), None)
    ignored = [option for name, option in given.items() if way and name != way and name not in _READ_WITH[way]]
    if way and ignored:
        raise UsageError(f"{', '.join(ignored)} would be ignored beside {given[way]}; leave out one or the other")


def _explain(path: Path, given: dict[str, object], *, as_json: bool) -> None:
    from autoprune.pipeline import profiles
    from autoprune.report.staircases import staircase_table, write_staircases

    if path.suffix == ".html":
        raise UsageError(f"the page would be written over the table {path}; give the table another name, such as .json")
    table, stairs = profiles.explained(path, **given)
    if not as_json:
        show_table(staircase_table(stairs))
    page = write_staircases(stairs, table.target, path.with_suffix(".html"))
    if as_json:
        show_json({"page": str(page), "target": dict(table.target), "staircases": [_staircase(s) for s in stairs]})
        return
    say(str(page))


def _staircase(stair: Staircase) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(stair).items()}


@profile_app.command()
def kit(
    destination: Annotated[Path, typer.Option("--out", help="Zip file to write.")] = Path("kit.zip"),
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    space: SpaceOption = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    precision: PrecisionOption = None,
    seed: SeedOption = None,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a kit for a device that cannot run this package: models and one script (numpy, onnxruntime)."""
    from autoprune.pipeline import profiles

    given = given_options(
        task=task, model=model, data_dir=data_dir, space=space, target=target, threads=threads, batch=batch,
        precision=precision, seed=seed,
    )  # fmt: skip
    with shown_events(quiet, log_file, to_stderr=as_json) as events:
        profiles.write_kit(destination, events, **given)
    if as_json:
        show_json({"kit": str(destination)})


@profile_app.command("import")
def import_(
    results: Annotated[Path, typer.Argument(help="results.json that measure.py wrote on the device.")],
    kit_file: Annotated[Path, typer.Option("--kit", help="The kit that it measured.")] = Path("kit.zip"),
    destination: Annotated[Path, typer.Option("--out", help="Latency table to write.")] = Path("latency_table.json"),
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    space: SpaceOption = None,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the latency table of a device from what its kit measured there.

    The task that the kit was made for is built here; one that is not built in is named by --task, or asked about. A
    --space is named where it cuts the vocabulary of the model.
    """
    from autoprune.pipeline import profiles

    given = given_options(task=task, model=model, data_dir=data_dir, space=space)
    with shown_events(quiet, log_file, to_stderr=as_json) as events:
        made = profiles.import_results(results, kit_file, destination, events, allow=_agreed, **given)
    if as_json:
        _show_table(destination, made)


def _agreed(task: str) -> bool:
    """Ask whether the code of a task may run; nobody agrees where there is no terminal to ask on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(f"The kit names the task {printable(task)!r}. Run its code here?", default=False, err=True)
