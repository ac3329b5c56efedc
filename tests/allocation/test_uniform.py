from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.allocation.limits import fits
from autoprune.allocation.uniform import baselines, uniform_policies, uniform_policy
from autoprune.budgets import Limit
from autoprune.records import SearchSpace
from autoprune.treatments import DENSE as FP32
from autoprune.treatments import INT8, Treatment
from tests.fakes import DENSE, DENSE_MS, DENSE_PARAMS, SPACE, costs_of, latency_ms, predict


def test_it_is_the_slowest_uniform_policy_that_fits():
    policy = uniform_policy(SPACE, DENSE, predict, Limit.of(latency_ms=0.7 * DENSE_MS))
    assert policy == SPACE.policy(dict.fromkeys(SPACE.searched, 5)), "6 of 8 would be beyond 70 %"


@settings(max_examples=30)
@given(st.floats(0.3, 1.2))
def test_it_fits_and_the_next_wider_one_does_not(ratio):
    policy = uniform_policy(SPACE, DENSE, predict, Limit.of(latency_ms=ratio * DENSE_MS))
    widths = {policy.widths[n] for n in SPACE.searched} if policy else {1}
    assert len(widths) == 1, "equal units are cut equally"
    width = widths.pop()
    assert policy is None or latency_ms(policy) <= ratio * DENSE_MS * 1.001
    if width < 8:
        assert latency_ms(SPACE.policy(dict.fromkeys(SPACE.searched, width + 1))) > ratio * DENSE_MS


def test_widths_snap_to_the_nearest_level_and_fixed_units_stay():
    space = SearchSpace(id="s", levels={"a": (8, 16, 32), "b": (4, 12, 16), "c": (3,)})
    total = {"a": 32, "b": 16, "c": 10}
    limit = Limit.of(latency_ms=33)
    policy = uniform_policy(space, total, lambda ps: costs_of(lambda p: sum(p.widths.values()), ps), limit)
    assert policy
    assert dict(policy.widths) == {"a": 16, "b": 12, "c": 3}


def test_of_equally_fast_policies_the_widest_is_taken():
    policy = uniform_policy(SPACE, DENSE, lambda ps: costs_of(lambda p: 1, ps), Limit.of(latency_ms=1))
    assert policy == SPACE.largest()


def test_baselines_leave_out_a_limit_that_nothing_fits():
    dense, nothing = Limit.of(latency_ms=DENSE_MS), Limit.of(latency_ms=0.01)
    assert baselines(SPACE, DENSE, predict, [dense, nothing]) == {dense: SPACE.largest()}


def uniform(width):
    return SPACE.policy(dict.fromkeys(SPACE.searched, width))


@settings(max_examples=30)
@given(st.floats(0.3, 1.2))
def test_without_a_latency_it_is_the_widest_that_fits(ratio):
    limit = Limit.of(params=ratio * DENSE_PARAMS, activation_bytes=700)
    fitting = [uniform(width) for width in range(2, 9) if fits(predict([uniform(width)])[0], limit)]
    assert uniform_policy(SPACE, DENSE, predict, limit) == (fitting[-1] if fitting else None)


def test_without_a_latency_a_slower_but_narrower_policy_is_no_better():
    def steps(policies):
        return costs_of(lambda p: 10 - p.widths["unit0"], policies, lambda p: {"params": p.widths["unit0"]})

    assert uniform_policy(SPACE, DENSE, steps, Limit.of(params=6)) == uniform(6)


def test_of_policies_as_near_the_limit_the_slower_is_taken():
    """All take the same memory, and the narrowest takes longest: only latency tells them apart."""

    def flat(policies):
        return costs_of(lambda p: 10 - p.widths["unit0"], policies, lambda p: {"activation_bytes": 800})

    assert uniform_policy(SPACE, DENSE, flat, Limit.of(activation_bytes=1_000)) == uniform(2)


@given(st.integers(1, 60))
def test_the_uniform_policy_removes_nothing(most):
    space = SearchSpace(id="s", levels={"a": (0, 8, 32), "b": (0, 16), "c": (0,)})
    policy = uniform_policy(
        space,
        {"a": 32, "b": 16, "c": 10},
        lambda ps: costs_of(lambda p: sum(p.widths.values()), ps),
        Limit.of(latency_ms=most),
    )
    assert (policy is None) == (most < 24)
    assert policy is None or (policy.widths["a"] >= 8 and policy.widths["b"] == 16)


def test_layers_are_all_dense_or_all_treated():
    space = SearchSpace(id="s", levels={"a": (1, 2, 3, 4), "a.weight": (INT8, FP32)})

    def cost(policies):
        return costs_of(lambda p: p.widths["a"] / (2 if p.treatments else 1), policies)

    dense, treated = uniform_policies(space, {"a": 4}, cost, Limit.of(latency_ms=1))
    assert (dense.widths["a"], dict(dense.treatments)) == (1, {})
    assert (treated.widths["a"], dict(treated.treatments)) == (2, {"a.weight": INT8})
    assert uniform_policy(space, {"a": 4}, cost, Limit.of(latency_ms=1)) == treated
    narrow = space.policy({"a": 1, "a.weight": INT8})
    assert uniform_policies(space, {"a": 4}, cost, Limit.of(latency_ms=0.5)) == [narrow]


def test_uniform_zeros_are_the_fewest_that_fit_in_all_layers_alike():
    sparse = [Treatment.parse(text) for text in ("sparse:95%", "sparse:75%", "sparse:50%")]
    space = SearchSpace(id="s", levels={"a": (*sparse, FP32), "b": (sparse[1], sparse[2], FP32), "c": (FP32,)})

    def predict_density(policies):
        return costs_of(lambda p: sum(t.pattern.density - 1 for t in p.treatments.values()) + 3, policies)

    limit = Limit.of(latency_ms=1.9)
    (policy,) = uniform_policies(space, {}, predict_density, limit)
    assert dict(policy.treatments) == {"a": sparse[1], "b": sparse[1]}


def test_both_forms_of_int8_count_as_one_precision():
    zeros = ("sparse:95%", "sparse:50%")
    static = [Treatment.parse(f"int8+{text}") for text in zeros]
    dynamic = [Treatment.parse(f"int8-dynamic+{text}") for text in zeros]
    space = SearchSpace(id="s", levels={"a": (*static, FP32), "b": (*dynamic, FP32)})

    def predict_density(policies):
        return costs_of(lambda p: sum(t.pattern.density - 1 for t in p.treatments.values()) + 2, policies)

    (policy,) = uniform_policies(space, {}, predict_density, Limit.of(latency_ms=1))
    assert dict(policy.treatments) == {"a": static[1], "b": dynamic[1]}
