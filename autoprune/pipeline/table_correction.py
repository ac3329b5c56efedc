"""The best candidates against their predictions: where these are wrong, the latency table is fitted again with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoprune.allocation.promotion import best_within
from autoprune.latency.table import LatencyTable
from autoprune.manifest import Manifest
from autoprune.pipeline.baselines import uniform_baselines
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import Events
from autoprune.records import Policy
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.trials import TrialResult

LARGEST_ERROR = 0.03
"""A prediction that is further off than this share of the measurement makes the table be fitted again."""

_CANDIDATES = 4
_MOST_CORRECTIONS = 2
_MORE_TRIALS = 0.25
"""Share of the proposals that a search makes again after each correction, because its budgets lie elsewhere then."""


def widened(effort: Effort, corrections: int) -> Effort:
    """Return the effort of a search after some corrections of its table."""
    return replace(effort, trials=effort.trials + round(effort.trials * _MORE_TRIALS * corrections))


def corrected_costs(
    plan: Search, proxies: Sequence[TrialResult], costs: CostModel, deployment: Deployment, events: Events
) -> CostModel | None:
    """Measure the best policies of every budget at the proxy and correct the table where it is off by more than 3 %.

    Before anything is fine-tuned: a search goes where the table errs in its favour, and what then misses its budget
    would have been tuned in vain.

    Args:
        plan: the search.
        proxies: results of its cheapest rung.
        costs: predicts the latencies that are checked.
        deployment: measures them; the corrected table is kept in its run folder.
        events: receives the largest error.

    Returns:
        Costs by the corrected table, or `None` when the table is right, was corrected twice, or is of another device.
    """
    if deployment.foreign or not costs.knows_latency or costs.table.refits >= _MOST_CORRECTIONS:
        return None
    best = {r.policy for limit in costs.limits.values() for r in best_within(proxies, limit, _CANDIDATES)}
    uniform = uniform_baselines(plan, costs)
    policies = list(dict.fromkeys([*sorted(best, key=Policy.digest), *uniform.values()]))
    ratios = deployment.ratios(policies, costs)
    worst = float(np.abs(costs.predicted_ratios(policies) / ratios - 1).max())
    events.note(f"predicted against measured, {len(policies)} candidates: off by at most {worst:.1%}")
    if worst <= LARGEST_ERROR:
        return None
    events.note(f"more than {LARGEST_ERROR:.0%}: the latency table is fitted again with them, and the search goes on")
    corrected = costs.corrected(policies, ratios)
    assert isinstance(corrected.table, LatencyTable), "nothing is corrected where no latency is known"
    Manifest(deployment.folder).write(deployment.folder.table, corrected.table.content())
    return corrected
