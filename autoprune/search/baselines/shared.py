"""Steps that several baselines share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.allocation.limit_fitting import fit_to_limit
from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.errors import UsageError
from autoprune.records import Policy
from autoprune.search.explore import Explorer, Search

Array = npt.NDArray[np.float64]


def score_baselines(explorer: Explorer) -> None:
    """Score the uniform policy of every limit, and those whose zeros the dense weights share out."""
    explorer.score(explorer.baselines)


def score_first_fitting(explorer: Explorer, chain: Sequence[Policy]) -> None:
    """Score, for every limit, the first policy of a chain that fits it; the last one is the smallest of the space."""
    search = explorer.search
    costs = search.predict(chain)
    chosen = [chain[int(np.argmax(fits(costs, limit)))] for limit in search.limits]
    explorer.score(dict.fromkeys(chosen, search.strategy))


def sorted_importance(search: Search) -> dict[str, Array]:
    """Importance of the channels of every searched unit, `[width]`, the largest first; `UsageError` if any lacks it."""
    given = search.importance or {}
    missing = [name for name in search.space.searched if len(given.get(name, ())) != search.dense_widths[name]]
    if missing:
        raise UsageError(
            f"the strategy {search.strategy!r} goes by one importance for each channel; it is absent or of another "
            f"width for {len(missing)} of {len(search.space.searched)} units, among them {missing[0]!r}. "
            "Give them to the search, or choose another strategy."
        )
    return {name: np.sort(np.asarray(given[name], dtype=float))[::-1] for name in search.space.searched}


def fitted(search: Search, policy: Policy, limit: Limit, rng: np.random.Generator) -> Policy:
    """The policy moved onto a limit that the smallest policy of the space fits, as every limit of a search is."""
    moved = fit_to_limit(policy, search.space, search.predict, limit, rng)
    assert moved is not None
    return moved
