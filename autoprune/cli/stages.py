"""Stages of `autoprune check` as they go: the name and the seconds of the one that runs, never a long silence."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

_SILENT_SECONDS = 10.0
"""Without a terminal a stage that takes longer says so, again and again."""
_REFRESHES = 4


class Stages:
    """Shows the stage that runs and for how long, in one line of a terminal that changes, elsewhere now and then.

    Args:
        console: where to.
        silent_s: seconds without a line, at most, where there is no terminal.
    """

    def __init__(self, console: Console, silent_s: float = _SILENT_SECONDS) -> None:
        self._console, self._silent_s = console, silent_s
        self._name, self._begun = "loading", time.monotonic()
        self._said = self._begun
        self._ended = threading.Event()
        self._view: Live | None = None
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._view = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=_REFRESHES, transient=True
            )
            self._view.start()
        else:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._view is not None:
            self._view.stop()
        else:
            self._teller.join()

    def begin(self, name: str) -> None:
        """Show that a stage begins."""
        self._name, self._begun = name, time.monotonic()

    def end(self, outcome: RenderableType) -> None:
        """Print the outcome of a stage."""
        self._console.print(outcome)
        self._said = self._begun = time.monotonic()
        self._name = "next stage"

    def _render(self) -> Text:
        return Text(f"{self._name} ... {time.monotonic() - self._begun:.0f} s", style="dim")

    def _tell(self) -> None:
        while not self._ended.wait(self._silent_s / 10):
            now = time.monotonic()
            if now - self._said >= self._silent_s:
                self._said = now
                self._console.print(Text(f"{self._name} ... for {now - self._begun:.0f} s"), soft_wrap=True)
