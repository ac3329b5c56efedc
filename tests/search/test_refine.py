"""Refinement of one limit in a world whose units act together."""

import numpy as np
import pytest

from autoprune.search.limits import fits
from autoprune.search.refine import ALARM, PER_ROUND, Refinement
from tests.search.fakes import LIMITS, loss_of, predict
from tests.search.test_allocation import PLAIN, allocator

LIMIT = LIMITS[1]


def joint_loss(policy):
    """Units 0 and 4 hurt each other: the sum of single losses is far too low where both are narrow."""
    together = (8 - policy.widths["unit0"]) * (8 - policy.widths["unit4"])
    return loss_of(policy) + 0.05 * together


def refined(loss=joint_loss, evaluations=40, sampler="tpe", seed=0):
    """All proposals with their origins and losses, as the guided strategy asks for them."""
    refinement = Refinement(allocator(), LIMIT, seed=seed, sampler=sampler, evaluations=evaluations)
    losses, origins = {}, {}
    while True:
        for policy in refinement.surroundings(losses):
            losses[policy] = loss(policy)
        found = refinement.propose(losses)
        origins |= found
        losses |= {policy: loss(policy) for policy in found}
        if not found or refinement.finished(losses):
            return refinement, origins, losses


def test_every_proposal_fits_and_is_new():
    refinement, origins, _ = refined()
    assert all(fits(predict([policy])[0], LIMIT) for policy in origins)
    assert PER_ROUND < len(origins) <= 40
    assert {"solver", "fit", "sampler", "local"} <= set(origins.values())
    assert refinement.best({}) is None


def test_the_solvers_answer_is_improved_where_units_act_together():
    refinement, _, losses = refined()
    assert refinement.ratio(losses) > ALARM
    assert joint_loss(refinement.best(losses)) < 0.9 * joint_loss(refinement.solution)


def test_where_losses_add_up_the_solvers_answer_stays_and_the_search_ends_early():
    refinement, origins, losses = refined(loss=loss_of)
    assert losses[refinement.best(losses)] == pytest.approx(losses[refinement.solution])
    assert refinement.ratio(losses) == pytest.approx(1, rel=0.2)
    assert len(origins) < 30
    assert "local" not in origins.values()


def test_the_same_losses_give_the_same_proposals():
    assert list(refined()[1]) == list(refined()[1])
    assert list(refined()[1]) != list(refined(seed=1)[1])


@pytest.mark.parametrize("evaluations", [1, 6])
def test_no_more_than_the_evaluations_are_used(evaluations):
    assert len(refined(evaluations=evaluations)[1]) == evaluations


def test_a_neighbour_is_tried_next_and_once():
    refinement = Refinement(allocator(), LIMIT, seed=0, sampler="tpe", evaluations=40)
    losses = {policy: joint_loss(policy) for policy in refinement.propose({})}
    vector = PLAIN.copy()
    vector[[0, 4]] = 1.2
    refinement.hear(vector)
    refinement.hear(vector + 0.01)
    refinement.hear(PLAIN)
    found = refinement.propose(losses)
    assert list(found.values()).count("neighbour") == 1
    assert next(iter(found)) == allocator().allocate(vector, LIMIT)


def test_a_failed_trial_does_not_stop_the_rest():
    refinement = Refinement(allocator(), LIMIT, seed=0, sampler="random", evaluations=12)
    losses = {}
    asked = []
    for _ in range(20):
        found = refinement.propose(losses)
        asked += found
        losses |= {policy: joint_loss(policy) for number, policy in enumerate(found) if number % 2}
        if not found or refinement.finished(losses):
            break
    assert len(asked) == len(set(asked)) <= 12
    assert np.isfinite(losses[refinement.best(losses)])


def test_a_round_can_be_wide_and_one_that_still_runs_does_not_end_the_search():
    refinement = Refinement(allocator(), LIMIT, seed=0, sampler="random", evaluations=60, per_round=20)
    first = refinement.propose({})
    losses = {policy: joint_loss(policy) for policy in first}
    second = refinement.propose(losses)
    assert 2 * PER_ROUND < len(first) <= len(second) == 20
    assert not refinement.finished(losses), "nothing is known of the second round"
    assert refinement.finished(losses | dict.fromkeys(second, max(losses.values())))


def test_fine_tuned_losses_propose_new_policies():
    """Fine-tuning that heals all but unit 2: it gets wider than in the solver's answer."""
    refinement, origins, _ = refined(loss=loss_of)
    tuned = {p: loss_of(p) + 0.2 * (8 - p.widths["unit2"]) for p in list(origins)[:8]}
    found = refinement.refit(tuned)
    assert 0 < len(found) <= 2
    assert all(fits(predict([policy])[0], LIMIT) for policy in found)
    assert not set(found) & set(tuned)
    assert max(p.widths["unit2"] for p in found) > refinement.solution.widths["unit2"]
    assert refinement.refit({}) == []
