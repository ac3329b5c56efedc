"""The exact allocation: the policy of least summed sensitivity whose additive costs fit a limit.

Latency is a sum of tables, each over the levels of the units that an operator depends on. One limit on one cost is
answered by elimination (see there), where the graph allows it. For several limits at once, and for next-best answers:
with a one-hot x for every unit and a distribution y over the entries of every table whose marginals are the x (the
local marginal polytope), cost and loss are linear; y needs no integrality, because an integral x leaves it no choice.
HiGHS solves it to optimality.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from autoprune.allocation.additive import Additive, AdditiveCost
from autoprune.allocation.elimination import Elimination, Points
from autoprune.allocation.limits import Predict, fits
from autoprune.budgets import Limit
from autoprune.errors import TrialError, UsageError
from autoprune.records import COSTS, Policy, SearchSpace

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]

_MARGIN = 1e-9

_FRONTS = 8
"""Fronts that a solver keeps: all limits of a search ask for the same ones."""

_INFEASIBLE = 2
"""Status of `scipy.optimize.milp` for a problem without any answer."""


Sensitivities = Mapping[str, Array]
"""Loss of every level of every unit of the space, in the order of its levels; the largest level has 0."""


Widen = Callable[[Policy, SearchSpace, Predict, Limit], Policy]
"""The signature of `polished`."""


class Allocation(Protocol):
    """Protocol of a solver of allocations, such as `Solver`."""

    def solve(
        self, sensitivities: Sensitivities, limit: Limit, *, differ_from: Sequence[Policy] = (), by: int = 2
    ) -> Policy | None:
        """Return the policy of least summed sensitivity within the limit; see `Solver.solve`."""
        ...


class Solver:
    """Solves one space again and again, under other limits and other sensitivities.

    Raises `UsageError` for a cost table that does not belong to the space.
    """

    def __init__(self, space: SearchSpace, costs: Additive) -> None:
        self._space = space
        self._costs = costs
        self._eliminations: dict[str, Elimination] = {}
        self._fronts: dict[tuple[str, bytes], Points] = {}
        self._names = space.searched
        sizes = [len(space.levels[name]) for name in self._names]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self._columns = {n: np.arange(a, b) for n, a, b in zip(self._names, starts[:-1], starts[1:], strict=True)}
        self._binaries = int(starts[-1])
        self._tuples: dict[tuple[str, ...], Columns] = {}
        parts = {}
        for name, cost in costs.items():
            cost.require(space)
            parts[name] = self._parts(cost)
        self._marginals, self._width = self._polytope()
        self._constants = {name: constant for name, (constant, _) in parts.items()}
        self._rows = {name: self._row(columns) for name, (_, columns) in parts.items()}

    def solve(
        self, sensitivities: Sensitivities, limit: Limit, *, differ_from: Sequence[Policy] = (), by: int = 2
    ) -> Policy | None:
        """The policy of least summed sensitivity within the limit; `None` when there is none.

        It differs from every one of `differ_from` in at least `by` units. It is then the best one that no cheaper
        policy beats, which takes no time once the front is known, and the best of all where none of those is apart.
        Costs that are not additive are ignored; a sensitivity of infinity forbids a level. Raises `TrialError` when the
        solver gives up.
        """
        limited = [name for name in limit.limited if name in self._costs]
        if len(limited) != 1 or not self._elimination(limited[0]).possible:
            return self._solved(sensitivities, limit, differ_from, by)
        front = self.front(sensitivities, limited[0])
        most = limit.most[COSTS.index(limited[0])]
        inside = front.choices[: int(np.searchsorted(front.cost, most * (1 + _MARGIN), side="right"))]
        apart = np.ones(len(inside), dtype=bool)
        for policy in differ_from:
            apart &= (inside != self._space.places(policy)).sum(axis=1) >= by
        if apart.any():
            return self._elimination(limited[0]).policy(inside[np.flatnonzero(apart)[-1]])
        return self._solved(sensitivities, limit, differ_from, by) if differ_from else None

    def front(self, sensitivities: Sensitivities, cost: str = "latency_ms") -> Points:
        """Every allocation that no other beats in both this cost and summed sensitivity, the cheapest first.

        Raises `UsageError` for a net where too many units share operators; its limits are solved one by one.
        """
        elimination = self._elimination(cost)
        if not elimination.possible:
            raise UsageError("too many units share operators for the whole front; solve limits one by one")
        key = (cost, np.concatenate([sensitivities[name] for name in self._names]).tobytes())
        if key not in self._fronts:
            self._fronts = dict([*self._fronts.items()][1 - _FRONTS :]) | {key: elimination.front(sensitivities)}
        return self._fronts[key]

    def _elimination(self, cost: str) -> Elimination:
        if cost not in self._eliminations:
            self._eliminations[cost] = Elimination(self._space, self._costs[cost])
        return self._eliminations[cost]

    def _solved(
        self, sensitivities: Sensitivities, limit: Limit, differ_from: Sequence[Policy], by: int
    ) -> Policy | None:
        objective = np.zeros(self._width)
        for name, columns in self._columns.items():
            objective[columns] = sensitivities[name]
        highest = np.ones(self._width)
        highest[~np.isfinite(objective)] = 0
        objective[~np.isfinite(objective)] = 0
        scale = float(np.abs(objective).max()) or 1.0
        constraints = [self._marginals, *self._limits(limit), *(self._apart(p, by) for p in differ_from)]
        integrality = np.zeros(self._width)
        integrality[: self._binaries] = 1
        with _silent():
            solution = optimize.milp(
                objective / scale,
                constraints=constraints,
                bounds=optimize.Bounds(0, highest),  # pyright: ignore[reportArgumentType]
                integrality=integrality,
                options={"mip_rel_gap": 1e-6},
            )
        if solution.status == _INFEASIBLE:
            return None
        if solution.x is None:
            raise TrialError(f"the allocation could not be solved: {solution.message}")
        choices = {}
        for name, columns in self._columns.items():
            choices[name] = self._space.levels[name][int(np.argmax(solution.x[columns]))]
        return self._space.policy(choices)

    def _limits(self, limit: Limit) -> list[optimize.LinearConstraint]:
        constraints = []
        for name, most in zip(COSTS, limit.most, strict=True):
            if name in self._rows and np.isfinite(most):
                room = most - self._constants[name]
                # In shares of the limit, so that milliseconds and bytes mean the same to the solver.
                row = sparse.csr_array(self._rows[name][None] / most)
                constraints.append(optimize.LinearConstraint(row, -np.inf, room / most - _MARGIN))
        return constraints

    def _apart(self, policy: Policy, by: int) -> optimize.LinearConstraint:
        row = np.zeros(self._width)
        for name, columns in self._columns.items():
            row[columns[self._space.levels[name].index(policy.level(name))]] = 1
        return optimize.LinearConstraint(row[None], -np.inf, max(len(self._names) - by, 0))

    def _parts(self, cost: AdditiveCost) -> tuple[float, list[tuple[Columns, Array]]]:
        """Constant and columns of a cost; axes of units that are not searched are taken at their only level."""
        constant, parts = cost.constant, []
        for table in cost.tables:
            values, units = table.values, []
            for name in table.units:
                if name in self._columns:
                    units.append(name)
                else:
                    values = np.take(values, 0, axis=len(units))
            if units:
                parts.append((self._columns_of(tuple(units), values.shape), values))
            else:
                constant += float(values)
        return constant, parts

    def _columns_of(self, units: tuple[str, ...], shape: tuple[int, ...]) -> Columns:
        """Columns of the entries of a table over searched units, made at first use; of one unit they are its own."""
        if len(units) == 1:
            return self._columns[units[0]]
        if units not in self._tuples:
            start = self._binaries + sum(columns.size for columns in self._tuples.values())
            self._tuples[units] = np.arange(start, start + int(np.prod(shape))).reshape(shape)
        return self._tuples[units]

    def _row(self, parts: Sequence[tuple[Columns, Array]]) -> Array:
        row = np.zeros(self._width)
        for columns, values in parts:
            np.add.at(row, columns.ravel(), values.ravel())
        return row

    def _polytope(self) -> tuple[optimize.LinearConstraint, int]:
        """One-hot rows, and for every table and each of its units: marginals equal the unit's one-hot."""
        width = self._binaries + sum(columns.size for columns in self._tuples.values())
        rows: list[tuple[Columns, Columns, float]] = []
        for columns in self._columns.values():
            rows.append((columns, np.empty(0, dtype=np.int64), 1.0))
        for units, columns in self._tuples.items():
            for axis, unit in enumerate(units):
                for level, own in enumerate(self._columns[unit]):
                    rows.append((np.take(columns, level, axis=axis).ravel(), np.array([own]), 0.0))
        matrix = sparse.lil_array((len(rows), width))
        for number, (plus, minus, _) in enumerate(rows):
            matrix[number, plus] = 1
            matrix[number, minus] = -1
        sums = np.array([total for _, _, total in rows])
        return optimize.LinearConstraint(matrix.tocsr(), sums, sums), width  # pyright: ignore[reportArgumentType]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what HiGHS prints in spite of its options (of solutions that it repairs) out of the terminal."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def polished(policy: Policy, space: SearchSpace, predict: Predict, limit: Limit) -> Policy:
    """Raise single decisions by a level while the policy still fits: what costs nothing need not be given up."""
    return polished_together([policy], space, predict, limit)[0]


def polished_together(policies: Sequence[Policy], space: SearchSpace, predict: Predict, limit: Limit) -> list[Policy]:
    """Return each policy as `polished` does, with one prediction for a step of all of them.

    A decision that did not fit once seldom fits after others were raised, so it is tried again at the end alone.
    """
    rising = [_Rising(space, policy) for policy in policies]
    while moving := [each for each in rising if each.open]:
        candidates = [each.raised() for each in moving]
        fitting = iter(fits(predict([policy for some in candidates for policy in some]), limit).tolist())
        for each in moving:
            each.take([place for place in each.open if next(fitting)])
    return [space.at(each.places) for each in rising]


class _Rising:
    """A policy whose decisions are raised; `open` are the places in `space.searched` of those that may still fit."""

    def __init__(self, space: SearchSpace, policy: Policy) -> None:
        self._space = space
        self._tops = [len(space.levels[name]) - 1 for name in space.searched]
        self.places = space.places(policy)
        self.open: list[int] = []
        self._every = False
        self._open_all()

    def raised(self) -> list[Policy]:
        """Return the policies with one open decision a level up."""
        return [self._space.at([*self.places[:n], self.places[n] + 1, *self.places[n + 1 :]]) for n in self.open]

    def take(self, fitting: Sequence[int]) -> None:
        """Raise the first decision that fits; where none does, try all once more, and then end."""
        if fitting:
            self.places[fitting[0]] += 1
            self.open = [place for place in fitting if self.places[place] < self._tops[place]]
            self._every = False
        else:
            self.open = []
        if not self.open and not self._every:
            self._open_all()

    def _open_all(self) -> None:
        self.open = [n for n, top in enumerate(self._tops) if self.places[n] < top]
        self._every = True
