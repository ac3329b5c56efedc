"""The uniform baseline: every unit cut by the same share."""

from __future__ import annotations

from autoprune.allocation.uniform import baselines
from autoprune.pipeline.cost_model import CostModel
from autoprune.records import Policy
from autoprune.search.explore import Search

UNIFORM = "uniform"
"""The strategy that a baseline is reported under."""


def uniform_baselines(plan: Search, costs: CostModel) -> dict[str, Policy]:
    """Return the uniform policy of every budget that has one within its limit."""
    by_limit = baselines(plan.space, plan.dense_widths, costs.limited_costs, list(costs.limits.values()))
    return {budget: by_limit[limit] for budget, limit in costs.limits.items() if limit in by_limit}
