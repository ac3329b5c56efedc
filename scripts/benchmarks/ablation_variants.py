"""Variants of the guided search with one thing changed each, out of the package's own parts.

A variant changes the configuration, the space, the parts of the guided strategy, or the dense model that the
chosen policy cuts. What it does not name is that of the guided search.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import Additive, AdditiveCost, CostTable
from autoprune.allocation.limits import Predict, fits
from autoprune.allocation.solver import Solver
from autoprune.budgets import Limit
from autoprune.evaluation import DenseModel
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.channel_order import calibration
from autoprune.pipeline.preparation import Prepared
from autoprune.pruning import channel_order, score_units
from autoprune.records import COSTS, Policy, SearchSpace, digest_of
from autoprune.search.baselines.halp import lost_importance
from autoprune.search.explore import Search
from autoprune.search.guided import GuidedParts
from autoprune.search.refine import Losses, Refinement
from autoprune.search.sensitivity import by_unit, single_unit_policies
from autoprune.search.surrogate import Surrogate, Trend

Array = npt.NDArray[np.float64]
Table = dict[str, Array]

_GRID = 4
"""Widths of a space without efficient levels are multiples of this, as someone chooses who has no table."""


def _same_space(prepared: Prepared) -> SearchSpace:
    return prepared.space


def _same_dense_model(prepared: Prepared) -> DenseModel:
    return prepared.dense_model


def _same_parts(prepared: Prepared) -> GuidedParts:
    return GuidedParts()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the ablation.

    `options` are those of the run. `space` is what is searched and `parts` are those of the guided strategy. `rungs`
    says how many of the rungs choose the policy, and `dense_model` what it cuts.
    """

    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    space: Callable[[Prepared], SearchSpace] = _same_space
    parts: Callable[[Prepared], GuidedParts] = _same_parts
    rungs: int = 3
    dense_model: Callable[[Prepared], DenseModel] = _same_dense_model

    @property
    def scores_alike(self) -> bool:
        """Whether a policy has the same score as in the full algorithm, whose study then has many of its scores."""
        return not self.options and self.space is _same_space


class OtherCost(Solver):
    """The solver under another additive cost, its answers scaled until their latency by the table fits.

    Of the front of summed sensitivity over the other cost, it takes the answer of least sensitivity that fits.
    """

    def __init__(self, space: SearchSpace, costs: Additive, other: AdditiveCost) -> None:
        super().__init__(space, {"macs": other})
        self._levels = space
        self._latency = costs["latency_ms"]

    def solve(
        self, sensitivities: Mapping[str, Array], limit: Limit, *, differ_from: Sequence[Policy] = (), by: int = 2
    ) -> Policy | None:
        """As `Solver.solve`, among the answers to the other cost."""
        space, front = self._levels, self.front(sensitivities, "macs")
        names = list(space.searched)
        usable = self._latency_of(front.choices, names) <= limit.most[COSTS.index("latency_ms")]
        for policy in differ_from:
            place = np.array([space.levels[name].index(policy.widths[name]) for name in names])
            usable &= (front.choices != place).sum(axis=1) >= by
        if not usable.any():
            return None
        choice = front.choices[np.flatnonzero(usable)[-1]]
        return space.policy({name: space.levels[name][int(c)] for name, c in zip(names, choice, strict=True)})

    def _latency_of(self, choices: npt.NDArray[np.int16], names: Sequence[str]) -> Array:
        total = np.full(len(choices), self._latency.constant)
        for table in self._latency.tables:
            columns = [choices[:, names.index(unit)] if unit in names else 0 for unit in table.units]
            total += table.values[tuple(columns)]
        return total


def by_macs(space: SearchSpace, costs: Additive) -> Solver:
    """A1: multiplications instead of the latency table."""
    return OtherCost(space, costs, costs["macs"])


def by_linear_latency(space: SearchSpace, costs: Additive) -> Solver:
    """A2: every unit saves what it saves alone, all others full: no table over two units."""
    latency = costs["latency_ms"]
    dense = float(latency.of(space, [space.largest()])[0])
    tables = [
        CostTable(units=(n,), values=latency.of(space, [space.policy({n: w}) for w in space.levels[n]]) - dense)
        for n in space.searched
    ]
    return OtherCost(space, costs, AdditiveCost(constant=dense, tables=tuple(tables)))


class SolverAlone(Refinement):
    """A8: the answer to the plain sensitivities, and nothing else."""

    def propose(self, losses: Losses, running: Collection[Policy] = ()) -> dict[Policy, str]:
        """The solver's answer, once."""
        return dict(list(super().propose(losses, running).items())[:1]) if self.solution is None else {}

    def refit(self, tuned: Losses, losses: Losses) -> list[Policy]:
        """None."""
        return []


class Unlearned(Surrogate):
    """A8b: a surrogate that learns nothing: it expects what the summed sensitivities say."""

    def __init__(
        self, space: SearchSpace, table: Mapping[str, Array], losses: Mapping[Policy, float], trend: Trend | None = None
    ) -> None:
        super().__init__(space, table, {}, trend)


def _with(**parts: Any) -> Callable[[Prepared], GuidedParts]:
    return lambda prepared: GuidedParts(**parts)


def _taylor(search: Search, prepared: Prepared) -> Table:
    """Summed Taylor importance of the channels that a level removes."""
    importance = score_units(
        prepared.dense_model.structure, "taylor", calibration(prepared.dense_model.task, prepared.deployment.seed)
    )
    return lost_importance(replace(search, importance=importance))


def _quadratic(search: Search, prepared: Prepared) -> Table:
    """The square of how many levels are gone, as a share: nothing is measured."""
    table = {}
    for name in search.space.searched:
        last = len(search.space.levels[name]) - 1
        table[name] = (np.arange(last, -1, -1) / last) ** 2
    return table


def _prior(table_of: Callable[[Search, Prepared], Table]) -> Callable[[Prepared], GuidedParts]:
    """Sensitivities that are not measured, scaled so that they sum to the uniform policies' measured losses."""

    def parts(prepared: Prepared) -> GuidedParts:
        def prior(search: Search, losses: Losses) -> Table:
            table = table_of(search, prepared)
            summed = by_unit(search.space, table, list(losses)).sum(axis=1)
            scale = float(np.median(np.array(list(losses.values())) / summed)) if losses else 1.0
            return {name: scale * values for name, values in table.items()}

        return GuidedParts(prior=prior)

    return parts


def _space(prepared: Prepared, levels: Mapping[str, tuple[int, ...]]) -> SearchSpace:
    return SearchSpace(id=digest_of({name: list(widths) for name, widths in levels.items()}), levels=levels)


def every_level(prepared: Prepared) -> SearchSpace:
    """A3: all multiples of four that the table knows, instead of the widths that pay."""
    removable = {unit.name for unit in prepared.dense_model.structure.units if unit.removable}
    full = prepared.dense_model.structure.full_widths
    levels = {}
    assert isinstance(prepared.costs.table, LatencyTable)
    scanned = prepared.costs.table.space
    for name in scanned.unit_names:
        widths = {width for width in scanned.widths_of(name) if width % _GRID == 0 and width} | {full[name]}
        levels[name] = tuple(sorted(widths | ({0} if name in removable else set())))
    return _space(prepared, levels)


def inner_widths(prepared: Prepared) -> SearchSpace:
    """A4: units inside a residual branch alone; the streams stay whole."""
    inner = {unit.name for unit in prepared.dense_model.structure.units if unit.removable}
    known = {name: prepared.space.widths_of(name) for name in prepared.space.unit_names}
    levels = {name: widths if name in inner else widths[-1:] for name, widths in known.items()}
    return _space(prepared, levels)


def all_blocks(prepared: Prepared) -> SearchSpace:
    """A4b: no branch is removed."""
    return _space(prepared, {n: tuple(w for w in prepared.space.widths_of(n) if w) for n in prepared.space.unit_names})


def _not_widened(policy: Policy, space: SearchSpace, predict: Predict, limit: Limit) -> Policy:
    return policy


def _ranked(score: str) -> Callable[[Prepared], DenseModel]:
    def dense_model(prepared: Prepared) -> DenseModel:
        data = calibration(prepared.dense_model.task, prepared.deployment.seed)
        return replace(
            prepared.dense_model, order=channel_order(score_units(prepared.dense_model.structure, score, data))
        )

    return dense_model


def _undistilled(prepared: Prepared) -> DenseModel:
    task = prepared.dense_model.task
    return replace(
        prepared.dense_model, task=replace(task, finetune_recipe=replace(task.tuning_recipe, distill_weight=0.0))
    )


_UNLEARNED = partial(Refinement, surrogate=Unlearned)

VARIANTS: Mapping[str, Variant] = {
    "A0": Variant(what="the full algorithm"),
    "A1": Variant(what="MACs instead of the latency table", parts=_with(solver=by_macs)),
    "A2": Variant(what="linear latency", parts=_with(solver=by_linear_latency)),
    "A3": Variant(what="every fourth width, no free widening", space=every_level, parts=_with(widen=_not_widened)),
    "A4": Variant(what="inner widths alone", space=inner_widths),
    "A4b": Variant(what="no block removed", space=all_blocks),
    "A5": Variant(what="Taylor sums as sensitivities", parts=_prior(_taylor)),
    "A5b": Variant(what="a quadratic prior as sensitivities", parts=_prior(_quadratic)),
    "A5c": Variant(what="every level measured", parts=_with(anchors=single_unit_policies)),
    "A6": Variant(what="no least squares", options={"reconstruct": False}),
    "A7-l2": Variant(what="channels by l2 inside the widths of the search", dense_model=_ranked("l2")),
    "A7-taylor": Variant(what="channels by Taylor inside the widths of the search", dense_model=_ranked("taylor")),
    "A7-random": Variant(what="random channels inside the widths of the search", dense_model=_ranked("random")),
    "A8": Variant(what="the solver's answer alone", parts=_with(refinement=SolverAlone)),
    "A8b": Variant(what="a surrogate that learns nothing", parts=_with(refinement=_UNLEARNED)),
    "A9-proxy": Variant(what="chosen by the proxy", rungs=1),
    "A9-brief": Variant(what="chosen by the brief rung", rungs=2),
    "A10": Variant(what="no distillation in the fine-tune", dense_model=_undistilled),
}
"""By row: ALGORITHM rows A1 to A10, the full algorithm first."""


def reachable(prepared: Prepared) -> dict[str, Limit]:
    """The budgets that the smallest policy of the space fits."""
    (floor,) = prepared.costs.limited_costs([prepared.space.smallest()])
    return {budget: limit for budget, limit in prepared.costs.limits.items() if fits(floor, limit)}
