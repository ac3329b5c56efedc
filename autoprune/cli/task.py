"""`autoprune init` and `autoprune check`: write a task of your own, and see whether it works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def init(path: Annotated[Path, typer.Argument(help="Python file to write, such as my_task.py.")]) -> None:
    """Write a commented task file to fill in; it runs as it is."""
    from autoprune.task.template import write_template

    write_template(path)
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
) -> None:
    """Try every stage of a search on two batches: what works, what is left alone, and how long a search takes."""
    from autoprune.config import load_config
    from autoprune.pipeline.check import check_up
    from autoprune.report import basis_line, check_header, check_row, estimate_table, fixed_table

    config = load_config(
        None,
        given_options(
            task=task, model=model, data_dir=data_dir, space=space, target=target, threads=threads, batch=batch,
            workers=workers,
        ),
    )  # fmt: skip
    out.print(check_header())
    with out.status("Checking ...") as status:
        checkup = check_up(
            config,
            on_stage=lambda stage: status.update(f"Checking: {stage} ..."),
            on_finding=lambda finding: out.print(check_row(finding)),
        )
    structure = checkup.structure
    if structure is not None and (structure.fixed or structure.unsupported or structure.fixed_sizes):
        out.print(fixed_table(structure.fixed, structure.unsupported, structure.fixed_sizes))
    if checkup.estimates:
        out.print(estimate_table(checkup.estimates))
        say(basis_line(checkup.estimates, config.slots))
    if not checkup.works:
        raise typer.Exit(1)
