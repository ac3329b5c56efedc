"""Progress in the terminal: a live view where there is one, plain lines otherwise; and the same lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoprune.errors import UsageError
from autoprune.printable import printable
from autoprune.report.durations import duration_text

if TYPE_CHECKING:
    from autoprune.search.time_estimate import Remaining

_PLAIN_SECONDS = 10.0
"""Where there is no live view, progress is a line every ten seconds at most; stages and facts are lines at once."""

_REFRESHES = 4
_BAR_WIDTH = 24
_LOG_WIDTH = 10_000


class ConsoleEvents:
    """Shows stages, facts, progress and the time that is left.

    `with` shows the live view of a terminal and removes it at the end; elsewhere there are plain lines.

    Args:
        console: where to; by default the standard output.
        clock: in seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._console = console or Console()
        self._view: Live | None = None
        self._title = self._detail = ""
        self._done = self._total = 0.0
        self._remaining: Remaining | None = None
        self._has_told_basis = False
        self._begun = self._printed = self._estimated = clock()

    def __enter__(self) -> Self:
        if self._console.is_terminal and self._view is None:
            view = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=_REFRESHES, transient=True
            )
            view.start()
            self._view = view
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.stop()
            self._view = None

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Show the live view, for those who give this to a search without `with`."""
        self.__enter__()

    def close(self) -> None:
        """Remove the live view."""
        self.__exit__(None, None, None)

    def stage(self, title: str) -> None:
        """Print the title of a stage, and begin its bar."""
        self._title, self._done, self._total, self._has_told_basis = title, 0.0, 0.0, False
        self._begun = self._printed = self._clock()
        self._console.print(Text(printable(title), style="bold cyan"), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print one fact."""
        self._console.print(Text(printable(f"  {text}")), soft_wrap=True)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Move the bar, or print a line now and then; the first one of a stage says what its time left is from."""
        self._done, self._total = done, total
        self._detail = detail
        now = self._clock()
        if self._view is None and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            left = self._left(now, basis=not self._has_told_basis)
            self._has_told_basis = self._has_told_basis or bool(left)
            parts = [f"{done:,.10g} of {total:,.10g}", *([left] if left else []), *([detail] if detail else [])]
            self.note("; ".join(parts))

    def remaining(self, remaining: Remaining) -> None:
        """Take how long the whole command will still take."""
        self._remaining, self._estimated = remaining, self._clock()

    def _left(self, now: float, *, basis: bool = True) -> str:
        """Return the time that is left in words, as it is some seconds after the estimate."""
        if self._remaining is None:
            return ""
        seconds = max(self._remaining.seconds - (now - self._estimated), 0.0)
        return f"about {duration_text(seconds)} left in all" + (f" ({self._remaining.basis})" if basis else "")

    def _render(self) -> RenderableType:
        if not self._title:
            return Text("")
        now = self._clock()
        lines: list[RenderableType] = [self._bar(now)]
        if self._detail:
            lines.append(Text(f"  {self._detail}", style="dim"))
        known = self._remaining
        if known is not None and known.trials:
            lines.append(Text(f"  {known.trials:,} trials, {known.sample_passes:,.0f} sample passes", style="dim"))
        if known is not None:
            lines.append(Text(f"  {self._left(now)}"))
        return Group(*lines)

    def _bar(self, now: float) -> Table:
        """Return one line: the stage, its bar, what is done of it, and for how long it runs."""
        row = Table.grid(padding=(0, 1))
        known = self._total > 0
        bar = ProgressBar(total=self._total if known else None, completed=self._done, width=_BAR_WIDTH, pulse=not known)
        count = f"{self._done:,.10g}/{self._total:,.10g}" if known else ""
        row.add_row(Text(self._title, style="bold"), bar, count, Text(duration_text(now - self._begun), style="dim"))
        return row


class LogFile:
    """Appends lines with their time to a file, as a text stream that rich writes to.

    Raises:
        UsageError: when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror or error}. Give another --log-file."
            ) from error

    def write(self, text: str) -> int:
        """Write whole lines, each after the local time."""
        stamp = datetime.now().astimezone().isoformat(timespec="seconds")
        for line in text.splitlines():
            self._file.write(f"{stamp} {line}\n")
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def events(self) -> ConsoleEvents:
        """Return events that are written to this file as plain lines."""
        return ConsoleEvents(Console(file=self, width=_LOG_WIDTH, force_terminal=False))  # pyright: ignore[reportArgumentType]


class SeveralEvents:
    """Tells everything to several events."""

    def __init__(self, events: Sequence[ConsoleEvents]) -> None:
        self._events = events

    def stage(self, title: str) -> None:
        """Tell all that a stage begins."""
        for each in self._events:
            each.stage(title)

    def note(self, text: str) -> None:
        """Tell all a fact."""
        for each in self._events:
            each.note(text)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Tell all a step."""
        for each in self._events:
            each.advance(done, total, detail)

    def remaining(self, remaining: Remaining) -> None:
        """Tell all how long the whole command will still take."""
        for each in self._events:
            each.remaining(remaining)
