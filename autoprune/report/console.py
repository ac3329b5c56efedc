"""Progress in the terminal: a live bar where there is one, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_PLAIN_SECONDS = 10.0
_LAST_SECONDS = 4.0
"""Where there is no live bar: a line every ten seconds, and one at the end of what took a while."""


class ConsoleEvents:
    """Shows stages, facts and progress; `with` shows the live bar and removes it at the end. `clock` is in seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._console = console
        self._live = console.is_terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._started = self._printed = clock()

    def __enter__(self) -> Self:
        if self._live:
            self._bar = Progress(
                TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, min_width=12)),
                BarColumn(bar_width=16),
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
                TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
                TextColumn(
                    "{task.fields[detail]}",
                    style="dim",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis"),
                ),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, title: str) -> None:
        """Print the title of a stage and restart its bar."""
        self._title, self._started, self._printed = title, self._clock(), self._clock()
        self._console.print(Text(title, style="bold cyan"))
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=None, detail="")

    def note(self, text: str) -> None:
        """Print one fact."""
        self._console.print(Text(f"  {text}"), soft_wrap=True)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Move the bar, or print a line now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, detail=detail)
            return
        now = self._clock()
        if now - self._printed >= (_PLAIN_SECONDS if done < total else _LAST_SECONDS):
            self._printed = now
            left = (now - self._started) * (total - done) / done if done else 0.0
            self.note(f"{done:g} of {total:g}, about {left:.0f} s left  {detail}".rstrip())
