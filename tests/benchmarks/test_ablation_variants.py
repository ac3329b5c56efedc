"""Variants of the guided search differ from it in the part that they name."""

from __future__ import annotations

import itertools
from functools import partial

from ablation_variants import OtherCost, SolverAlone, Unlearned, by_linear_latency, by_macs

from autoprune.allocation.limits import fits
from autoprune.allocation.solver import Solver
from autoprune.search.refine import Refinement
from autoprune.search.sensitivity import single_unit_policies
from tests.fakes import ADDITIVE, LIMITS, SPACE, loss_of, predict
from tests.search.test_allocator import TABLE, allocator
from tests.search.test_surrogate import joint_loss

LIMIT = LIMITS[1]


def test_with_the_same_cost_the_answer_is_the_solvers():
    other = OtherCost(SPACE, ADDITIVE, ADDITIVE["latency_ms"]).solve(TABLE, LIMIT)
    assert other is not None
    assert loss_of(other) == loss_of(Solver(SPACE, ADDITIVE).solve(TABLE, LIMIT))


def test_with_another_cost_it_fits_and_is_worse():
    costs = {"latency_ms": ADDITIVE["latency_ms"], "macs": ADDITIVE["params"]}
    solver = by_macs(SPACE, costs)
    policy = solver.solve(TABLE, LIMIT)
    assert fits(predict([policy])[0], LIMIT)
    assert loss_of(policy) > loss_of(Solver(SPACE, ADDITIVE).solve(TABLE, LIMIT))
    apart = solver.solve(TABLE, LIMIT, differ_from=[policy])
    assert apart is not None
    assert sum(policy.widths[name] != apart.widths[name] for name in SPACE.searched) >= 2


def test_where_units_share_no_operator_linear_latency_is_exact():
    policy = by_linear_latency(SPACE, ADDITIVE).solve(TABLE, LIMIT)
    assert loss_of(policy) == loss_of(Solver(SPACE, ADDITIVE).solve(TABLE, LIMIT))


def course(kind):
    refinement = kind(allocator(), LIMIT, seed=0, evaluations=40)
    losses, rounds = {policy: joint_loss(policy) for policy in single_unit_policies(SPACE)}, []
    while proposals := refinement.propose(losses):
        losses |= {policy: joint_loss(policy) for policy in proposals}
        rounds.append(proposals)
    return rounds, min(itertools.chain(*rounds), key=losses.__getitem__)


def test_refinements_leave_out_what_they_say():
    rounds, alone = course(SolverAlone)
    assert [len(proposals) for proposals in rounds] == [1]
    assert alone == allocator().allocate(LIMIT)
    _, learned = course(Refinement)
    assert joint_loss(learned) < joint_loss(course(partial(Refinement, surrogate=Unlearned))[1])
