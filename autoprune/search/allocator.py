"""From sensitivities to a policy that meets its limit: the solver, repaired and polished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.allocation.limit_fitting import fit_to_limit
from autoprune.allocation.limits import Predict, fits
from autoprune.allocation.solver import Allocation, Widen, polished
from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace
from autoprune.search.sensitivity import by_unit

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Finds the policy of least summed sensitivity within a limit.

    `table` holds the sensitivities of every searched unit. All answers fit their limit by `predict`, which also prices
    what the solver cannot, and no unit of theirs can be widened for free.
    """

    space: SearchSpace
    solver: Allocation
    table: Mapping[str, Array]
    predict: Predict
    widen: Widen = polished

    @property
    def removable(self) -> bool:
        """Whether a unit may have width 0."""
        return any(self.space.levels[name][0] == 0 for name in self.space.searched)

    def allocate(self, limit: Limit, *, removals: float = 1.0, differ_from: Sequence[Policy] = ()) -> Policy | None:
        """The policy of least summed sensitivity; `None` when there is none that differs from others in two units.

        Removed branches count `removals` times: what they lose compared with narrow ones differs most between a proxy
        and a fine-tuned model. Infinity keeps all branches.
        """
        table = {name: self.table[name].copy() for name in self.space.searched}
        for name, losses in table.items():
            if self.space.levels[name][0] == 0:
                # A removal that loses nothing is out of the question as well.
                losses[0] = np.inf if np.isinf(removals) else removals * losses[0]
        policy = self.solver.solve(table, limit, differ_from=differ_from)
        if policy is None:
            return None
        if not fits(self.predict([policy])[0], limit):
            fitted = fit_to_limit(policy, self.space, self.predict, limit, np.random.default_rng(0))
            if fitted is None:
                return None
            policy = fitted
        return self.widen(policy, self.space, self.predict, limit)

    def additive(self, policies: Sequence[Policy]) -> Array:
        """Summed sensitivities of policies, `[P]`."""
        return by_unit(self.space, self.table, policies).sum(axis=1)
