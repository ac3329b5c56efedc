"""The baselines of a search: every unit cut by the same share, and the dense model with its layers in int8."""

from __future__ import annotations

from functools import partial

from autoprune.allocation.uniform import baselines, uniform_policies
from autoprune.manifest import Manifest
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.verification import verify_model, whole
from autoprune.records import Policy
from autoprune.search.explore import Search
from autoprune.training.dense import weights_to_bytes
from autoprune.treatments import INT8, INT8_DYNAMIC
from autoprune.trials import FrontModel

UNIFORM = "uniform"
"""The strategy that a uniform baseline is reported under."""

INT8_ALONE = "int8"
"""The strategy that the dense model in int8 is reported under."""


def uniform_baselines(plan: Search, costs: CostModel) -> dict[str, Policy]:
    """Return the uniform policy of every budget that has one within its limit."""
    by_limit = baselines(plan.space, plan.dense_widths, costs.limited_costs, list(costs.limits.values()))
    return {budget: by_limit[limit] for budget, limit in costs.limits.items() if limit in by_limit}


def all_uniform_baselines(plan: Search, costs: CostModel) -> list[tuple[str, Policy]]:
    """Return every budget with its uniform policies: in fp32, and where layers may be treated, with all treated."""
    of_limit = partial(uniform_policies, plan.space, plan.dense_widths, costs.limited_costs)
    return [(budget, policy) for budget, limit in costs.limits.items() for policy in of_limit(limit)]


def dense_in_int8(plan: Search, costs: CostModel, deployment: Deployment) -> FrontModel | None:
    """Return the dense model with every layer in int8 that the space offers so, verified without any training.

    Where the space offers both forms of int8, a layer has the one that usually computes faster.

    Returns:
        The model; `None` where the space offers int8 for no layer.

    Raises:
        StructureError, VerificationError: as `verify_model`.
    """
    space = plan.space
    offered = {name: [t for t in space.levels[name] if t in (INT8, INT8_DYNAMIC)] for name in space.layer_names}
    policy = space.policy({name: forms[0] for name, forms in offered.items() if forms})
    if not policy.treatments:
        return None
    weights = deployment.folder.model(policy.digest()).weights
    if not whole(weights):
        folder, small = deployment.folder, deployment.dense_model.cut(policy).shrink(prove=False)
        Manifest(folder).write(weights, weights_to_bytes(small), sources=[folder.dense, folder.order])
    return verify_model(policy, None, INT8_ALONE, costs, deployment)
