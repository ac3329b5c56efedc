"""From multipliers to policies."""

import numpy as np
import pytest

from autoprune.additive import AdditiveCost, CostTable
from autoprune.budgets import Limit
from autoprune.records import COSTS, SearchSpace
from autoprune.search.allocation import BOUND, REMOVAL, Allocator
from autoprune.search.limits import fits
from autoprune.search.sensitivity import sensitivities, single_unit_policies
from autoprune.search.solver import Solver
from tests.search.fakes import ADDITIVE, LIMITS, SPACE, loss_of, predict

TABLE = sensitivities(SPACE, {p: loss_of(p) - loss_of(SPACE.largest()) for p in single_unit_policies(SPACE)})
PLAIN = np.zeros(len(SPACE.searched))


def allocator(predict=predict, additive=ADDITIVE):
    return Allocator(space=SPACE, solver=Solver(SPACE, additive), table=TABLE, predict=predict)


def test_plain_sensitivities_find_the_optimum_of_an_additive_world():
    rng = np.random.default_rng(0)
    for limit in LIMITS:
        found = allocator().allocate(PLAIN, limit)
        assert fits(predict([found])[0], limit)
        drawn = [SPACE.policy({n: int(rng.choice(levels)) for n, levels in SPACE.levels.items()}) for _ in range(2_000)]
        best = min(loss_of(p) for p, cost in zip(drawn, predict(drawn), strict=True) if fits(cost, limit))
        assert loss_of(found) <= best + 1e-9


def test_a_multiplier_protects_its_unit():
    vector = PLAIN.copy()
    vector[2] = BOUND
    plain, protected = (allocator().allocate(v, LIMITS[1]) for v in (PLAIN, vector))
    assert protected.widths["unit2"] > plain.widths["unit2"]


def test_an_answer_that_costs_more_than_the_solver_thought_is_repaired():
    def dearer(policies):
        return predict(policies) * 1.1

    found = allocator(dearer).allocate(PLAIN, LIMITS[1])
    assert fits(dearer([found])[0], LIMITS[1])
    assert not fits(dearer([allocator().allocate(PLAIN, LIMITS[1])])[0], LIMITS[1])


def test_the_regression_finds_the_multipliers_of_the_truth():
    truth = np.array([0.8, -0.6, 0.0, 0.3, -0.9, 0.5])
    rng = np.random.default_rng(1)
    drawn = [SPACE.policy({n: int(rng.choice(levels)) for n, levels in SPACE.levels.items()}) for _ in range(60)]
    factors = dict(zip(SPACE.searched, np.exp(truth), strict=True))
    scaled = {n: factors[n] * TABLE[n] for n in factors}
    found = allocator().fitted_multipliers(
        {p: sum(scaled[n][SPACE.levels[n].index(p.widths[n])] for n in scaled) for p in drawn}
    )
    # What matters is how units compare: a common factor changes no allocation.
    assert found - found.mean() == pytest.approx(truth - truth.mean(), abs=0.3)
    assert np.corrcoef(found, truth)[0, 1] > 0.98


def test_without_measurements_all_multipliers_are_equal():
    assert allocator().fitted_multipliers({}).tolist() == PLAIN.tolist()
    assert allocator().fitted_multipliers({SPACE.largest(): 0.0}).tolist() == PLAIN.tolist()


REMOVABLE = SearchSpace(id="r", levels={"a": (0, 2, 4), "b": (0, 2, 4), "c": (2, 4)})
HARMS = {"a": np.array([1.0, 0.9, 0.0]), "b": np.array([1.2, 0.5, 0.0]), "c": np.array([0.8, 0.0])}


def removable():
    tables = [CostTable(units=(n,), values=np.array(levels, dtype=float)) for n, levels in REMOVABLE.levels.items()]
    cost = AdditiveCost(constant=0.0, tables=tuple(tables))

    def priced(policies):
        found = np.ones((len(policies), len(COSTS)))
        found[:, 0] = cost.of(REMOVABLE, policies)
        return found

    return Allocator(space=REMOVABLE, solver=Solver(REMOVABLE, {"latency_ms": cost}), table=HARMS, predict=priced)


def test_removals_have_a_multiplier_of_their_own():
    limit = Limit.of(latency_ms=8.0)
    assert removable().names == ("a", "b", "c", REMOVAL)
    assert allocator().names == SPACE.searched
    free, dear, never = (removable().allocate([0, 0, 0, penalty], limit).widths for penalty in (0.0, BOUND, np.inf))
    assert free["a"] == 0
    assert 0 not in {*dear.values(), *never.values()}
    assert removable().allocate([0, 0, 0, np.inf], Limit.of(latency_ms=4.0)) is None


def test_the_regression_tells_removals_from_widths():
    """Fine-tuning that heals narrow layers and not removed ones: only the last multiplier grows."""
    policies = [REMOVABLE.policy({"a": a, "b": b, "c": c}) for a in (0, 2, 4) for b in (0, 2, 4) for c in (2, 4)]
    losses = {}
    for policy in policies:
        parts = {n: HARMS[n][REMOVABLE.levels[n].index(w)] for n, w in policy.widths.items()}
        losses[policy] = sum(3 * x if policy.widths[n] == 0 else x for n, x in parts.items())
    found = removable().fitted_multipliers(losses)
    assert found[3] - found[:3].mean() == pytest.approx(np.log(3), abs=0.35)
