"""From sensitivities to policies."""

import numpy as np

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.allocation.limits import fits
from autoprune.allocation.solver import Solver
from autoprune.budgets import Limit
from autoprune.records import COSTS, SearchSpace
from autoprune.search.allocator import Allocator
from autoprune.search.sensitivity import sensitivities, single_unit_policies
from tests.fakes import ADDITIVE, LIMITS, SPACE, loss_of, predict

TABLE = sensitivities(SPACE, {p: loss_of(p) - loss_of(SPACE.largest()) for p in single_unit_policies(SPACE)})


def allocator(predict=predict, additive=ADDITIVE):
    return Allocator(space=SPACE, solver=Solver(SPACE, additive), table=TABLE, predict=predict)


def test_plain_sensitivities_find_the_optimum_of_an_additive_world():
    rng = np.random.default_rng(0)
    for limit in LIMITS:
        policy = allocator().allocate(limit)
        assert fits(predict([policy])[0], limit)
        drawn = [SPACE.policy({n: int(rng.choice(levels)) for n, levels in SPACE.levels.items()}) for _ in range(2_000)]
        best = min(loss_of(p) for p, cost in zip(drawn, predict(drawn), strict=True) if fits(cost, limit))
        assert loss_of(policy) <= best + 1e-9


def test_an_answer_that_costs_more_than_the_solver_thought_is_repaired():
    def dearer(policies):
        return predict(policies) * 1.1

    policy = allocator(dearer).allocate(LIMITS[1])
    assert fits(dearer([policy])[0], LIMITS[1])
    assert not fits(dearer([allocator().allocate(LIMITS[1])])[0], LIMITS[1])


REMOVABLE = SearchSpace(id="r", levels={"a": (0, 2, 4), "b": (0, 2, 4), "c": (2, 4)})
HARMS = {"a": np.array([1.0, 0.9, 0.0]), "b": np.array([1.2, 0.5, 0.0]), "c": np.array([0.8, 0.0])}


def removable():
    tables = [CostTable(units=(n,), values=np.array(levels, dtype=float)) for n, levels in REMOVABLE.levels.items()]
    cost = AdditiveCost(constant=0.0, tables=tuple(tables))

    def priced(policies):
        matrix = np.ones((len(policies), len(COSTS)))
        matrix[:, 0] = cost.of(REMOVABLE, policies)
        return matrix

    return Allocator(space=REMOVABLE, solver=Solver(REMOVABLE, {"latency_ms": cost}), table=HARMS, predict=priced)


def test_removals_can_count_more_than_they_lose():
    limit = Limit.of(latency_ms=8.0)
    assert removable().removable
    assert not allocator().removable
    free, dear, never = (removable().allocate(limit, removals=factor).widths for factor in (1.0, 4.5, np.inf))
    assert free["a"] == 0
    assert 0 not in {*dear.values(), *never.values()}
    assert removable().allocate(Limit.of(latency_ms=4.0), removals=np.inf) is None
    assert HARMS["a"][0] == 1.0, "the table is as it was"


def test_next_answers_differ_in_two_units():
    first = allocator().allocate(LIMITS[1])
    second = allocator().allocate(LIMITS[1], differ_from=[first])
    assert sum(first.widths[name] != second.widths[name] for name in SPACE.searched) >= 2
    assert loss_of(second) >= loss_of(first)
    assert removable().allocate(Limit.of(latency_ms=2.0)) is not None
    assert removable().allocate(Limit.of(latency_ms=1.0)) is None
