"""The surrogate in a world whose units act together."""

import numpy as np
import pytest

from autoprune.search.surrogate import Surrogate, conditioned, expected_gain
from tests.fakes import SPACE, loss_of
from tests.search.test_allocator import TABLE


def joint_loss(policy):
    """Units 0 and 4 hurt each other: the sum of single losses is far too low where both are narrow."""
    together = (8 - policy.widths["unit0"]) * (8 - policy.widths["unit4"])
    return loss_of(policy) + 0.05 * together


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.policy({n: int(rng.choice(levels)) for n, levels in SPACE.levels.items()}) for _ in range(count)]


def surrogate(policies, loss=joint_loss, trend=None):
    return Surrogate(SPACE, TABLE, {policy: loss(policy) for policy in policies}, trend)


def errors(model, policies, loss=joint_loss):
    """Absolute errors of the expected logarithms of losses."""
    return np.abs(model.mean(policies) - np.log([loss(policy) for policy in policies]))


def test_it_learns_what_the_sum_leaves_out():
    few, many = surrogate(drawn(8)), surrogate(drawn(120))
    unseen = drawn(60, seed=1)
    assert np.median(errors(many, unseen)) < 0.5 * np.median(errors(few, unseen))
    assert np.median(errors(many, unseen)) < 0.1


def test_what_was_measured_is_known_and_the_rest_is_not():
    seen, unseen = drawn(40), drawn(40, seed=1)
    model = surrogate(seen)
    mean, covariance = model.posterior([*seen, *unseen])
    assert mean == pytest.approx(model.mean([*seen, *unseen]))
    variance = np.diag(covariance)
    assert variance[:40].max() < variance[40:].mean()
    assert np.abs(mean[:40] - np.log([joint_loss(policy) for policy in seen])).max() < 0.1


def test_nothing_measured_is_the_sum_of_the_sensitivities():
    model, policies = surrogate([]), drawn(20)
    sums = [loss_of(policy) - loss_of(SPACE.largest()) for policy in policies]
    assert model.mean(policies) == pytest.approx(np.log(sums))
    assert model.gain(policies, best=0.0).shape == (20,)
    assert np.diag(model.posterior(policies)[1]) == pytest.approx(np.full(20, 0.1))


def test_losses_of_nothing_and_of_one_policy_alone_are_answered():
    assert np.isfinite(surrogate(drawn(1)).mean(drawn(5))).all()
    assert np.isfinite(surrogate(drawn(5), loss=lambda policy: 0.0).mean(drawn(5))).all()


def test_expected_gains_are_those_of_the_posterior():
    model, policies = surrogate(drawn(30)), drawn(20, seed=2)
    mean, covariance = model.posterior(policies)
    assert model.gain(policies, best=-1.0) == pytest.approx(expected_gain(-1.0 - mean, np.diag(covariance)))


def test_the_expected_gain_is_the_mean_of_what_is_better():
    rng = np.random.default_rng(0)
    samples = np.maximum(rng.normal(0.3, 0.5, size=400_000), 0).mean()
    assert expected_gain(np.array([0.3]), np.array([0.25]))[0] == pytest.approx(samples, rel=0.01)
    assert expected_gain(np.array([0.3]), np.array([0.0]))[0] == pytest.approx(0.3, rel=1e-3)


def test_knowing_one_policy_is_as_measuring_it_without_noise():
    seen, more = drawn(20), drawn(6, seed=1)
    covariance = surrogate(seen).posterior(more)[1]
    after = conditioned(covariance, 2)
    assert after[2] == pytest.approx(np.zeros(6), abs=1e-9)
    others = [0, 1, 3, 4, 5]
    column = covariance[others, 2]
    assert after[np.ix_(others, others)] == pytest.approx(
        covariance[np.ix_(others, others)] - np.outer(column, column) / covariance[2, 2]
    )


def test_fine_tuned_losses_follow_the_losses_before_them():
    """Five losses give little more than a trend."""
    before = surrogate(drawn(120))

    def tuned(policy):
        return 0.3 * joint_loss(policy) ** 0.8

    unseen = drawn(60, seed=1)
    after = surrogate(drawn(5, seed=3), tuned, before.mean)
    plain = surrogate(drawn(5, seed=3), tuned)
    assert np.median(errors(after, unseen, tuned)) < np.median(errors(plain, unseen, tuned))
