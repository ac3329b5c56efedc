"""The solver against brute force on small spaces."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.allocation.additive import AdditiveCost, CostTable
from autoprune.allocation.solver import Solver, polished, polished_together
from autoprune.budgets import Limit
from autoprune.errors import TrialError, UsageError
from autoprune.records import COSTS, SearchSpace

SIZES = {"a": 3, "b": 2, "c": 4, "fixed": 1}
SPACE = SearchSpace(id="s", levels={name: tuple(range(1, size + 1)) for name, size in SIZES.items()})
GROUPS = (("a",), ("a", "b"), ("b", "c"), ("c", "fixed"), ("a", "b", "c"), ("fixed",))


def limit_of(**most):
    return Limit(most=tuple(most.get(name, math.inf) for name in COSTS))


def random_cost(rng):
    tables = [CostTable(units=g, values=rng.uniform(0, 1, [SIZES[u] for u in g])) for g in GROUPS]
    return AdditiveCost(constant=float(rng.uniform(0, 0.5)), tables=tuple(tables))


def price(cost, policy):
    return float(cost.of(SPACE, [policy])[0])


def every_policy():
    levels = [SPACE.levels[name] for name in SPACE.searched]
    return [SPACE.policy(dict(zip(SPACE.searched, widths, strict=True))) for widths in itertools.product(*levels)]


def loss(table, policy):
    return sum(float(table[n][SPACE.levels[n].index(policy.widths[n])]) for n in SPACE.searched)


def losses(rng):
    return {n: np.append(np.sort(rng.uniform(0, 1, SIZES[n] - 1))[::-1], 0.0) for n in SPACE.searched}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), two=st.booleans())
def test_no_policy_within_the_limits_loses_less(seed, share, two):
    rng = np.random.default_rng(seed)
    costs = {"latency_ms": random_cost(rng)} | ({"bytes": random_cost(rng)} if two else {})
    table = losses(rng)
    prices = {name: [price(cost, policy) for policy in every_policy()] for name, cost in costs.items()}
    most = {name: float(np.quantile(costs_of_all, share)) + 1e-6 for name, costs_of_all in prices.items()}
    solver = Solver(SPACE, costs)
    policy = solver.solve(table, limit_of(**most))
    fitting = [p for p in every_policy() if all(price(c, p) <= most[name] for name, c in costs.items())]
    mixed = solver._solved(table, limit_of(**most), (), 2)
    if not fitting:
        assert policy is mixed is None
        return
    assert loss(table, mixed) == pytest.approx(loss(table, policy), abs=1e-6)
    assert policy is not None
    assert all(price(cost, policy) <= most[name] for name, cost in costs.items())
    assert loss(table, policy) == pytest.approx(min(loss(table, p) for p in fitting), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_front_holds_every_policy_that_no_other_beats(seed):
    rng = np.random.default_rng(seed)
    cost, table = random_cost(rng), losses(rng)
    solver = Solver(SPACE, {"latency_ms": cost})
    front = solver.front(table)
    policies = every_policy()
    points = sorted((price(cost, p), loss(table, p)) for p in policies)
    best, wanted = math.inf, []
    for x, y in points:
        if y < best:
            best = y
            wanted.append((x, y))
    assert front.cost.tolist() == pytest.approx([x for x, _ in wanted])
    assert front.loss.tolist() == pytest.approx([y for _, y in wanted], abs=1e-12)
    elimination = solver._elimination("latency_ms")
    assert [price(cost, elimination.policy(row)) for row in front.choices] == pytest.approx(front.cost.tolist())


def test_long_fronts_are_thinned_and_hold_real_policies(monkeypatch):
    rng = np.random.default_rng(5)
    cost, table = random_cost(rng), losses(rng)
    whole = Solver(SPACE, {"latency_ms": cost}).front(table)
    monkeypatch.setattr("autoprune.allocation.elimination._MOST_POINTS", 2)
    thin = Solver(SPACE, {"latency_ms": cost}).front(table)
    assert len(thin.cost) <= 3 < len(whole.cost)
    policies = every_policy()
    for x, y in zip(thin.cost, thin.loss, strict=True):
        assert any(price(cost, p) == pytest.approx(x) and loss(table, p) == pytest.approx(y) for p in policies)


def test_too_many_units_together_are_solved_one_by_one(monkeypatch):
    rng = np.random.default_rng(2)
    cost, table = random_cost(rng), losses(rng)
    wanted = Solver(SPACE, {"latency_ms": cost}).solve(table, limit_of(latency_ms=3.0))
    monkeypatch.setattr("autoprune.allocation.elimination._MOST_STATES", 1)
    solver = Solver(SPACE, {"latency_ms": cost})
    assert loss(table, solver.solve(table, limit_of(latency_ms=3.0))) == pytest.approx(loss(table, wanted))
    with pytest.raises(UsageError, match="one by one"):
        solver.front(table)


def test_answers_that_must_differ_are_the_next_ones_that_no_cheaper_policy_beats():
    rng = np.random.default_rng(3)
    cost, table = random_cost(rng), losses(rng)
    solver, limit = Solver(SPACE, {"latency_ms": cost}), limit_of(latency_ms=3.0)
    points = solver.front(table)
    front = [lost for spent, lost in zip(points.cost, points.loss, strict=True) if spent <= 3.0]
    policies = []
    for _ in range(4):
        policies.append(solver.solve(table, limit, differ_from=policies, by=1))
    found = [loss(table, policy) for policy in policies]
    assert found[: len(front)] == pytest.approx(sorted(front)[:4])
    assert len(set(policies)) == 4
    assert all(price(cost, policy) <= 3.0 for policy in policies)


def test_answers_that_must_differ_are_the_next_best_where_limits_are_solved_one_by_one(monkeypatch):
    monkeypatch.setattr("autoprune.allocation.elimination._MOST_STATES", 1)
    rng = np.random.default_rng(3)
    cost, table = random_cost(rng), losses(rng)
    solver, limit = Solver(SPACE, {"latency_ms": cost}), limit_of(latency_ms=3.0)
    policies = []
    for _ in range(4):
        policies.append(solver.solve(table, limit, differ_from=policies, by=1))
    best = sorted((p for p in every_policy() if price(cost, p) <= 3.0), key=lambda p: loss(table, p))
    assert [loss(table, p) for p in policies] == pytest.approx([loss(table, p) for p in best[:4]])
    assert len(set(policies)) == 4


def test_nothing_fits():
    solver = Solver(SPACE, {"latency_ms": random_cost(np.random.default_rng(0))})
    assert solver.solve(losses(np.random.default_rng(0)), limit_of(latency_ms=1e-3)) is None


def test_what_is_free_is_widened():
    flat = AdditiveCost(constant=1.0, tables=(CostTable(units=("a",), values=np.array([0.0, 0.0, 1.0])),))

    def predict(policies):
        return np.array([[price(flat, p), 0, 0, 0, 0] for p in policies])

    smallest = SPACE.policy({"a": 1, "b": 1, "c": 1})
    assert polished(smallest, SPACE, predict, limit_of(latency_ms=1.5)) == SPACE.policy({"a": 2, "b": 2, "c": 4})


def test_policies_are_widened_together_as_they_are_one_by_one():
    def predict(policies):
        return np.array([[float(sum(p.widths.values())), 0, 0, 0, 0] for p in policies])

    rng, limit = np.random.default_rng(0), limit_of(latency_ms=6)
    policies = [SPACE.at([int(rng.integers(len(SPACE.levels[n]))) for n in SPACE.searched]) for _ in range(20)]
    alone = [polished(policy, SPACE, predict, limit) for policy in policies]
    assert polished_together(policies, SPACE, predict, limit) == alone
    assert polished_together([], SPACE, predict, limit) == []
    assert len(set(alone)) > 1


def test_a_forbidden_level_is_not_taken():
    rng = np.random.default_rng(1)
    cost, table = random_cost(rng), losses(rng)
    solver = Solver(SPACE, {"latency_ms": cost})
    free = solver.solve(table, limit_of(latency_ms=3.0))
    place = SPACE.levels["c"].index(free.widths["c"])
    table["c"] = np.where(np.arange(SIZES["c"]) == place, math.inf, table["c"])
    policy = solver.solve(table, limit_of(latency_ms=3.0))
    assert policy.widths["c"] != free.widths["c"]


def test_a_table_of_other_levels_or_with_holes_is_refused():
    for values in (np.zeros((3, 3)), np.full((3, 2), np.nan)):
        cost = AdditiveCost(constant=0.0, tables=(CostTable(units=("a", "b"), values=values),))
        with pytest.raises(UsageError, match=r"over a, b is a number for each combination of levels \(3, 2\)"):
            Solver(SPACE, {"latency_ms": cost})


def test_a_solver_that_gives_up_is_no_infeasible_limit(monkeypatch):
    class Stopped:
        status, x, message = 1, None, "time limit"

    monkeypatch.setattr("autoprune.allocation.elimination._MOST_STATES", 1)
    monkeypatch.setattr("autoprune.allocation.solver.optimize.milp", lambda *_, **__: Stopped)
    rng = np.random.default_rng(0)
    solver = Solver(SPACE, {"latency_ms": random_cost(rng)})
    with pytest.raises(TrialError, match="time limit"):
        solver.solve(losses(rng), limit_of(latency_ms=3.0), differ_from=[SPACE.smallest()])
