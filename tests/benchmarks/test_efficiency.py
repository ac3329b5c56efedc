"""The guided search must stay as quick as it is: replayed on the table, it may not need more evaluations.

Of the evaluations 11 are sensitivities and the uniform policy. Bounds leave a fifth for another Optuna. At 50 % some
random policy of the table is a tenth better than what the search finds: the bound holds what it does find.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from replay_table import ReplayTable
from replayed_search import replay

from autoprune.records import Policy
from autoprune.search.refine import Losses, Refinement

TABLE = ReplayTable.load(Path(__file__).parent / "resnet8.csv")
BOUNDS = {0.5: (0.85, 15), 0.33: (0.95, 32), 0.25: (0.99, 41)}
"""By budget: a share of the best loss, and after how many evaluations it must be reached (12, 26 and 34 now)."""
SEEDS = range(3)


def evaluations(refinement: Callable[..., Refinement] = Refinement) -> dict[float, float]:
    """Median number of evaluations until the share of the best loss, by budget; NaN when it is not reached."""
    limits = [TABLE.limit(budget) for budget in BOUNDS]
    enough = [
        min(one.loss for one in TABLE.within(limit, "proxy").values()) / share
        for limit, (share, _) in zip(limits, BOUNDS.values(), strict=True)
    ]
    courses = [replay(TABLE, "guided", limits, seed, refinement=refinement) for seed in SEEDS]
    reached = [[course.reached(loss) for course, loss in zip(each, enough, strict=True)] for each in courses]
    return dict(zip(BOUNDS, np.median(np.array(reached, dtype=float), axis=0).tolist(), strict=True))


def within(counts: dict[float, float]) -> bool:
    return all(counts[budget] <= most for budget, (_, most) in BOUNDS.items())


class Unrefined(Refinement):
    """Stops after the solver's answers."""

    def propose(self, losses: Losses, running: Collection[Policy] = ()) -> dict[Policy, str]:
        return super().propose(losses, running) if self.solution is None else {}


def test_the_guided_search_is_as_quick_as_it_was():
    counts = evaluations()
    assert within(counts), counts


def test_one_that_does_not_refine_is_caught():
    assert not within(evaluations(Unrefined))
