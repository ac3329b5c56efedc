from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.latency import fitting
from autoprune.latency.deviations import DRAWS
from autoprune.latency.fitting import fit, held_out, spearman
from autoprune.latency.monotonicity import monotone

OPERATORS, LEVELS = 8, 12
CHAINS = [np.arange(LEVELS) + LEVELS * operator for operator in range(OPERATORS)]
"""Entries of one operator in the order of their widths."""


def world(seed, policies=120, overhead=0.0, noise=0.0, prior_error=0.2, ordered=False, entries=None):
    """Counts, times, prior and true entries of a machine that is additive but for noise."""
    rng = np.random.default_rng(seed)
    entries = rng.uniform(0.01, 0.1, size=OPERATORS * LEVELS) if entries is None else entries
    if ordered:
        for chain in CHAINS:
            entries[chain] = np.sort(entries[chain])
    columns = rng.integers(LEVELS, size=(policies, OPERATORS)) + LEVELS * np.arange(OPERATORS)
    counts = np.zeros((policies, len(entries)))
    np.put_along_axis(counts, columns, 1.0, axis=1)
    times = (0.05 + counts @ entries) * (1 + noise * rng.standard_normal(policies))
    prior = 1.2 * entries * np.exp(prior_error * rng.standard_normal(len(entries))) + overhead
    return counts, times, prior, entries


def errors(predicted, times):
    return np.abs(predicted / times - 1).mean()


@pytest.mark.parametrize("overhead", [0.0, 0.05])
@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_the_fit_predicts_what_it_has_not_seen_better_than_its_prior(overhead, noise):
    counts, times, prior, _ = world(0, policies=160, overhead=overhead, noise=noise)
    result = fit(counts[:120], times[:120], prior)
    scale = np.linalg.lstsq(np.stack([counts[:120] @ prior, np.ones(120)], axis=1), times[:120], rcond=None)[0]
    prior_only = counts[120:] @ prior * scale[0] + scale[1]
    assert errors(result.predict(counts[120:]), times[120:]) < 0.5 * errors(prior_only, times[120:])
    assert result.remainder_ms >= 0


def test_a_perfect_prior_is_only_scaled():
    counts, times, prior, entries = world(1, prior_error=0.0)
    result = fit(counts, times, prior)
    np.testing.assert_allclose(result.predict(counts), times, rtol=1e-3)
    np.testing.assert_allclose(result.entries_ms, entries, rtol=0.02)
    assert result.remainder_ms == pytest.approx(0.05, rel=0.1)


def test_what_a_kind_has_in_common_is_learned_for_entries_that_no_policy_held():
    """The profiler is wrong about whole operators by up to 2.7 times, and knows the shape of each to 5 %."""
    kinds = np.repeat(np.arange(OPERATORS), LEVELS)
    counts, times, prior, entries = world(3, noise=0.002, prior_error=0.05)
    prior = prior * np.exp(np.linspace(-1, 1, OPERATORS))[kinds]
    counts[:, ::3] += counts[:, 1::3]
    times = times + counts[:, 1::3] @ (entries[::3] - entries[1::3])  # every third width replaces the next one
    counts[:, 1::3] = 0
    together = fit(counts, times, prior, kinds=kinds, noise=0.002).entries_ms[1::3]
    alone = fit(counts, times, prior, noise=0.002).entries_ms[1::3]
    assert errors(together, entries[1::3]) < 0.1
    assert errors(alone, entries[1::3]) > 0.3


def test_an_overhead_that_differs_from_operator_to_operator_leaves_cheap_entries_free(monkeypatch):
    """Entries differ by a hundred times; the profiler adds to each what it does not add to the others."""
    entries = np.geomspace(0.005, 0.5, OPERATORS * LEVELS)[np.random.default_rng(3).permutation(OPERATORS * LEVELS)]
    counts, times, prior, _ = world(5, policies=120, noise=0.002, prior_error=0.05, entries=entries)
    prior = prior + 0.05 * np.random.default_rng(4).uniform(0.2, 1.8, size=len(prior))

    def error():
        return errors(fit(counts[:80], times[:80], prior, noise=0.002).predict(counts[80:]), times[80:])

    free = error()
    monkeypatch.setattr(fitting, "_OVERHEAD_SHARES", (0.0,))
    assert free < 0.7 * error()


def test_a_machine_without_a_remainder_gets_none():
    """Where kinds may deviate, they can take more than all of the time; what is left is then nothing, not less."""
    kinds = np.repeat(np.arange(OPERATORS), LEVELS)
    counts, times, prior, _ = world(5, noise=0.01, prior_error=0.1)
    result = fit(counts, times - 0.05, prior, kinds=kinds, noise=0.01)
    assert 0 <= result.remainder_ms < 0.02
    assert errors(result.predict(counts), times - 0.05) < 0.01


def test_entries_that_no_policy_held_keep_their_scaled_prior():
    counts, times, prior, entries = world(4, prior_error=0.05)
    counts, prior = np.pad(counts, ((0, 0), (0, 1))), np.append(prior, 1.2 * 0.07)
    result = fit(counts, times, prior)
    assert result.entries_ms[-1] == pytest.approx(0.07, rel=0.03)
    seen = np.abs(result.entries_ms[:-1] / entries - 1).mean()
    assert seen < np.abs(prior[:-1] / 1.2 / entries - 1).mean()
    own = np.sqrt(np.mean(result.spread_ms**2, axis=0)) / result.entries_ms
    assert own[-1] > 1.2 * np.median(own[:-1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.2), st.floats(0, 0.05))
def test_entries_and_remainder_are_never_negative(seed, overhead, noise):
    counts, times, prior, _ = world(seed, policies=50, overhead=overhead, noise=noise)
    result = fit(counts, times, prior, chains=CHAINS)
    assert (result.entries_ms > 0).all()
    assert result.remainder_ms >= 0
    assert result.spread_ms.shape == (DRAWS, OPERATORS * LEVELS)
    assert result.remainder_spread_ms.shape == (DRAWS,)
    assert np.isfinite(result.spread_ms).all()


def test_a_heavy_weight_is_met():
    counts, times, prior, _ = world(2, policies=60, noise=0.05)
    weights = np.ones(60)
    weights[7] = 100.0
    assert fit(counts, times, prior, weights).predict(counts[7:8])[0] == pytest.approx(times[7], rel=1e-3)


def test_times_that_contradict_the_prior_still_give_a_usable_table():
    counts, times, prior, _ = world(3)
    against = 2 * times.mean() - times
    result = fit(counts, against, prior)
    assert (result.entries_ms > 0).all()
    assert errors(result.predict(counts), against) < 0.1


def longest_fall(entries, chains):
    return max(float((entries[c[:-1]] / entries[c[1:]]).max()) for c in chains) - 1


@pytest.mark.parametrize("seed", range(3))
def test_no_chain_falls_and_knowing_that_helps(seed):
    counts, times, prior, entries = world(seed, policies=160, noise=0.01, prior_error=0.4, ordered=True)
    seen, new, truth = slice(60), slice(60, None), 0.05 + counts @ entries
    tied, free = fit(counts[seen], times[seen], prior, chains=CHAINS), fit(counts[seen], times[seen], prior)
    assert longest_fall(free.entries_ms, CHAINS) > 0.05
    assert longest_fall(tied.entries_ms, CHAINS) < 1e-6
    assert errors(tied.predict(counts[new]), truth[new]) < errors(free.predict(counts[new]), truth[new])


def test_ordered_evidence_is_fitted_as_without_chains():
    counts, times, prior, _ = world(5, policies=400, noise=0.0, prior_error=0.02, ordered=True)
    tied, free = fit(counts, times, prior, chains=CHAINS), fit(counts, times, prior)
    np.testing.assert_allclose(tied.predict(counts), free.predict(counts), rtol=2e-3)


def test_noise_is_smoothed_away():
    """The true latencies are met better than the noisy times that were fitted."""
    counts, times, prior, entries = world(6, policies=300, noise=0.03)
    truth = 0.05 + counts @ entries
    result = fit(counts, times, prior, noise=0.03)
    assert errors(result.predict(counts), truth) < 0.8 * errors(times, truth)


def test_noise_that_was_not_announced_is_estimated():
    counts, times, prior, entries = world(7, policies=300, noise=0.05)
    truth = 0.05 + counts @ entries
    result = fit(counts, times, prior, noise=0.004)
    assert errors(result.predict(counts), truth) < 0.8 * errors(times, truth)
    rms = np.sqrt(np.mean((result.predict(counts) - truth) ** 2) / np.mean(result.sd_ms(counts) ** 2))
    assert 0.7 < rms < 1.4


def coverage(prior_error, noise, policies, seeds=12):
    """Share of new policies whose true latency lies within two standard deviations, and the mean deviation."""
    inside, ratios = [], []
    for seed in range(seeds):
        counts, times, prior, entries = world(seed, policies=policies + 100, noise=noise, prior_error=prior_error)
        result = fit(counts[:policies], times[:policies], prior, noise=max(noise, 0.001), seed=seed)
        error = result.predict(counts[policies:]) - (0.05 + counts[policies:] @ entries)
        sd = result.sd_ms(counts[policies:])
        inside.append(np.abs(error) <= 2 * sd)
        ratios.append(np.mean(error**2) / np.mean(sd**2))
    return float(np.mean(inside)), float(np.sqrt(np.mean(ratios)))


@pytest.mark.parametrize("policies", [120, 250])
@pytest.mark.parametrize(("prior_error", "noise"), [(0.1, 0.004), (0.3, 0.004), (0.1, 0.02), (0.3, 0.02)])
def test_about_95_percent_lie_within_two_standard_deviations(prior_error, noise, policies):
    inside, ratio = coverage(prior_error, noise, policies)
    assert 0.9 < inside < 0.99
    assert 0.85 < ratio < 1.2


def test_with_few_policies_the_draws_are_somewhat_too_sure():
    """The evidence cannot tell then how wrong the prior is; a table corrects this on its held-out policies."""
    inside, ratio = coverage(0.3, 0.004, 40)
    assert 0.75 < inside < 0.95
    assert 1 < ratio < 2


def test_the_deviation_of_a_sum_is_that_of_its_draws():
    counts, times, prior, _ = world(8, noise=0.01)
    result = fit(counts, times, prior)
    draws = np.array([d + counts @ s for d, s in zip(result.remainder_spread_ms, result.spread_ms, strict=True)])
    np.testing.assert_allclose(result.sd_ms(counts), np.sqrt(np.mean(draws**2, axis=0)))
    certain = replace(result, spread_ms=result.spread_ms * 0, remainder_spread_ms=result.remainder_spread_ms * 0)
    assert (certain.sd_ms(counts) == 0).all()


def test_more_evidence_makes_surer():
    sds = []
    for policies in (40, 400):
        counts, times, prior, _ = world(9, policies=policies, noise=0.01)
        sds.append(fit(counts, times, prior, noise=0.01).sd_ms(counts[:40]).mean())
    assert sds[1] < 0.7 * sds[0]


def test_the_same_seed_gives_the_same_draws():
    counts, times, prior, _ = world(10)
    first, second, other = (fit(counts, times, prior, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.spread_ms, second.spread_ms)
    np.testing.assert_array_equal(first.entries_ms, other.entries_ms)
    assert not np.array_equal(first.spread_ms, other.spread_ms)


def test_a_fit_ends_in_a_projection():
    counts, times, prior, _ = world(11, policies=60, noise=0.02, prior_error=0.4)
    entries = fit(counts, times, prior, chains=CHAINS).entries_ms
    np.testing.assert_allclose(monotone(entries, np.ones(len(entries)), CHAINS), entries, rtol=1e-6)


def test_chains_that_cross_are_held_together():
    """Entries on grids of two widths, whose rows and columns rise; the profiler is wrong by up to five times."""
    side, operators, policies = 8, 6, 150
    rng = np.random.default_rng(1)
    cells = np.arange(operators * side * side).reshape(operators, side, side)
    products = np.outer(np.arange(1, side + 1), np.arange(1, side + 1))
    entries = np.concatenate([(0.01 + 0.004 * products * rng.uniform(0.5, 1.5)).ravel() for _ in range(operators)])
    widths = rng.integers(side, size=(policies + 40, operators + 1))
    counts = np.zeros((len(widths), cells.size))
    np.put_along_axis(counts, cells[np.arange(operators), widths[:, :-1], widths[:, 1:]], 1.0, axis=1)
    times = (0.05 + counts @ entries) * (1 + 0.004 * rng.standard_normal(len(counts)))
    kinds = np.repeat(np.arange(operators), side * side)
    wrong = 0.6 * rng.standard_normal(len(entries)) + rng.normal(0, 1, operators)[kinds]
    chains = [*cells.reshape(-1, side), *cells.transpose(0, 2, 1).reshape(-1, side)]
    seen, unseen = slice(policies), slice(policies, None)

    def error(chains):
        fitted = fit(counts[seen], times[seen], entries * np.exp(wrong), chains=chains, kinds=kinds)
        return errors(fitted.predict(counts[unseen]), times[unseen])

    assert error(chains) < 0.62 * error([])


def test_held_out_numbers_are_percent_of_the_measurement():
    predicted, measured, sd = np.array([1.1, 2.0, 2.7]), np.array([1.0, 2.0, 3.0]), np.array([0.06, 0.0, 0.1])
    accuracy = held_out(predicted, measured, np.array([1.01]), sd)
    assert accuracy.policies == 3
    assert accuracy.mape_percent == pytest.approx(20 / 3)
    assert accuracy.max_percent == pytest.approx(10)
    assert accuracy.bias_percent == pytest.approx(0)
    assert accuracy.spearman == pytest.approx(1)
    assert accuracy.noise_percent == pytest.approx(1)
    assert accuracy.within_2sd == pytest.approx(2 / 3)
    assert held_out(predicted, measured, np.array([]), sd).noise_percent == 0
    assert held_out(predicted * 1.1, measured, np.array([]), sd).bias_percent == pytest.approx(10)


def test_rank_correlation():
    rising = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(rising, rising**3) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(np.ones(4), rising) == 1
    assert spearman(rising, np.array([1.0, 1.0, 2.0, 2.0])) == pytest.approx(0.894427)
