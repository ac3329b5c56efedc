"""The command line: thin typer commands over the pipeline. Errors are one message and exit code 2."""

from __future__ import annotations

import errno
import itertools
import re
import shlex
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from rich.console import Console
from rich.text import Text

from autoprune.cli.listings import spaces, targets, tasks, units
from autoprune.cli.options import (
    BatchOption,
    DataOption,
    DenseOption,
    ForeignOption,
    ModelOption,
    NoiseOption,
    PrecisionOption,
    SeedOption,
    SpaceOption,
    TableOption,
    TargetOption,
    TaskOption,
    ThreadsOption,
    end_at_once,
    given_options,
    interruptible,
    minutes_of,
    say,
)  # fmt: skip
from autoprune.cli.profile import profile_app
from autoprune.cli.progress import LogFileOption, QuietOption, shown_events
from autoprune.cli.results import export, finetune, front, pick, report, serve, verify
from autoprune.cli.sparsify import sparsify
from autoprune.cli.study import dashboard, status, study_app
from autoprune.cli.tables import JsonOption
from autoprune.cli.task import check, init
from autoprune.errors import AutopruneError, UsageError
from autoprune.memory import require_address_space
from autoprune.printable import printable

EXIT_CODES = """Exit codes: 0 done; 1 a check says no (check: a stage fails; profile --check: the table no longer
holds; verify: a file is not what the run wrote); 2 refused, with one message: an option, a task, a budget or a file;
70 a fault of autoprune, with a traceback; 130 and 143 stopped by Ctrl-C or SIGTERM, what was finished is kept; 141
whoever read the output closed it."""
_FAULT, _CLOSED_OUTPUT = 70, 128 + 13

_FILE_FAULTS = (
    errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.EEXIST,
)  # fmt: skip
"""Errors of the system about a path that the user gave, or about a disk."""

_COMPUTING = ("check", "finetune", "profile", "search", "sparsify", "units")
"""Commands that always load PyTorch."""

_EMPTY = re.compile(r"--[a-z-]+=")


class _Commands(typer.core.TyperGroup):
    """The commands, which refuse options without a value: an empty path would mean the folder they run in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments before all others are read."""
        for before, given in itertools.pairwise(["", *args]):
            if given == "" or _EMPTY.fullmatch(given):
                name = given.rstrip("=") or (before if before.startswith("-") else "an argument")
                raise UsageError(f"{name} is empty: give it a value, or leave it out")
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    name="autoprune",
    epilog=EXIT_CODES,
    help="Search per-layer pruning policies that meet a latency on your device, and prove the result by measuring it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
BUDGET_HELP = (
    "50% of dense, 1.2ms, or a limit on another cost: params:50k, macs:10M, bytes:1MB (of weights), "
    "activation_bytes:100kB (peak of one example), each also in % of dense; join several by commas. Repeatable: "
    "budgets that limit latency are alternatives, one that does not is added to every one of those, and if none does, "
    "those that limit the same cost are alternatives. score:-1% (of the dense score) or score:0.92 asks for the "
    "fastest model that keeps it."
)


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""
    if ctx.invoked_subcommand in _COMPUTING and "--help" not in sys.argv:
        require_address_space()


app.command()(init)
app.command()(check)


@app.command()
def search(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="YAML file with any of the options.")] = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder of the run; resumed when it holds one.")] = Path(
        "runs/default"
    ),
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    dense: DenseOption = None,
    space: SpaceOption = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    precision: PrecisionOption = None,
    budget: Annotated[list[str] | None, typer.Option("--budget", help=BUDGET_HELP)] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="guided, or a yardstick: direct, random, uniform, global-magnitude, global-taylor, fastnas, halp, "
            "netadapt, amc.",
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="Of --strategy direct: tpe, nsga2, gp or random.")
    ] = None,
    effort: Annotated[str | None, typer.Option("--effort", help="small, medium or large.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="Policies at the cheapest fidelity.")] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time",
            help="What all calls of the run may take together, such as 90s, 30m or 1h30m: the search plans what it can "
            "do in that time.",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            "--scores",
            help="How the channels of a unit are ranked: obs, l2, taylor, fisher, hvp, wanda, random, ... (an unknown "
            "name lists all), or weighted ranks such as 0.5*l2+0.5*taylor.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", help="Zeros in full fine-tunes: one-shot (they stay where they are), set or rigl (exchanged)."
        ),
    ] = None,
    table: TableOption = None,
    measure_table: Annotated[
        bool, typer.Option("--measure-table", help="Measure a latency table though no budget limits the latency.")
    ] = False,
    allow_foreign_table: ForeignOption = False,
    allow_noise: NoiseOption = False,
    worker_threads: Annotated[
        int | None, typer.Option("--worker-threads", help="Torch threads of each worker.")
    ] = None,
    executor: Annotated[str | None, typer.Option("--executor", help="inline, process or ray.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Trials that run at the same time.")] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Ray cluster: auto or HOST:PORT; one is started if left out.")
    ] = None,
    resources: Annotated[
        str | None, typer.Option("--resources", help="What a trial takes of a Ray node: cpu=1,gpu=0.25.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="postgresql+psycopg://USER:$PASSWORD@HOST/DATABASE or journal:PATH."),
    ] = None,
    trial_timeout: Annotated[
        float | None, typer.Option("--trial-timeout", help="Seconds after which a trial is ended and tried again.")
    ] = None,
    seed: SeedOption = None,
    warm_start: Annotated[
        str | None, typer.Option("--warm-start", help="Folder of another run, whose results are used where they fit.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a folder that already holds a run.")] = False,
    quiet: QuietOption = False,
    log_file: LogFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search, fine-tune, export and verify; the same command resumes an interrupted run."""
    given = given_options(
        task=task, model=model, data_dir=data_dir, dense=dense, space=space, target=target, threads=threads,
        batch=batch, precision=precision, budgets=budget or None, strategy=strategy, sampler=sampler,
        effort=effort, trials=trials, scores=scores, schedule=schedule, table=table,
        allow_foreign_table=allow_foreign_table or None, executor=executor, workers=workers,
        worker_threads=worker_threads, seed=seed, ray_address=ray_address,
        resources=resources, trial_timeout=trial_timeout, storage=storage, warm_start=warm_start,
        measure_table=measure_table or None, allow_noise=allow_noise or None,
        max_minutes=minutes_of(max_time) if max_time is not None else None,
    )  # fmt: skip
    own_process = bool(ctx.obj)
    with interruptible(partial(_say_stopped, run_dir) if own_process else None) as received:
        try:
            with shown_events(quiet, log_file, to_stderr=as_json) as events:
                from autoprune.pipeline import search as run_search  # takes seconds

                run_search(run_dir=run_dir, config_file=config, fresh=fresh, events=events, **given)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, Exception) and not received:
                raise
            _say_stopped(run_dir, error)
            code = 128 + (received or [signal.SIGINT])[0]
            if own_process and received and "ray" in sys.modules:  # whose own processes another one ends
                end_at_once(code)
            raise typer.Exit(code) from None
    front(run_dir, as_json=as_json)


def _say_stopped(run_dir: Path, error: BaseException | None = None) -> None:
    from autoprune.runfolder import RunFolder

    if isinstance(error, AutopruneError):  # others come from the signal, as of an import that was cut off
        say(f"While stopping: {error}")
    begun = RunFolder(run_dir).read_config() is not None
    again = f"Finished trials are kept; continue with: autoprune search --run-dir {shlex.quote(str(run_dir))}"
    say(f"Stopped. {again if begun else 'Nothing was begun.'}")


app.command()(front)
app.command()(pick)
app.add_typer(profile_app, name="profile")
app.add_typer(study_app, name="study")
app.command()(status)
app.command()(dashboard)


app.command()(units)
app.command()(finetune)
app.command()(sparsify)
app.command()(export)
app.command()(verify)
app.command()(report)
app.command()(serve)


app.command()(tasks)
app.command()(spaces)
app.command()(targets)


def main(*, own_process: bool = False) -> None:
    """Run the command line; one message for every expected error, a traceback only with `--debug`; see `EXIT_CODES`.

    Args:
        own_process: The process ends afterwards. A search that a signal stopped then ignores further ones, and ends the
            process where a library keeps it; otherwise signals have their handlers again.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(args=arguments, prog_name="autoprune", obj=own_process)
    except AutopruneError as error:
        if debug:
            traceback.print_exc()
        _refuse(str(error))
    except BrokenPipeError:  # whoever read the output has enough
        sys.stderr.close()
        sys.exit(_CLOSED_OUTPUT)
    except OSError as error:
        if debug or error.errno not in _FILE_FAULTS:
            _fault()
        _refuse(f"{error.strerror}: {error.filename or 'a file of the run'}. What was finished is kept")
    except Exception:
        _fault()


def _fault() -> NoReturn:
    """Show the traceback of an error that nobody expected."""
    traceback.print_exc()
    print("error: this is a fault of autoprune or of your own code in the traceback above", file=sys.stderr)
    sys.exit(_FAULT)


def _refuse(message: str) -> NoReturn:
    Console(stderr=True).print(Text(printable(f"error: {message}")), style="red", soft_wrap=True)
    sys.exit(2)
