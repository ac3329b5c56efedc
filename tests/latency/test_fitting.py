import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.latency.fitting import fit, held_out

OPERATORS, LEVELS = 8, 12


def world(seed, policies=120, overhead=0.0, noise=0.0, prior_error=0.2):
    """Counts, times, prior and true entries of a machine that is additive but for noise."""
    rng = np.random.default_rng(seed)
    entries = rng.uniform(0.01, 0.1, size=OPERATORS * LEVELS)
    columns = rng.integers(LEVELS, size=(policies, OPERATORS)) + LEVELS * np.arange(OPERATORS)
    counts = np.zeros((policies, len(entries)))
    np.put_along_axis(counts, columns, 1.0, axis=1)
    times = (0.05 + counts @ entries) * (1 + noise * rng.standard_normal(policies))
    prior = 1.2 * entries * np.exp(prior_error * rng.standard_normal(len(entries))) + overhead
    return counts, times, prior


def errors(predicted, times):
    return np.abs(predicted / times - 1).mean()


@pytest.mark.parametrize("overhead", [0.0, 0.05])
def test_the_fit_predicts_what_it_has_not_seen_better_than_its_prior(overhead):
    counts, times, prior = world(0, policies=160, overhead=overhead)
    result = fit(counts[:120], times[:120], prior)
    scale = np.linalg.lstsq(np.stack([counts[:120] @ prior, np.ones(120)], axis=1), times[:120], rcond=None)[0]
    prior_only = counts[120:] @ prior * scale[0] + scale[1]
    assert errors(result.predict(counts[120:]), times[120:]) < 0.5 * errors(prior_only, times[120:])
    assert result.intercept_ms >= 0


def test_a_perfect_prior_is_only_scaled():
    counts, times, prior = world(1, prior_error=0.0)
    np.testing.assert_allclose(fit(counts, times, prior).predict(counts), times, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.2), st.floats(0, 0.05))
def test_entries_and_intercept_are_never_negative(seed, overhead, noise):
    counts, times, prior = world(seed, policies=50, overhead=overhead, noise=noise)
    result = fit(counts, times, prior)
    assert (result.entries_ms > 0).all()
    assert result.intercept_ms >= 0


def test_a_heavy_weight_is_met():
    counts, times, prior = world(2, policies=60, noise=0.05)
    weights = np.ones(60)
    weights[7] = 100.0
    assert fit(counts, times, prior, weights).predict(counts[7:8])[0] == pytest.approx(times[7], rel=1e-3)


def test_times_that_contradict_the_prior_still_give_a_usable_table():
    counts, times, prior = world(3)
    against = 2 * times.mean() - times
    result = fit(counts, against, prior)
    assert (result.entries_ms > 0).all()
    assert errors(result.predict(counts), against) < 0.1


def test_held_out_numbers_are_percent_of_the_measurement():
    found = held_out(np.array([1.1, 2.0, 2.7]), np.array([1.0, 2.0, 3.0]), np.array([1.01]))
    assert found.policies == 3
    assert found.mape_percent == pytest.approx(20 / 3)
    assert found.max_percent == pytest.approx(10)
    assert found.bias_percent == pytest.approx(0)
    assert found.spearman == pytest.approx(1)
    assert found.noise_percent == pytest.approx(1)
