"""How often a trial is tried again: failures of the policy are counted apart from losses of its worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoprune.trials import TrialResult, TrialSpec

MAX_FAILURES = 2
"""Attempts of a policy that may fail by themselves before its trial counts as failed."""

MAX_LOSSES = 5
"""Attempts whose worker may be lost before the trial counts as failed: the policy may be what ends its worker."""


def given_up(attempts: Sequence[Mapping[str, Any]], timeout_s: float | None) -> str | None:
    """Return why a trial is not tried again after these attempts, or `None` if it is tried again.

    An attempt that was ended by a time limit does not count when the limit `timeout_s` is longer now, or gone (`None`).
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
    """A trial that was handed out: its present attempt, and how earlier attempts ended."""

    spec: TrialSpec
    slot: int
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def count(self, result: TrialResult, timeout_s: float | None = None) -> str | None:
        """Count an attempt that failed or was lost; return the reason when there is to be no other attempt."""
        attempt = {"status": result.status, "reason": result.error, "seconds": result.seconds}
        self.attempts.append(attempt | ({"limit_s": timeout_s} if timeout_s else {}))
        reason = given_up(self.attempts, timeout_s)
        if reason is None:
            self.spec = replace(self.spec, attempt=self.spec.attempt + 1)
        return reason
