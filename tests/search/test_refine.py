"""Refinement of one limit in a world whose units act together."""

import numpy as np
import pytest

from autoprune.allocation.limits import fits
from autoprune.records import SearchSpace
from autoprune.search.refine import PER_ROUND, Refinement, steps
from autoprune.search.sensitivity import single_unit_policies
from autoprune.treatments import Treatment, sorted_treatments
from tests.fakes import LIMITS, SPACE, loss_of, predict
from tests.search.test_allocator import allocator
from tests.search.test_surrogate import drawn, joint_loss

LIMIT = LIMITS[1]


def alone(loss=joint_loss):
    """Losses that the guided strategy starts with: every level of every unit, all others full."""
    return {policy: loss(policy) for policy in single_unit_policies(SPACE)}


def refined(loss=joint_loss, evaluations=40, seed=0, per_round=PER_ROUND):
    """All proposals with their origins and losses, as the guided strategy asks for them."""
    refinement = Refinement(allocator(), LIMIT, seed=seed, evaluations=evaluations, per_round=per_round)
    losses, origins = alone(loss), {}
    while proposals := refinement.propose(losses):
        origins |= proposals
        losses |= {policy: loss(policy) for policy in proposals}
    return refinement, origins, losses


def best(origins, losses):
    """The policy of least loss that was proposed."""
    return min((policy for policy in origins if policy in losses), key=losses.__getitem__)


def test_every_proposal_fits_and_is_new():
    _, origins, _ = refined()
    assert all(fits(predict([policy])[0], LIMIT) for policy in origins)
    assert PER_ROUND < len(origins) <= 40
    assert set(origins.values()) == {"solver", "surrogate"}


def test_no_proposal_can_be_widened_for_free():
    for policy in refined()[1]:
        wider = [p for p in SPACE.neighbours(policy) if sum(p.widths.values()) > sum(policy.widths.values())]
        assert not fits(predict(wider), LIMIT).any()


def test_the_solvers_answer_is_improved_where_units_act_together():
    refinement, origins, losses = refined()
    assert refinement.ratio(losses) > 1.3
    lowest = losses[best(origins, losses)]
    assert lowest < 0.9 * joint_loss(refinement.solution)
    # Better than all but a few in a thousand of the policies on the limit.
    random = [policy for policy in drawn(40_000) if fits(predict([policy])[0], LIMIT)]
    assert np.mean([joint_loss(policy) < lowest for policy in random]) < 1e-3


def test_where_losses_add_up_the_solvers_answer_stays_and_the_search_ends_early():
    refinement, origins, losses = refined(loss=loss_of)
    assert losses[best(origins, losses)] == pytest.approx(losses[refinement.solution])
    assert refinement.ratio(losses) == pytest.approx(1, rel=0.2)
    assert len(origins) < 30


def test_a_limit_with_few_policies_says_how_many():
    """All units but one have to be at their least, so that there are as many policies as the last one has levels."""
    name, *others = SPACE.searched

    def tight(policies):
        wider = [any(policy.widths[other] > SPACE.levels[other][0] for other in others) for policy in policies]
        return predict(policies) + np.where(wider, 1e3, 0.0)[:, None]

    refinement = Refinement(allocator(predict=tight), LIMIT, seed=0, evaluations=40)
    assert refinement.choice is None
    losses = alone()
    while proposals := refinement.propose(losses):
        losses |= {policy: joint_loss(policy) for policy in proposals}
    assert refinement.choice is not None
    assert 1 <= refinement.choice <= len(SPACE.levels[name])
    assert refined()[0].choice is None


def test_all_policies_of_a_limit_are_found_before_it_counts_as_exhausted():
    """Most steps are widened into one of a few known policies, and no short way leads to the others."""
    names = SPACE.searched
    last = [len(SPACE.levels[name]) - 1 for name in names]
    allowed = [[last[n] if n in (one, one + 1) else 0 for n in range(len(names))] for one in range(len(names) - 1)]

    def stairs(policies):
        inside = [any((np.array(SPACE.places(p)) <= top).all() for top in np.array(allowed)) for p in policies]
        costs = predict(policies)
        costs[:, 0] = np.where(inside, 0.1, 1e3) * LIMIT.most[0]
        return costs

    refinement, losses = Refinement(allocator(predict=stairs), LIMIT, seed=0, evaluations=40), alone()
    refinement.go_on()
    found = set()
    while proposals := refinement.propose(losses):
        losses |= {policy: joint_loss(policy) for policy in proposals}
        found |= set(proposals)
    assert found >= {SPACE.at(places) for places in allowed}


def test_the_same_losses_give_the_same_proposals():
    assert list(refined()[1]) == list(refined()[1])
    assert list(refined()[1]) != list(refined(seed=1)[1])


@pytest.mark.parametrize("evaluations", [1, 6])
def test_no_more_than_the_evaluations_are_used(evaluations):
    assert len(refined(evaluations=evaluations)[1]) == evaluations


def test_losses_of_other_limits_are_learned_from():
    """Losses at the looser limit improve the first proposals after the solver's answers."""
    known = {policy: joint_loss(policy) for policy in drawn(60)}
    lowest = []
    for losses in (alone(), alone() | known):
        refinement = Refinement(allocator(), LIMIT, seed=0, evaluations=40)
        first = {policy: joint_loss(policy) for policy in refinement.propose(losses)}
        second = refinement.propose(losses | first)
        lowest.append(min(joint_loss(policy) for policy in second))
    assert lowest[1] < lowest[0]


def test_another_limits_answers_are_not_proposed_again():
    refinement = Refinement(allocator(), LIMIT, seed=0, evaluations=40)
    twin = Refinement(allocator(), LIMIT, seed=1, evaluations=40)
    losses = alone() | {policy: joint_loss(policy) for policy in refinement.propose({})}
    proposals = twin.propose(losses)
    assert proposals
    assert not set(proposals) & set(losses)
    assert set(proposals.values()) == {"surrogate"}


def test_a_failed_trial_does_not_stop_the_rest():
    refinement = Refinement(allocator(), LIMIT, seed=0, evaluations=12)
    losses, asked = alone(), []
    while proposals := refinement.propose(losses):
        asked += proposals
        losses |= {policy: joint_loss(policy) for number, policy in enumerate(proposals) if number % 2}
    assert PER_ROUND < len(asked) == len(set(asked)) <= 12
    assert np.isfinite(losses[best(asked, losses)])


def test_where_all_the_first_ones_failed_others_are_tried():
    refinement = Refinement(allocator(), LIMIT, seed=0, evaluations=12)
    first = refinement.propose({})
    second = refinement.propose(alone())
    assert second
    assert not set(first) & set(second)


def test_rounds_can_be_wide_and_what_still_runs_is_not_proposed_again():
    refinement = Refinement(allocator(), LIMIT, seed=0, evaluations=60, per_round=20)
    first = refinement.propose({})
    losses = alone() | {policy: joint_loss(policy) for policy in first}
    second, third = refinement.propose(losses), refinement.propose(losses)
    assert len(second) == len(third) == 20
    assert not set(second) & set(third)


def test_steps_stay_in_the_space_and_near():
    start = SPACE.policy(dict.fromkeys(SPACE.searched, 3))
    children = steps([start, SPACE.smallest()], SPACE, np.random.default_rng(0))
    moves = [np.abs(np.subtract(SPACE.places(p), SPACE.places(start))) for p in children[: len(children) // 2]]
    assert max(move.max() for move in moves) == 1
    assert {int(move.sum()) for move in moves} <= {1, 2, 3, 4}


def test_every_other_treatment_of_a_layer_is_one_step_away():
    treatments = sorted_treatments(map(Treatment.parse, ("rank:8", "int8", "int8-dynamic", "fp32")))
    space = SearchSpace(id="joint", levels={"unit": (2, 4, 6, 8), "a.weight": treatments})
    stepped = steps([space.largest()] * 20, space, np.random.default_rng(0))
    assert {policy.level("a.weight") for policy in stepped} == set(treatments)
    assert {policy.widths["unit"] for policy in stepped} == {6, 8}


def test_fine_tuned_losses_propose_new_policies():
    """Fine-tuning that heals all but unit 2: it gets wider than in the solver's answer."""
    refinement, origins, losses = refined(loss=loss_of)
    tuned = {p: loss_of(p) + 0.2 * (8 - p.widths["unit2"]) for p in list(origins)[:8]}
    proposals = refinement.refit(tuned, losses)
    assert 0 < len(proposals) <= 2
    assert all(fits(predict([policy])[0], LIMIT) for policy in proposals)
    assert not set(proposals) & set(tuned)
    assert max(p.widths["unit2"] for p in proposals) > refinement.solution.widths["unit2"]
    assert refinement.refit({}, losses) == []
