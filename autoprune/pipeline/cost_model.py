"""Costs of policies on the target, and the limits that budgets put on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive
from autoprune.allocation.limits import fits, require_reachable
from autoprune.budgets import BUDGET_TOLERANCE, Budget, Limit
from autoprune.evaluation import additive_costs, cost_matrix, sizes
from autoprune.latency.evidence import refit_table
from autoprune.latency.predictor import LatencyPredictor
from autoprune.latency.stand_in import MacsPredictor, StandInTable
from autoprune.latency.table import LatencyTable
from autoprune.records import COSTS, Policy, SearchSpace
from autoprune.structure import Structure

_LATENCY = COSTS.index("latency_ms")
_DEVIATIONS = 1.0
"""Standard deviations between a prediction and what most policies do not exceed."""

_DEVIATIONS_OF_PART = 0.2
"""The same for each part: errors of about 25 parts cancel, so a deviation of the sum is a fifth of one of each."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Predicts the latency of policies by a table, and counts their sizes exactly.

    `limits` maps every budget, as written, to its maxima.
    """

    structure: Structure
    table: LatencyTable | StandInTable
    limits: Mapping[str, Limit] = field(default_factory=dict)

    @cached_property
    def predictor(self) -> LatencyPredictor | MacsPredictor:
        """The predictor of the table."""
        return self.table.predictor(self.structure)

    @property
    def knows_latency(self) -> bool:
        """Whether latencies are predicted by a table; if not, no budget limits them."""
        return isinstance(self.table, LatencyTable)

    @property
    def compared(self) -> str:
        """Name of the cost that models are compared by: latency, or the first that the budgets limit without it."""
        return "latency_ms" if self.knows_latency else next(iter(self.limits.values())).limited[0]

    @property
    def dense_ms(self) -> float:
        """Measured latency of the dense model."""
        return self.table.dense_ms

    @cached_property
    def dense_costs(self) -> tuple[float, ...]:
        """Costs of the dense model in the order of `records.COSTS`; its latency is the measured one."""
        structure = self.structure
        by_name = sizes(structure, structure.widths([structure.dense_policy()])) | {"latency_ms": [self.dense_ms]}
        return tuple(float(by_name[name][0]) for name in COSTS)

    def limited_costs(self, policies: Sequence[Policy]) -> npt.NDArray[np.float64]:
        """Return the costs that the limits are about and the predicted latency, `[P, K]`; all others are 0."""
        return cost_matrix(self.structure, self.predictor, policies, self._limited | {"latency_ms"})

    @property
    def _limited(self) -> set[str]:
        return {name for limit in self.limits.values() for name in limit.limited}

    def cautious_costs(self, policies: Sequence[Policy]) -> npt.NDArray[np.float64]:
        """Return `limited_costs` with a latency that most policies do not exceed: a standard deviation is added."""
        rows = self.structure.rows(policies, self.table.layers)
        costs = cost_matrix(self.structure, self.predictor, rows, self._limited - {"latency_ms"})
        predicted = self.predictor.predict_with_sd(rows)
        costs[:, _LATENCY] = predicted.latency_ms + _DEVIATIONS * predicted.sd_ms
        return costs

    def predict_ms(self, policy: Policy) -> float:
        """Return the predicted latency of one policy."""
        return float(self.predictor.predict([policy])[0])

    def predicted_ratios(self, policies: Sequence[Policy]) -> npt.NDArray[np.float64]:
        """Return predicted latencies as shares of the dense model's, `[P]`."""
        # One at a time: a batch may round differently, and trials were predicted one at a time.
        return np.array([self.predict_ms(policy) for policy in policies]) / self.dense_ms

    def additive(self, space: SearchSpace) -> Additive:
        """Return the costs as sums of tables over the levels of a space, for the solver: parts are cautious, too."""
        return additive_costs(self.structure, self.predictor, space, _DEVIATIONS_OF_PART)

    @property
    def latency_ratios(self) -> dict[str, float]:
        """Largest latency of every budget, as a share of the dense model's; infinite where it is not limited."""
        return {budget: limit.most[_LATENCY] / self.dense_ms for budget, limit in self.limits.items()}

    def with_budgets(self, budgets: Sequence[Budget]) -> CostModel:
        """Return the model with further budgets."""
        return replace(self, limits={**self.limits, **{str(b): b.limit(self.dense_costs) for b in budgets}})

    def meets(self, budget: str, policy: Policy, ratio: float, tolerance: float = BUDGET_TOLERANCE) -> bool:
        """Return whether a policy meets a budget: its latency within the tolerance, all other costs exactly.

        Args:
            budget: as written; one that is not among the limits is of an earlier call of the run.
            policy: the policy.
            ratio: its latency as a share of the dense model's.
            tolerance: share by which the latency may pass its maximum.
        """
        limit = self.limits.get(budget) or Budget.parse(budget).limit(self.dense_costs)
        costs = cost_matrix(self.structure, self.predictor, [policy], limit.limited)[0]
        return bool(fits([ratio * self.dense_ms / (1 + tolerance), *costs[1:]], limit))

    def undecided(self, policy: Policy, ratio: float, sd: float) -> bool:
        """Return whether two standard deviations of a measured ratio decide about meeting one of the budgets."""
        low, high = ratio - 2 * sd, ratio + 2 * sd
        return any(self.meets(b, policy, low, 0.0) != self.meets(b, policy, high, 0.0) for b in self.limits)

    def corrected(self, policies: Sequence[Policy], ratios: np.ndarray) -> CostModel:
        """Return the model whose table is also fitted to policies that were measured at `ratios` `[P]` of dense."""
        assert isinstance(self.table, LatencyTable)
        table = refit_table(
            self.table,
            self.structure,
            self.structure.rows([policy.timed for policy in policies], self.table.layers),
            ratios,
        )
        return CostModel(structure=self.structure, table=table, limits=self.limits)


def reachable_costs(
    structure: Structure, table: LatencyTable | StandInTable, space: SearchSpace, budgets: Sequence[Budget]
) -> CostModel:
    """Return the cost model with the limits of all budgets.

    Raises:
        BudgetError: states the floors when no policy of the space can meet a budget.
    """
    free = CostModel(structure=structure, table=table)
    limits = {str(budget): budget.limit(free.dense_costs) for budget in budgets}
    predict = partial(cost_matrix, structure, free.predictor)
    require_reachable(space, predict, limits, additive_costs(structure, free.predictor, space))
    return CostModel(structure=structure, table=table, limits=limits)


def largest_share(limit: Limit, dense_costs: tuple[float, ...]) -> float:
    """Return what a policy on a limit costs at most, as a share of the dense model: its tightest maximum."""
    return min(1.0, *(most / dense for most, dense in zip(limit.most, dense_costs, strict=True)))
