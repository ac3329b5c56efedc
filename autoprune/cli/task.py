"""`autoprune init` and `autoprune check`: write a task of your own, and see whether it works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from autoprune.cli.listings import fixed_document
from autoprune.cli.options import (
    BatchOption,
    DataOption,
    ModelOption,
    SpaceOption,
    TargetOption,
    TaskOption,
    ThreadsOption,
    given_options,
    out,
    say,
)  # fmt: skip
from autoprune.cli.stages import Stages
from autoprune.cli.tables import JsonOption, show_json, show_table

if TYPE_CHECKING:
    from autoprune.pipeline.check import Checkup


def init(
    path: Annotated[Path, typer.Argument(help="Python file to write, such as my_task.py.")], as_json: JsonOption = False
) -> None:
    """Write a commented task file to fill in; it runs as it is."""
    from autoprune.task.template import write_template

    write_template(path)
    if as_json:
        show_json({"written": str(path), "task": f"{path}:make_task"})
        return
    say(f"written: {path}\nnext: autoprune check --task {path}:make_task")


def check(
    task: TaskOption = None,
    model: ModelOption = None,
    data_dir: DataOption = None,
    space: SpaceOption = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Worker processes of the planned search.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try every stage of a search on two batches: what works, what is left alone, and how long a search takes."""
    from autoprune.config import load_config
    from autoprune.report import basis_line, check_header, check_row, estimate_table, fixed_table

    config = load_config(
        None,
        given_options(
            task=task, model=model, data_dir=data_dir, space=space, target=target, threads=threads, batch=batch,
            workers=workers,
        ),
    )  # fmt: skip
    console = Console(stderr=True) if as_json else out
    console.print(check_header())
    with Stages(console) as stages:
        from autoprune.pipeline.check import check_up  # takes seconds

        checkup = check_up(config, on_stage=stages.begin, on_finding=lambda finding: stages.end(check_row(finding)))
    structure = checkup.structure
    if as_json:
        show_json(_document(checkup))
    else:
        if structure is not None and (structure.fixed or structure.unsupported or structure.fixed_sizes):
            show_table(fixed_table(structure.fixed, structure.unsupported, structure.fixed_sizes))
        if checkup.estimates:
            show_table(estimate_table(checkup.estimates))
            say(basis_line(checkup.estimates, config.slots))
    if not checkup.works:
        raise typer.Exit(1)


def _document(checkup: Checkup) -> dict[str, Any]:
    estimates = [
        {
            "effort": estimate.effort,
            "policies": estimate.policies,
            "sample_passes": round(estimate.sample_passes),
            "seconds": round(estimate.seconds, 1),
            "seconds_by_part": {name: round(seconds, 1) for name, seconds in estimate.seconds_by_part.items()},
        }
        for estimate in checkup.estimates
    ]
    known = {} if checkup.structure is None else fixed_document(checkup.structure)
    return {"works": checkup.works, "findings": [vars(f) for f in checkup.findings], "estimates": estimates, **known}
