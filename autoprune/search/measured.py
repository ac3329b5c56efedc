"""The measurements that a search asks for, beside the predictions that it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.trials import TrialResult


class Measured(Protocol):
    """Measures the candidates of a search. The same question has the same answer, also when a search is resumed."""

    def as_predicted(self, proxies: Sequence[TrialResult]) -> bool:
        """Return whether the best policies at the proxy cost what was predicted; if not, the search ends there."""
        ...

    def meets(self, policies: Sequence[Policy], limit: Limit) -> Sequence[bool]:
        """Return which policies meet a limit when they are measured."""
        ...
