"""Output of a command while it runs: a live view or lines, a log file, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from autoprune.cli.options import out

if TYPE_CHECKING:
    from autoprune.report.console import SeveralEvents

QuietOption = Annotated[bool, typer.Option("--quiet", help="Show results and errors alone.")]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", help="Also append the progress to this file, as lines with their time."),
]


@contextmanager
def shown_events(quiet: bool, log_file: Path | None, *, to_stderr: bool = False) -> Iterator[SeveralEvents]:
    """Yield events that are shown as the options of a command say; the log file also gets what ended the command.

    Args:
        quiet: whether nothing is shown.
        log_file: file that the events are appended to.
        to_stderr: whether progress is no part of the output, which is one JSON document.

    Raises:
        UsageError: when the log file cannot be written.
    """
    from autoprune.report.console import ConsoleEvents, LogFile, SeveralEvents

    with ExitStack() as stack:
        log = stack.enter_context(LogFile(log_file)).events() if log_file is not None else None
        shown = [] if quiet else [stack.enter_context(ConsoleEvents(Console(stderr=True) if to_stderr else out))]
        try:
            yield SeveralEvents([*shown, *([log] if log else [])])
        except BaseException as error:
            if log is not None:
                log.note(f"ended by {type(error).__name__}: {error}".rstrip(": "))
            raise
