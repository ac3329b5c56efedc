from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import UsageError
from autoprune.search.effort import EFFORTS, Effort
from autoprune.trials import FORWARD_SHARE

MNIST5K = {"train_examples": 3_500, "val_examples": 500}
FASHION = {"train_examples": 55_000, "val_examples": 5_000}
sizes = st.builds(dict, train_examples=st.integers(1, 2_000_000), val_examples=st.integers(1, 100_000))


def samples(effort):
    return [fidelity.finetune_samples for fidelity in (*effort.rungs, effort.full)]


def test_a_small_search_of_fashion_mnist():
    assert samples(Effort.derive("small", **FASHION)) == [0, 2_000, 10_000, 110_000]


def test_small_data_limits_the_rungs():
    assert samples(Effort.derive("small", **MNIST5K)) == [0, 2_000, 10_000, 80_500]


@given(st.sampled_from(EFFORTS), sizes)
def test_fidelities_grow_and_the_counts_shrink(name, size):
    effort = Effort.derive(name, **size)
    assert [f.rung for f in (*effort.rungs, effort.full)] == [0, 1, 2, 3]
    assert sorted(set(samples(effort))) == samples(effort)
    assert effort.full.finetune_samples % size["train_examples"] == 0
    assert list(effort.promoted) == sorted(effort.promoted, reverse=True)
    assert all(f.val_samples <= 1_000 for f in effort.rungs)


@given(sizes, st.integers(1, 4))
def test_more_effort_costs_more(size, budgets):
    costs = [Effort.derive(n, **size).sample_passes(budgets, size["val_examples"]) for n in EFFORTS]
    assert sorted(costs) == costs


def test_the_estimate_adds_up():
    effort = Effort.derive("small", **FASHION, trials=10)
    counts = {fidelity.name: count for fidelity, count in effort.trials_at(2).items()}
    assert counts == {"proxy": 10, "brief": 14, "longer": 6, "full": 4}
    finetuning = 1.1 * (14 * 2_000 + 6 * 10_000 + 4 * 110_000)  # a tenth more on held-out examples
    teacher = FORWARD_SHARE * (2_000 + 10_000 + 110_000)
    repair = 256 * (10 + 14 + 6 + 4)
    scoring = FORWARD_SHARE * (repair + 10 * 500 + 2 * (14 * 500 + 10 * 5_000) + 24 * 2 * 128)  # before and after
    assert effort.sample_passes(2, 5_000) == pytest.approx(finetuning + teacher + scoring)


def test_bad_efforts_are_refused():
    with pytest.raises(UsageError, match=r"unknown effort 'smal'.*'small'"):
        Effort.derive("smal", **FASHION)
    with pytest.raises(UsageError, match="at least one trial"):
        Effort.derive("small", **FASHION, trials=0)
    with pytest.raises(UsageError, match="validation data"):
        Effort.derive("small", train_examples=10, val_examples=0)


def test_the_task_may_say_how_long_the_full_fine_tune_is():
    assert samples(Effort.derive("small", **FASHION, full_epochs=2)) == [0, 2_000, 10_000, 110_000]
    short = Effort.derive("small", **FASHION, full_epochs=0.02)
    assert samples(short) == [0, 1_100, 1_100, 1_100]
    assert samples(Effort.derive("small", **MNIST5K, full_epochs=2.5))[-1] == 2.5 * MNIST5K["train_examples"]
