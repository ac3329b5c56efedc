"""Findings of the stages of a check, each of which may fail without ending the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autoprune.errors import AutopruneError
from autoprune.report.checks import Finding


class Findings(list[Finding]):
    """Findings in the order of the stages; both callbacks are told of each, when it begins and when it ends."""

    def __init__(self, on_stage: Callable[[str], None], on_finding: Callable[[Finding], None]) -> None:
        super().__init__()
        self._on_stage, self._on_finding = on_stage, on_finding

    def append(self, finding: Finding) -> None:
        """Keep a finding, and tell it at once."""
        super().append(finding)
        self._on_finding(finding)

    def seconds_of(self, stage: str) -> float:
        """Return the seconds that a stage took."""
        return next((finding.seconds for finding in self if finding.stage == stage), 0.0)

    def attempt(self, stage: str, work: Callable[[], tuple[Any, str]], *needs: object) -> Any:
        """The value of a stage, or `None` when it fails or something that it needs is absent; its text is kept."""
        if any(need is None for need in needs):
            self.append(Finding(stage=stage, works=None, text="an earlier stage failed", seconds=0.0))
            return None
        self._on_stage(stage)
        start = time.perf_counter()
        value, works = None, True
        try:
            value, text = work()
        except AutopruneError as error:
            works, text = False, str(error)
        except (Exception, SystemExit) as error:  # a user's function may raise anything, and the other stages go on
            works, text = False, f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        self.append(Finding(stage=stage, works=works, text=text, seconds=time.perf_counter() - start))
        return value
