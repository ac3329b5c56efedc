"""What the commands share: options with one meaning each, and the console."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console(width=None if sys.stdout.isatty() else 132)

RunDir = Annotated[Path, typer.Argument(help="Run folder of `autoprune search`.")]
Policy = Annotated[str, typer.Option("--policy", help="Digest of a model of the run, or the beginning of it.")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Built-in task, package.module:function or file.py:function.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Built-in model.")]
DataOption = Annotated[str | None, typer.Option("--data-dir", help="Folder of the data.")]
SpaceOption = Annotated[str | None, typer.Option("--space", help="Built-in search space or a YAML file.")]
TableOption = Annotated[str | None, typer.Option("--table", help="Latency table made by `autoprune profile`.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="What latency is measured on (`autoprune targets`), or ssh://user@host."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Threads of the runtime.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Batch size that latency is measured at.")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="fp32 or int8.")]
DenseOption = Annotated[str | None, typer.Option("--dense", help="Trained weights of the dense model (safetensors).")]
ForeignOption = Annotated[
    bool, typer.Option("--allow-foreign-table", help="Accept a table of another machine; nothing is measured then.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything.")]


def given_options(**values: Any) -> dict[str, Any]:
    """The options that were given; the others keep their default, or what a resumed run was started with."""
    return {key: value for key, value in values.items() if value is not None}


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """SIGINT, and SIGTERM as Slurm and Kubernetes send it, raise `KeyboardInterrupt` once; yields what was received.

    A second signal while things are being closed changes nothing: they are closed within seconds.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
