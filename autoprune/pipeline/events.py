"""What the pipeline tells whoever watches: the command line draws it, Python callers may ignore it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from autoprune.search.rung import Progress
from autoprune.search.time_estimate import Remaining

TASK, TABLE, DENSE, ORDER = "Task and units", "Latency table", "Dense model", "Channel order"
SEARCH, RECIPE, MEASURING = "Search", "Fine-tuning recipe", "Measuring candidates"
FULL, VERIFICATION = "Full fine-tune", "Export and verification"
"""Titles of the stages of a search in their order; the rungs, before the full fine-tune, are `rung_title`s."""


def rung_title(rung: str) -> str:
    """Return the title of the stage in which a rung is scored."""
    return f"Rung {rung}"


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


@runtime_checkable
class TakesRemaining(Protocol):
    """Events that also want to know how long the whole search will still take."""

    def remaining(self, remaining: Remaining) -> None:
        """The search will still take so long."""
        ...


@runtime_checkable
class TakesTrials(Protocol):
    """Events that also want to know every step of a rung."""

    def trials(self, title: str, progress: Progress) -> None:
        """A trial of the stage has finished."""
        ...


class Silent:
    """Ignores everything."""

    def stage(self, title: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """Ignore."""
