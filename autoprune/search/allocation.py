"""From multipliers of the sensitivities to a policy that meets its limit: the solver, repaired and polished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from autoprune.budgets import Limit
from autoprune.records import Policy, SearchSpace
from autoprune.search.limits import Predict, fits
from autoprune.search.repair import fit_to_limit
from autoprune.search.sensitivity import by_unit
from autoprune.search.solver import Solver, polished

Array = npt.NDArray[np.float64]

BOUND = 1.5
"""Log-multipliers stay within this of 0: a factor of 4.5 either way."""

REMOVAL = "removed branches"

_RIDGE = 0.05
"""Pull of the regression towards one common multiplier, as a share of the squared relative error of one policy."""


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """Finds the policy of least summed sensitivity within a limit, under multipliers of each unit's sensitivities.

    `table` holds the sensitivities of every searched unit. All answers fit their limit by `predict`, which also prices
    what the solver cannot, and no unit of theirs can be widened for free.
    """

    space: SearchSpace
    solver: Solver
    table: Mapping[str, Array]
    predict: Predict

    @property
    def names(self) -> tuple[str, ...]:
        """What has a multiplier: every searched unit, and `REMOVAL` for all width-0 levels together, if there are any.

        What a removed branch costs compared with narrow ones differs most between a proxy and a fine-tuned model.
        """
        levels = self.space.levels
        removal = any(levels[name][0] == 0 for name in self.space.searched)
        return self.space.searched + ((REMOVAL,) if removal else ())

    def allocate(
        self, multipliers: Sequence[float] | Array, limit: Limit, differ_from: Sequence[Policy] = ()
    ) -> Policy | None:
        """The policy for log-multipliers `[names]`; `None` when there is none that differs.

        A multiplier of infinity for `REMOVAL` keeps all branches.
        """
        factors = dict(zip(self.names, np.exp(multipliers), strict=True))
        table = {}
        for name in self.space.searched:
            table[name] = factors[name] * self.table[name]
            if self.space.levels[name][0] == 0:
                kept = np.isinf(factors[REMOVAL])  # a removal that loses nothing is out of the question as well
                table[name][0] = np.inf if kept else factors[REMOVAL] * self.table[name][0]
        return self.solved(table, limit, differ_from)

    def solved(self, table: Mapping[str, Array], limit: Limit, differ_from: Sequence[Policy] = ()) -> Policy | None:
        """As `allocate`, for another table."""
        found = self.solver.solve(table, limit, differ_from=differ_from)
        if found is None:
            return None
        if not fits(self.predict([found])[0], limit):
            fitted = fit_to_limit(found, self.space, self.predict, limit, np.random.default_rng(0))
            if fitted is None:
                return None
            found = fitted
        return polished(found, self.space, self.predict, limit)

    def additive(self, policies: Sequence[Policy]) -> Array:
        """Summed sensitivities of policies, `[P]`."""
        return by_unit(self.space, self.table, policies).sum(axis=1)

    def fitted_multipliers(self, losses: Mapping[Policy, float]) -> Array:
        """Log-multipliers `[names]` by which the sensitivities explain measured losses best.

        Non-negative least squares of relative errors, with a ridge towards the common factor: the median of measured
        over summed losses. Every measurement counts the same, whatever its loss.
        """
        columns = self._columns(list(losses))
        measured = np.array(list(losses.values()))
        summed = columns.sum(axis=1)
        usable = (summed > 0) & (measured > 0)
        columns, measured, summed = columns[usable], measured[usable], summed[usable]
        if not len(measured):
            return np.zeros(len(self.names))
        common = float(np.median(measured / summed))
        pull = np.sqrt(_RIDGE) * np.eye(columns.shape[1])
        design = np.concatenate([common * columns / measured[:, None], pull])
        factors, _ = optimize.nnls(design, np.concatenate([np.ones(len(measured)), np.diag(pull)]))
        return np.clip(np.log(np.maximum(factors, 1e-9)), -BOUND, BOUND)

    def _columns(self, policies: Sequence[Policy]) -> Array:
        """Sensitivities of policies by multiplier, `[P, names]`."""
        columns = by_unit(self.space, self.table, policies)
        if REMOVAL not in self.names:
            return columns
        removed = np.array([[policy.widths[name] == 0 for name in self.space.searched] for policy in policies])
        removed = removed.reshape(columns.shape)
        return np.append(np.where(removed, 0.0, columns), (columns * removed).sum(axis=1)[:, None], axis=1)
