"""FastNAS, the pruning search of NVIDIA's Model Optimizer (`modelopt.torch.prune`, mode `fastnas`).

Each unit is scored at each of its levels, all others full. One bound on the loss of score is shared by all units: each
takes the smallest level within it, and the lowest bound whose policy meets the limit is taken. So the largest single
loss is minimised, not their sum, and no policy is scored as a whole.

The rule is the original's. The limit is any cost of the search, not parameters or FLOPs alone; bounds are scanned
instead of bisected, which finds the same or a lower one; every level is scored, where the original takes it that none
wider than one without a loss has any; and trials are repaired as in all strategies, not by batch norms alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoprune.errors import TrialError
from autoprune.records import Policy, SearchSpace
from autoprune.search.baselines.shared import Array, score_baselines, score_first_fitting
from autoprune.search.explore import Explorer
from autoprune.search.sensitivity import sensitivities, single_unit_policies


def fastnas(explorer: Explorer) -> None:
    """Score every level of every unit alone, then the policy of the lowest bound that fits each limit."""
    score_baselines(explorer)
    score_first_fitting(explorer, policies_by_bound(explorer.search.space, _degradations(explorer)))


def policies_by_bound(space: SearchSpace, degradations: Mapping[str, Array]) -> list[Policy]:
    """Every policy that some bound on the degradation of single units gives, from the largest to the smallest.

    `degradations` `[levels]` of every searched unit are not ascending and end with 0.
    """
    bounds = np.unique([0.0, *(value for values in degradations.values() for value in values)])
    return [
        space.policy({name: space.levels[name][int((degradations[name] > bound).sum())] for name in space.searched})
        for bound in bounds
    ]


def _degradations(explorer: Explorer) -> dict[str, Array]:
    """Score lost by every level of every searched unit alone, `[levels]`, made monotone and not negative."""
    space = explorer.search.space
    explorer.score_apart([space.largest(), *single_unit_policies(space)])
    scores = {r.policy: r.measurement.score for r in explorer.apart.values() if r.measurement is not None}
    if space.largest() not in scores:
        raise TrialError(f"the largest policy could not be scored: {explorer.apart[space.largest()].error}")
    dense = scores[space.largest()]
    return sensitivities(space, {policy: dense - score for policy, score in scores.items()})
