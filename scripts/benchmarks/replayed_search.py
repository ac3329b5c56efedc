"""Searches answered from a table of scored policies: minutes of scoring become milliseconds. No torch.

A replayed search is the package's own from end to end: controller, broker, samplers, refinement, promotion. Four
things stand in for what would leave the table, because no policy outside it has a score:

- the executor looks trials up; a policy without that score is a failed trial that costs nothing;
- the exact solver takes the row of least summed sensitivity within the limit, by going through all rows;
- a refinement breeds all rows at once;
- a sampler's proposal moves onto the nearest of the rows that fit the limit and cannot be widened inside the table.

All are arguments of the package's own functions. Costs of policies outside the table are beyond any limit, so
that nothing is widened out of it. Studies are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from replay_table import RUNGS, Array, ReplayTable, measured

from autoprune.allocation.limits import fits
from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.errors import TrialError
from autoprune.executors.inline import InlineExecutor
from autoprune.records import Policy
from autoprune.search.controller import run_search
from autoprune.search.effort import Effort
from autoprune.search.explore import Search
from autoprune.search.guided import GuidedParts, guided
from autoprune.search.refine import Refinement
from autoprune.search.strategies import STRATEGIES, Strategy
from autoprune.study.spec import StudySpec
from autoprune.trials import Fidelity, TrialResult, TrialSpec

_TRIALS, _PROMOTED = 64, (12, 3)
"""Proposals for each limit of a replayed search, and how many go on to each rung at most."""


class RowSolver:
    """Exact solver over the policies of a table, by going through all rows; the counterpart of `solver.Solver`."""

    def __init__(self, table: ReplayTable) -> None:
        self._table = table

    def solve(
        self, sensitivities: Mapping[str, Array], limit: Limit, *, differ_from: Sequence[Policy] = (), by: int = 2
    ) -> Policy | None:
        """As `Solver.solve`: the policy of least summed sensitivity within the limit; `None` when there is none."""
        table = self._table
        names = table.space.searched
        losses = np.sum([sensitivities[n][column] for n, column in zip(names, table.levels.T, strict=True)], axis=0)
        usable = fits(table.costs, limit) & np.isfinite(losses)
        for other in differ_from:
            usable &= (table.levels != table.level(other)).sum(axis=1) >= by
        return table.policies[int(np.where(usable, losses, np.inf).argmin())] if usable.any() else None


class TableExecutor(InlineExecutor):
    """Looks trials up in the table. `asked` are the results that it had, in that order."""

    def __init__(self, table: ReplayTable) -> None:
        super().__init__(lambda: self._look_up)
        self._table = table
        self.asked: list[TrialResult] = []

    def _look_up(self, spec: TrialSpec) -> TrialResult:
        known = self._table.results[spec.fidelity.name].get(spec.policy)
        if known is None:
            raise TrialError("the table has no such score")
        self.asked.append(replace(known, number=spec.number, seed=spec.seed))
        return self.asked[-1]


@dataclass(frozen=True, kw_only=True)
class Course:
    """How one limit of a replayed search went.

    `best` is the lowest proxy loss within the limit after every proxy evaluation of the search, sensitivities and other
    limits included, and `passes` are the sample passes of all evaluations until then: `[evaluations]` each. `picked` is
    the policy that the last rung put first, `None` when the table has no score of its candidates.
    """

    best: Array
    passes: Array
    picked: Policy | None

    def reached(self, loss: float) -> int | None:
        """After how many evaluations a policy of at most this loss was known."""
        reached = np.flatnonzero(self.best <= loss)
        return int(reached[0]) + 1 if reached.size else None


def replay(
    table: ReplayTable,
    strategy: str,
    limits: Sequence[Limit],
    seed: int,
    *,
    sampler: str = "tpe",
    rungs: Sequence[Fidelity] = RUNGS,
    refinement: Callable[..., Refinement] = Refinement,
) -> list[Course]:
    """Search a table with a strategy of the package, and return how every limit went.

    Args:
        table: the policies and their scores.
        strategy: `guided`, `direct`, `random` or `uniform`.
        limits: within which a policy is searched.
        seed: seed of the search.
        sampler: of the strategy `direct`.
        rungs: the fidelities that the search climbs, the first ones of the table.
        refinement: makes the refinement of one limit, for the strategy `guided`.
    """
    executor = TableExecutor(table)
    search = search_of(table, strategy, limits, seed, sampler, rungs)
    try:
        last = run_search(search, executor, strategy=strategy_of(table, strategy, refinement)).results[rungs[-1].name]
    except TrialError:
        last = []  # the table has no score of any policy that reached a rung
    return courses(executor.asked, last, limits)


def search_of(
    table: ReplayTable, strategy: str, limits: Sequence[Limit], seed: int, sampler: str, rungs: Sequence[Fidelity]
) -> Search:
    """A search over the policies of a table, whose studies are in memory."""
    effort = Effort(
        name="replay",
        trials=_TRIALS * len(limits),
        rungs=tuple(rungs),
        promoted=_PROMOTED[: len(rungs) - 1],
        full=RUNGS[-1],
        finalists=1,
    )
    return Search(
        location=Path("in-memory"),
        space=table.space,
        dense_widths=table.space.largest().widths,
        predict=table.predict,
        limits=tuple(limits),
        effort=effort,
        run_seed=seed,
        additive={},
        strategy=strategy,
        sampler=sampler,
        fit=table.nearest,
        open_study=StudiesInMemory(),
    )


def strategy_of(table: ReplayTable, name: str, refinement: Callable[..., Refinement] = Refinement) -> Strategy:
    """A strategy of the package that stays in the table."""
    if name != "guided":
        return STRATEGIES[name]
    parts = GuidedParts(
        solver=lambda space, costs: RowSolver(table),
        refinement=partial(refinement, steps=lambda policies, space, rng: table.policies),
    )
    return partial(guided, parts=parts)


class StudiesInMemory:
    """Opens studies in memory: one for each name, which stays until the search is over."""

    def __init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.InMemoryStorage()
        self._studies: dict[str, optuna.Study] = {}

    def __call__(
        self, location: object, study_spec: StudySpec, finished: object
    ) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
        """Open the study of a specification, as `storage.open_study` does."""
        del location, finished
        name = study_spec.study_name
        if name not in self._studies:
            self._studies[name] = optuna.create_study(storage=self._storage, directions=["minimize", "minimize"])
        return self._storage, self._studies[name]


def courses(asked: Sequence[TrialResult], last: Sequence[TrialResult], limits: Sequence[Limit]) -> list[Course]:
    """The course of every limit, from the trials in their order and the results of the last rung."""
    proxies = [result for result in asked if result.fidelity.name == RUNGS[0].name]
    losses = np.array([measured(result).loss for result in proxies])
    costs = np.array([measured(result).costs() for result in proxies])
    passes = np.cumsum([result.sample_passes for result in proxies])
    return [
        Course(
            best=np.minimum.accumulate(np.where(fits(costs, limit), losses, np.inf)),
            passes=passes,
            picked=next((result.policy for result in best_within(last, limit, 1)), None),
        )
        for limit in limits
    ]
