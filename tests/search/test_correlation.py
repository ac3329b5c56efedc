"""Rank correlation between rungs, and how many go on."""

import itertools

import numpy as np
import pytest

from autoprune.budgets import Limit
from autoprune.search.correlation import promotion_size, rank_correlation
from autoprune.trials import Fidelity, Measurement, TrialResult
from tests.fakes import DENSE_MS, SPACE, latency_ms

CHEAP, DEAR = Fidelity(name="proxy", rung=0), Fidelity(name="brief", rung=1)
LOOSE = Limit.of(latency_ms=DENSE_MS)
POLICIES = [SPACE.policy({"unit0": a, "unit1": b}) for a, b in itertools.product(SPACE.levels["unit0"], (2, 3, 4))]


def results(fidelity, losses):
    results_of = []
    for number, (policy, loss) in enumerate(zip(POLICIES, losses, strict=False)):
        measurement = Measurement(
            score=0, loss=loss, latency_ms=latency_ms(policy), latency_source="predicted", params=1, macs=1, bytes=1,
            activation_bytes=1,
        )  # fmt: skip
        results_of.append(
            TrialResult(number=number, policy=policy, fidelity=fidelity, status="done", seed=0, measurement=measurement)
        )
    return results_of


def test_the_same_order_correlates_fully_and_the_reverse_not_at_all():
    losses = np.linspace(1, 2, 12)
    same = rank_correlation(results(CHEAP, losses), results(DEAR, losses**2), [LOOSE])
    reverse = rank_correlation(results(CHEAP, losses), results(DEAR, -losses), [LOOSE])
    assert (same.rho, reverse.rho) == pytest.approx((1, -1))
    assert (same.cheap, same.dear, same.pairs) == ("proxy", "brief", 12)
    assert same.low < same.rho
    assert reverse.high > reverse.rho
    assert "proxy and brief: 1.00" in str(same)


def test_the_interval_covers_and_narrows_with_pairs():
    rng = np.random.default_rng(0)
    losses = rng.random(21)
    noisy = losses + 0.1 * rng.random(21)
    many = rank_correlation(results(CHEAP, losses), results(DEAR, noisy), [LOOSE])
    few = rank_correlation(results(CHEAP, losses[:8]), results(DEAR, noisy[:8]), [LOOSE])
    assert many.low < many.rho < many.high
    assert many.high - many.low < few.high - few.low


def test_ranks_are_taken_within_limits():
    """Between two limits any score separates policies; within each limit this one is turned round."""
    tight = Limit.of(latency_ms=sorted(latency_ms(p) for p in POLICIES[:12])[5])
    inside = np.array([latency_ms(p) <= tight.most[0] for p in POLICIES[:12]])
    cheap = np.where(inside, 10.0, 0.0) + np.arange(12)
    dear = np.where(inside, 10.0, 0.0) - np.arange(12)
    correlation = rank_correlation(results(CHEAP, cheap), results(DEAR, dear), [LOOSE, tight])
    assert correlation.rho == pytest.approx(-1)


def test_too_few_pairs_say_nothing():
    assert rank_correlation(results(CHEAP, range(1, 9)), results(DEAR, range(1, 4)), [LOOSE]) is None


def test_a_better_correlation_promotes_fewer():
    sizes = [promotion_size(rho, 60) for rho in (0.95, 0.9, 0.7, 0.5, -0.1)]
    assert sizes == sorted(sizes)
    assert sizes[0] <= 5
    assert 10 <= sizes[2] <= 20
    assert sizes[-1] == 60
    assert promotion_size(0.9, 5) <= 5
