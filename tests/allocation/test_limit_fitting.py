from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoprune.allocation.limit_fitting import fit_to_limit
from autoprune.allocation.limits import excess, fits
from autoprune.budgets import Limit
from autoprune.records import SearchSpace
from tests.fakes import DENSE_MS, DENSE_PARAMS, SPACE, costs_of, predict

policies = st.fixed_dictionaries({n: st.sampled_from(SPACE.levels[n]) for n in SPACE.levels}).map(SPACE.policy)
ratios = st.floats(0.2, 1.1)
maxima = {
    "latency_ms": ratios.map(lambda ratio: ratio * DENSE_MS),
    "params": ratios.map(lambda ratio: ratio * DENSE_PARAMS),
    "activation_bytes": ratios.map(lambda ratio: ratio * 800),
}
limits = st.lists(st.sampled_from(list(maxima)), min_size=1, unique=True).flatmap(
    lambda names: st.builds(Limit.of, **{name: maxima[name] for name in names})
)


def wider(policy):
    for name, width in policy.widths.items():
        levels = SPACE.levels[name]
        if width < levels[-1]:
            yield SPACE.policy(policy.widths | {name: levels[levels.index(width) + 1]})


@given(policies, limits, st.integers(0, 100))
def test_the_result_fits_and_nothing_can_be_widened(policy, limit, seed):
    fitted = fit_to_limit(policy, SPACE, predict, limit, np.random.default_rng(seed))
    if fitted is None:
        assert not fits(predict([SPACE.smallest()])[0], limit)
        return
    assert fits(predict([fitted])[0], limit)
    assert not any(fits(predict([p])[0], limit) for p in wider(fitted))


@given(policies, limits, st.integers(0, 100))
def test_it_is_deterministic_and_leaves_its_own_results_alone(policy, limit, seed):
    first, second = (fit_to_limit(policy, SPACE, predict, limit, np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    if first:
        assert fit_to_limit(first, SPACE, predict, limit, np.random.default_rng(seed + 1)) == first


@given(policies, limits)
def test_a_policy_that_is_too_slow_only_loses_and_one_that_is_too_small_only_gains(policy, limit):
    fitted = fit_to_limit(policy, SPACE, predict, limit, np.random.default_rng(0))
    if fitted and fits(predict([policy])[0], limit):
        assert all(fitted.widths[n] >= w for n, w in policy.widths.items())


def test_seeds_explore_different_policies():
    policies = {
        fit_to_limit(SPACE.largest(), SPACE, predict, Limit.of(latency_ms=DENSE_MS / 2), np.random.default_rng(seed))
        for seed in range(20)
    }
    assert len(policies) > 10


def test_a_free_width_is_taken():
    """Latency in steps of 4 channels: anything but a multiple of 4 would waste capacity."""
    space = SearchSpace(id="steps", levels={"a": tuple(range(1, 17)), "b": tuple(range(1, 17))})

    def stairs(policies):
        return costs_of(lambda p: sum(-(-w // 4) for w in p.widths.values()), policies)

    start, limit = space.policy({"a": 5, "b": 9}), Limit.of(latency_ms=5)
    fitted = fit_to_limit(start, space, stairs, limit, np.random.default_rng(0))
    assert fitted
    assert dict(fitted.widths) == {"a": 8, "b": 12}


def test_every_cost_can_be_the_one_that_binds():
    tight = {"latency_ms": 0.5 * DENSE_MS, "params": 0.5 * DENSE_PARAMS, "activation_bytes": 600}
    for name, most in tight.items():
        limit = Limit.of(**{other: 2 * value for other, value in tight.items()} | {name: most})
        fitted = fit_to_limit(SPACE.largest(), SPACE, predict, limit, np.random.default_rng(0))
        assert fitted
        (costs,) = predict([fitted])
        assert fits(costs, limit)
        assert excess(costs, Limit.of(**{name: most})) > -0.15, "the tight one is used up, not the others"


def test_a_space_without_choices():
    space = SearchSpace(id="one", levels={"a": (4,)})
    arguments = space.largest(), space, lambda policies: costs_of(lambda p: 2, policies)
    assert fit_to_limit(*arguments, Limit.of(latency_ms=3), np.random.default_rng(0)) == space.largest()
    assert fit_to_limit(*arguments, Limit.of(latency_ms=1), np.random.default_rng(0)) is None
    assert fit_to_limit(*arguments, Limit.of(latency_ms=3, params=0.5), np.random.default_rng(0)) is None


def test_blocks_are_removed_when_nothing_else_fits():
    space = SearchSpace(id="s", levels={"a": (0, 8, 16), "b": (4, 8)})
    policy = fit_to_limit(
        space.largest(),
        space,
        lambda ps: costs_of(lambda p: sum(p.widths.values()), ps),
        Limit.of(latency_ms=8),
        np.random.default_rng(0),
    )
    assert policy
    assert policy.widths["a"] == 0
