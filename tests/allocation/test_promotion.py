from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autoprune.allocation.limits import fits
from autoprune.allocation.promotion import best_within, diverse, promote
from autoprune.budgets import Limit
from autoprune.executors.base import failed
from autoprune.records import SearchSpace
from autoprune.trials import TrialResult
from tests.fakes import LIMITS, SPACE, evaluate, predict, spec

UNIFORM = {limit: SPACE.policy(dict.fromkeys(SPACE.searched, w)) for limit, w in zip(LIMITS, (5, 3), strict=True)}
BASELINES = [evaluate(spec(i, **{n: p.widths[n] for n in SPACE.searched})) for i, p in enumerate(UNIFORM.values())]

widths = st.fixed_dictionaries({n: st.sampled_from(SPACE.levels[n]) for n in SPACE.searched})
results = st.lists(widths, max_size=25, unique_by=lambda w: tuple(w.values())).map(
    lambda all_widths: [evaluate(spec(10 + i, **w)) for i, w in enumerate(all_widths)]
)


def loss(result: TrialResult) -> float:
    assert result.measurement
    return result.measurement.loss


@given(results, st.integers(0, 4))
def test_the_best_of_every_limit_and_its_baseline_go_on(others, count):
    chosen = promote([*BASELINES, *others], UNIFORM, LIMITS, count)
    assert [policy for policy, origin in chosen.items() if origin == "uniform"] == list(UNIFORM.values())
    promoted = [r for r in others if chosen.get(r.policy) == "promoted"]
    for limit in LIMITS:
        fitting = [r for r in others if r.policy not in UNIFORM.values() and fits(predict([r.policy])[0], limit)]
        left = [loss(r) for r in fitting if r not in promoted]
        taken = [loss(r) for r in fitting if r in promoted]
        assert len(taken) >= min(count, len(fitting))
        assert not left or sum(t <= min(left) for t in taken) >= min(count, len(fitting))


@given(results)
def test_nobody_goes_on_without_a_reason(others):
    chosen = promote([*BASELINES, *others], UNIFORM, LIMITS, 2)
    assert len(chosen) <= len(LIMITS) * 3
    assert fits(predict([*chosen]), LIMITS[0]).all()


@given(results, st.integers(1, 4))
def test_only_policies_that_meet_the_limit_when_measured_go_on_and_no_more_are_measured_than_it_takes(others, count):
    asked = []

    def even(policies, limit):
        asked.extend((policy, limit) for policy in policies)
        return [policy.widths["unit0"] % 2 == 0 for policy in policies]

    chosen = promote([*BASELINES, *others], UNIFORM, LIMITS, count, even)
    promoted = [policy for policy, origin in chosen.items() if origin == "promoted"]
    assert all(policy.widths["unit0"] % 2 == 0 for policy in promoted)
    for limit in LIMITS:
        fitting = [r.policy for r in others if r.policy not in UNIFORM.values() and fits(predict([r.policy])[0], limit)]
        met = [policy for policy in fitting if policy.widths["unit0"] % 2 == 0]
        measured = [policy for policy, of in asked if of is limit]
        assert len(set(promoted) & set(met)) >= min(count, len(met))
        assert len(measured) == len(set(measured))
        if len(met) >= len(fitting):
            assert len(measured) <= min(len(fitting), count)


def test_failed_trials_stay_behind_even_a_baseline():
    lost = failed(spec(0, **dict.fromkeys(SPACE.searched, 5)), "because")
    other = failed(spec(5, unit0=2), "because")
    assert promote([lost, other, BASELINES[1]], UNIFORM, LIMITS, 2) == {UNIFORM[LIMITS[1]]: "uniform"}


def of_widths(pairs):
    """Results of policies of two removable units, the best first."""
    space = SearchSpace(id="d", levels={"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)})
    base = evaluate(spec(0))
    assert base.measurement
    return [
        TrialResult(
            **vars(base)
            | {
                "number": number,
                "policy": space.policy({"a": a, "b": b}),
                "measurement": replace(base.measurement, loss=float(number)),
            }
        )
        for number, (a, b) in enumerate(pairs)
    ]


def test_policies_of_every_depth_take_turns():
    results = of_widths([(0, 3), (0, 2), (0, 1), (3, 3), (2, 2), (0, 0)])
    chosen = [tuple(r.policy.widths.values()) for r in diverse(results, Limit.of(latency_ms=1e9), 5)]
    assert chosen == [(0, 3), (3, 3), (0, 0), (0, 2), (2, 2)]


def test_a_policy_that_misses_the_limit_gives_its_turn_to_the_next_of_its_depth():
    asked = []

    def slow_when_wide(policies, limit):
        asked.extend(tuple(policy.widths.values()) for policy in policies)
        return [policy.widths["a"] != 3 for policy in policies]

    results = of_widths([(3, 3), (2, 2), (0, 3), (1, 1), (0, 2)])
    chosen = diverse(results, Limit.of(latency_ms=1e9), 2, slow_when_wide)
    assert {tuple(r.policy.widths.values()) for r in chosen} == {(2, 2), (0, 3)}
    assert asked == [(3, 3), (0, 3), (2, 2)]


def test_ties_go_to_the_earlier_trial():
    twins = [evaluate(spec(number, unit0=2)) for number in (7, 4)]
    same = [TrialResult(**vars(r) | {"measurement": twins[0].measurement}) for r in twins]
    assert [r.number for r in best_within(same, Limit.of(latency_ms=1e9), 1)] == [4]


def test_the_best_are_within_every_maximum():
    small, large = evaluate(spec(1, **dict.fromkeys(SPACE.searched, 2))), evaluate(spec(2))
    assert loss(large) < loss(small)
    free, tight = Limit.of(latency_ms=1e9), Limit.of(latency_ms=1e9, activation_bytes=600)
    assert best_within([small, large], free, 1) == [large]
    assert best_within([small, large], tight, 1) == [small]
