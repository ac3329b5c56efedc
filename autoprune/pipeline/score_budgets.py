"""Budgets by score: latencies are searched one after the other until the fastest model that keeps the score is known.

The search itself limits latency. A budget by score halves the interval between the fastest model that keeps the score
and the slowest latency at which none does; every latency goes on from what the ones before have measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoprune.budgets import Budget, ScoreBudget
from autoprune.report.amounts import score_interval
from autoprune.trials import FrontModel

MOST_LATENCIES = 5
"""Latencies that one budget by score searches at most, after those that a search begins with."""

_CLOSE = 1.08
"""Two latencies as close as this factor are not halved any more: a measurement is good for a few per cent."""

_STEP = 0.6
"""Factor on the latency while every model keeps the score."""


@dataclass(frozen=True, kw_only=True)
class ScoreSearch:
    """What is known of one budget by score.

    Args:
        budget: the budget.
        least: the least score on validation data.
        floor: latency of the smallest policy as a share of the dense model's.
    """

    budget: ScoreBudget
    least: float
    floor: float

    def answer(self, models: Sequence[FrontModel]) -> FrontModel | None:
        """Return the fastest model that keeps the score; `None` without one."""
        keeping = [model for model in models if model.score >= self.least]
        return min(keeping, key=lambda model: (model.latency_ratio, -model.score), default=None)

    def next_latency(self, searched: Mapping[str, float], models: Sequence[FrontModel]) -> float | None:
        """Return the latency to search next, as a share of the dense model's; `None` when the answer is known.

        Args:
            searched: latencies that were searched, as shares of the dense model's, by budget.
            models: the verified models of all of them. One may measure a little more than its budget.
        """
        answer = self.answer(models)
        fastest = answer.latency_ratio if answer else 1.0
        kept = {model.budget for model in models if model.score >= self.least}
        failed = [ratio for budget, ratio in searched.items() if budget not in kept and ratio < fastest]
        slowest = max(failed, default=self.floor)
        if fastest / slowest < _CLOSE:
            return None
        middle = math.sqrt(fastest * slowest)
        return middle if failed else max(_STEP * fastest, middle)

    def entry(self, models: Sequence[FrontModel], examples: int | None) -> dict[str, Any]:
        """Return the entry of `front.json`.

        Args:
            models: all verified models.
            examples: validation examples, where the score is a share of them.
        """
        answer = self.answer(models)
        value: dict[str, Any] = {"budget": str(self.budget), "least_score": self.least, "digest": None}
        if answer is None:
            return value
        return value | {
            "digest": answer.digest,
            "score": answer.score,
            "score_interval": score_interval(answer.score, examples),
            "latency_ratio": answer.latency_ratio,
        }


def next_budgets(
    searches: Sequence[ScoreSearch], first: int, searched: Mapping[str, float], models: Sequence[FrontModel]
) -> list[Budget]:
    """Return the latency budgets to search next, one for every budget by score whose answer is not known.

    Args:
        searches: the budgets by score.
        first: with how many of the `searched` budgets the search began.
        searched: latencies as shares of the dense model's, by budget.
        models: the verified models.
    """
    if len(searched) - first >= MOST_LATENCIES * len(searches):
        return []
    wanted = [search.next_latency(searched, models) for search in searches]
    texts = dict.fromkeys(f"{100 * ratio:.3g}%" for ratio in wanted if ratio is not None)
    return [budget for budget in map(Budget.parse, texts) if str(budget) not in searched]
