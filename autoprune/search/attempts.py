"""How often a trial is tried: a policy's own failures are counted apart from the losses of what it ran on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from autoprune.trials import TrialResult, TrialSpec

MAX_FAILURES = 2
"""A policy that fails so often by itself has failed."""

MAX_LOSSES = 5
"""So has one whose worker is lost so often: it may well be what ends the worker."""


@dataclass
class Running:
    """A trial that was handed out, in its present attempt, and how the former ones ended."""

    spec: TrialSpec
    slot: int
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def count(self, result: TrialResult) -> str | None:
        """Count an attempt that failed or was lost and go on to the next; the reason when there shall be none."""
        self.attempts.append({"status": result.status, "reason": result.error, "seconds": result.seconds})
        counts = Counter(attempt["status"] for attempt in self.attempts)
        if counts["failed"] >= MAX_FAILURES:
            return f"{result.error} ({counts['failed']} times)"
        if counts["lost"] >= MAX_LOSSES:
            return f"lost {counts['lost']} times, last: {result.error}"
        self.spec = replace(self.spec, attempt=self.spec.attempt + 1)
        return None
