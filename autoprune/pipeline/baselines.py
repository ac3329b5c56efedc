"""The baselines of a search: every unit cut by the same share, zeros that are shared out by the dense weights, and the
dense model with its layers in int8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from autoprune.allocation.limits import fits
from autoprune.allocation.uniform import baselines, uniform_policies
from autoprune.errors import StructureError, VerificationError
from autoprune.manifest import Manifest
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import Events
from autoprune.pipeline.verification import verify_model, whole
from autoprune.pruning.rates import zero_shares
from autoprune.records import Policy, SearchSpace
from autoprune.search.explore import Search
from autoprune.training.dense import weights_to_bytes
from autoprune.treatments import DENSE, INT8, INT8_DYNAMIC, Layer, Level, Treatment
from autoprune.trials import FrontModel

UNIFORM = "uniform"
"""The strategy that a uniform baseline is reported under."""

SHARED_OUT = {"global magnitude": "global", "LAMP": "lamp", "ERK": "erk"}
"""The strategies of baselines that share out zeros by the dense weights, and the rankings of `zero_shares`."""

_SHARES = (*range(10, 90, 5), *range(90, 99))
"""Shares of zeros, in percent, that are tried for these."""

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


def shared_out_zeros(space: SearchSpace, costs: CostModel, dense: nn.Module) -> list[tuple[str, str, Policy]]:
    """Return policies with zeros that are shared out by the dense weights: budget, strategy and policy of each.

    Every layer has the level whose share of zeros is nearest to the one that it gets; of both forms of int8 the dynamic
    one, which usually computes faster. Of the policies within a budget
    the one with the fewest zeros is taken, with the precision that needs the fewest.

    Args:
        space: of the search; one without zeros has no such policies.
        costs: of policies, with the limits of the budgets.
        dense: model with trained weights.
    """
    tensors = dict(dense.named_parameters(remove_duplicate=False))
    known = [layer for layer in costs.structure.layers if tensors.keys() >= {*layer.weights}]
    every = {layer.name: layer for layer in known if layer.name in space.layer_names}
    offered = {name: levels for name in every if (levels := _zeros_by_precision(space.levels[name]))}
    scores = {weight: tensors[weight].detach().abs() for name in offered for weight in every[name].weights}
    precisions = dict.fromkeys(precision for levels in offered.values() for precision in levels)
    chosen: dict[tuple[str, str], Policy] = {}
    for strategy, ranking in SHARED_OUT.items():
        for percent in _SHARES if scores else ():
            by_weight = zero_shares(scores, percent / 100, ranking)
            shares = {name: _of_all(every[name], by_weight) for name in offered}
            policies = [
                space.policy({n: _nearest(offered[n].get(precision, ()), share) for n, share in shares.items()})
                for precision in precisions
            ]
            for policy, row in zip(policies, costs.limited_costs(policies), strict=True):
                for budget in (budget for budget, limit in costs.limits.items() if fits(row, limit)):
                    chosen.setdefault((budget, strategy), policy)
    return [(budget, strategy, policy) for (budget, strategy), policy in chosen.items()]


def _of_all(layer: Layer, shares: Mapping[str, float]) -> float:
    """Return the share of zeros among all weights of a layer."""
    numbers = [math.prod(shape) for shape in layer.shapes]
    return sum(shares[name] * count for name, count in zip(layer.weights, numbers, strict=True)) / sum(numbers)


def _zeros_by_precision(levels: Sequence[Level]) -> dict[str, list[Treatment]]:
    """Return the treatments of a layer with zeros by the precision of weights, each with the same one without zeros."""
    treatments = [level for level in levels if isinstance(level, Treatment)]
    precisions = dict.fromkeys(t.weights_precision for t in treatments if t.pattern is not None)
    return {p: [t for t in treatments if t.weights_precision == p and not t.rank] for p in precisions}


def _nearest(levels: Sequence[Treatment], share: float) -> Treatment:
    """Return the treatment whose share of zeros is nearest; the dense one without any."""
    zeros = {level: 0.0 if level.pattern is None else 1 - level.pattern.density for level in levels}
    return min(zeros, key=lambda level: abs(zeros[level] - share), default=DENSE)


def dense_in_int8(plan: Search, costs: CostModel, deployment: Deployment, events: Events) -> FrontModel | None:
    """Return the dense model with every layer in int8 that the space offers so, verified without any training.

    Where the space offers both forms of int8, a layer has the one that usually computes faster.

    Returns:
        The model; `None` where the space offers int8 for no layer, or, with a note, where the model is not proven.
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
    try:
        return verify_model(policy, None, INT8_ALONE, costs, deployment)
    except (StructureError, VerificationError) as error:
        events.note(f"the dense model in int8 is left out: {error}")
        return None
