"""What the pipeline tells whoever watches: the command line draws it, Python callers may ignore it."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    """Receives the progress of a run, stage after stage."""

    def stage(self, title: str) -> None:
        """A new stage begins."""
        ...

    def note(self, text: str) -> None:
        """One finished fact, worth a line."""
        ...

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """The current stage has done `done` of `total`."""
        ...


class Silent:
    """Ignores everything."""

    def stage(self, title: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Ignore."""
