"""From multipliers to policies."""

import numpy as np
import pytest

from autoprune.search.allocation import BOUND, Allocator
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
