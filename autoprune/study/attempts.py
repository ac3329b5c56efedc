"""How often a trial is tried: a policy's own failures are counted apart from the losses of what it ran on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoprune.trials import TrialResult, TrialSpec

MAX_FAILURES = 2
"""A policy that fails so often by itself has failed."""

MAX_LOSSES = 5
"""So has one whose worker is lost so often: it may well be what ends the worker."""


def given_up(attempts: Sequence[Mapping[str, Any]], timeout_s: float | None) -> str | None:
    """Why a trial is not tried again after these attempts, or `None` if it is.

    Those that were ended after a time limit that is longer now, or gone (`None`), do not count.
    """
    counted = [attempt for attempt in attempts if not _was_ended_early(attempt, timeout_s)]
    counts = Counter(attempt["status"] for attempt in counted)
    if counts["failed"] >= MAX_FAILURES:
        return f"{counted[-1]['reason']} ({counts['failed']} times)"
    if counts["lost"] >= MAX_LOSSES:
        return f"lost {counts['lost']} times, last: {counted[-1]['reason']}"
    return None


def _was_ended_early(attempt: Mapping[str, Any], timeout_s: float | None) -> bool:
    limit = attempt.get("limit_s")
    if attempt["status"] != "lost" or limit is None or attempt["seconds"] < limit:
        return False
    return timeout_s is None or timeout_s > limit


@dataclass
class Running:
    """A trial that was handed out, in its present attempt, and how the former ones ended."""

    spec: TrialSpec
    slot: int
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def count(self, result: TrialResult, timeout_s: float | None = None) -> str | None:
        """Count an attempt that failed or was lost and go on to the next; the reason when there shall be none."""
        attempt = {"status": result.status, "reason": result.error, "seconds": result.seconds}
        self.attempts.append(attempt | ({"limit_s": timeout_s} if timeout_s else {}))
        reason = given_up(self.attempts, timeout_s)
        if reason is None:
            self.spec = replace(self.spec, attempt=self.spec.attempt + 1)
        return reason
