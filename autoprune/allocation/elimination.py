"""All exact allocations of one additive cost at once: variable elimination over sets of non-dominated sums.

Units are eliminated one after the other. What is left of a unit is, for every combination of levels of the units that
share a table with it, the set of (cost, loss) pairs that no other choice beats in both. In a residual network, whose
graph is a chain of streams with inner widths as leaves, few units ever stand together, so the whole front takes less
time than one limit takes a mixed-integer solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.records import Policy, SearchSpace

Array = npt.NDArray[np.float64]
Choices = npt.NDArray[np.int16]

_MOST_STATES = 4_000
"""Combinations of levels that may stand together; beyond, elimination is not the way."""

_MOST_POINTS = 20_000
"""Longer sets are thinned to so many steps of cost: what is lost costs the same as what stays, to 0.005 %."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Non-dominated sums: cost `[N]` ascending, loss `[N]` descending, and the level of every unit `[N, units]`."""

    cost: Array
    loss: Array
    choices: Choices

    def pruned(self) -> Points:
        """Without the dominated ones, by ascending cost."""
        order = np.lexsort((self.loss, self.cost))
        loss = self.loss[order]
        best = np.minimum.accumulate(loss)
        order = order[np.append(True, loss[1:] < best[:-1])]
        if len(order) > _MOST_POINTS:
            cost = self.cost[order]
            step = ((cost - cost[0]) * (_MOST_POINTS / max(cost[-1] - cost[0], 1e-300))).astype(np.int64)
            order = order[np.append(step[1:] != step[:-1], True)]  # the last of a step: its least loss
        return Points(cost=self.cost[order], loss=self.loss[order], choices=self.choices[order])

    def plus(self, other: Points) -> Points:
        """All sums with another set, over other units (an unset level is -1)."""
        cost = (self.cost[:, None] + other.cost[None]).ravel()
        loss = (self.loss[:, None] + other.loss[None]).ravel()
        choices = np.maximum(self.choices[:, None], other.choices[None]).reshape(len(cost), -1)
        return Points(cost=cost, loss=loss, choices=choices).pruned()


@dataclass(frozen=True, kw_only=True)
class _Message:
    """Points of eliminated units, for each combination of levels of the units in `scope`."""

    scope: tuple[str, ...]
    points: Mapping[tuple[int, ...], Points]


class Elimination:
    """The front of one cost in one space, under any sensitivities."""

    def __init__(self, space: SearchSpace, cost: AdditiveCost) -> None:
        self._space = space
        self._names = space.searched
        self._constant = cost.constant
        self._tables: list[CostTable] = []
        for table in cost.tables:
            values, units = table.values, tuple(u for u in table.units if u in self._names)
            for axis, name in reversed(list(enumerate(table.units))):
                values = values if name in self._names else np.take(values, 0, axis=axis)
            if units:
                self._tables.append(CostTable(units=units, values=values))
            else:
                self._constant += float(values)
        self.order = self._elimination_order()

    @property
    def possible(self) -> bool:
        """Whether there are units, and every elimination joins few enough states."""
        return bool(self.order)

    def front(self, sensitivities: Mapping[str, Array]) -> Points:
        """All non-dominated pairs of cost and summed sensitivity; infinite sensitivities forbid a level."""
        tables, messages = list(self._tables), list[_Message]()
        for name in self.order or ():
            mine = [table for table in tables if name in table.units]
            incoming = [message for message in messages if name in message.scope]
            tables = [table for table in tables if name not in table.units]
            messages = [message for message in messages if name not in message.scope]
            messages.append(self._without(name, sensitivities[name], mine, incoming))
        points = messages[0].points[()]
        for message in messages[1:]:
            points = points.plus(message.points[()])
        return Points(cost=points.cost + self._constant, loss=points.loss, choices=points.choices)

    def policy(self, choices: Choices) -> Policy:
        """The policy of one row of choices `[units]`."""
        levels = self._space.levels
        return self._space.policy({n: levels[n][int(c)] for n, c in zip(self._names, choices, strict=True)})

    def _without(self, name: str, losses: Array, tables: Sequence[CostTable], incoming: Sequence[_Message]) -> _Message:
        scope = tuple(sorted({u for part in (*tables, *incoming) for u in _scope(part)} - {name}))
        place = self._names.index(name)
        points = {}
        for state in itertools.product(*(range(len(self._space.levels[u])) for u in scope)):
            levels = dict(zip(scope, state, strict=True))
            alternatives = []
            for level, loss in enumerate(losses):
                levels[name] = level
                if np.isfinite(loss):
                    cost = sum(float(table.values[tuple(levels[u] for u in table.units)]) for table in tables)
                    alternatives.append(self._one(place, level, cost, float(loss), incoming, levels))
            points[state] = _united(alternatives)
        return _Message(scope=scope, points=points)

    def _one(
        self, place: int, level: int, cost: float, loss: float, incoming: Sequence[_Message], levels: Mapping[str, int]
    ) -> Points:
        choices = np.full((1, len(self._names)), -1, dtype=np.int16)
        choices[0, place] = level
        points = Points(cost=np.array([cost]), loss=np.array([loss]), choices=choices)
        for message in sorted(incoming, key=lambda m: len(m.points[tuple(levels[u] for u in m.scope)].cost)):
            points = points.plus(message.points[tuple(levels[u] for u in message.scope)])
        return points

    def _elimination_order(self) -> tuple[str, ...] | None:
        """Greedily the unit that brings the fewest states together; `None` when even that is too many."""
        neighbours: dict[str, set[str]] = {name: set() for name in self._names}
        for table in self._tables:
            for name in table.units:
                neighbours[name] |= set(table.units) - {name}
        order: list[str] = []
        while neighbours:
            name = min(neighbours, key=lambda n: (self._states(neighbours[n]), self._names.index(n)))
            if self._states(neighbours[name]) > _MOST_STATES:
                return None
            around = neighbours.pop(name)
            for other in around:
                neighbours[other] = (neighbours[other] | around) - {name, other}
            order.append(name)
        return tuple(order)

    def _states(self, names: Iterable[str]) -> int:
        return math.prod(len(self._space.levels[name]) for name in names)


def _scope(part: CostTable | _Message) -> tuple[str, ...]:
    return part.units if isinstance(part, CostTable) else part.scope


def _united(alternatives: Sequence[Points]) -> Points:
    return Points(
        cost=np.concatenate([points.cost for points in alternatives]),
        loss=np.concatenate([points.loss for points in alternatives]),
        choices=np.concatenate([points.choices for points in alternatives]),
    ).pruned()
