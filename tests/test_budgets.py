from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.budgets import Bound, Budget, Limit, ScoreBudget, alternatives, most_of, parse_budget
from autoprune.errors import BudgetError, UsageError
from autoprune.records import COSTS

DENSE = (2.0, 1_000.0, 50_000.0, 4_000.0, 800.0)
BYTES = ("B", "kB", "MB", "GB", "KiB", "MiB", "GiB")
UNITS = {
    "latency": ("ms", "us", "s"),
    "params": ("", "k", "M", "G"),
    "macs": ("", "k", "M", "G"),
    "bytes": ("", *BYTES),
    "activation_bytes": ("", *BYTES),
}
numbers = st.floats(1e-6, 1e15, allow_subnormal=False) | st.integers(1, 10**6).map(float)
bounds = st.sampled_from(list(UNITS)).flatmap(
    lambda cost: (
        st.builds(Bound, cost=st.just(cost), number=numbers, unit=st.sampled_from(UNITS[cost]))
        | st.builds(Bound, cost=st.just(cost), number=st.floats(0.001, 100), unit=st.just("%"))
    )
)
budgets = st.builds(lambda chosen: Budget(bounds=tuple(chosen)), st.lists(bounds, min_size=1, max_size=4))


def most(text: str, cost: str) -> float:
    return Budget.parse(text).limit(DENSE).most[COSTS.index(cost)]


@given(budgets)
def test_a_budget_survives_being_written(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget
    assert "e" not in str(budget).replace("bytes", "").replace("latency", "")


@given(budgets)
def test_all_bounds_count_and_of_two_on_one_cost_the_tighter(budget: Budget) -> None:
    limit = budget.limit(DENSE)
    alone = [Budget(bounds=(bound,)).limit(DENSE).most for bound in budget.bounds]
    assert limit.most == tuple(min(column) for column in zip(*alone, strict=True))
    assert budget.timed == math.isfinite(limit.most[0])


@pytest.mark.parametrize(
    ("text", "cost", "expected"),
    [
        ("50%", "latency_ms", 1.0),
        ("latency:50%", "latency_ms", 1.0),
        ("1.2ms", "latency_ms", 1.2),
        (" 800us ", "latency_ms", 0.8),
        ("0.01 s", "latency_ms", 10.0),
        ("100%", "latency_ms", 2.0),
        ("params:50k", "params", 50_000),
        ("params: 29%", "params", 290),
        ("macs:10M", "macs", 10e6),
        ("macs:.5G", "macs", 0.5e9),
        ("bytes:1MB", "bytes", 1_000_000),
        ("bytes:256KiB", "bytes", 256 * 1024),
        ("bytes:4096", "bytes", 4096),
        ("bytes:50%", "bytes", 2_000),
        ("activation_bytes:100kB", "activation_bytes", 100_000),
        ("activation_bytes:25%", "activation_bytes", 200),
        ("params:1%,50%, bytes:1MiB", "bytes", 2**20),
        ("50%,0.5ms", "latency_ms", 0.5),
        ("50%,1.5ms", "latency_ms", 1.0),
    ],
)
def test_budgets_are_read(text: str, cost: str, expected: float) -> None:
    assert most(text, cost) == pytest.approx(expected)
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


def test_a_share_of_a_count_is_exact() -> None:
    """0.29 x 100 would be 28.999999999999996, and a policy with exactly 29 parameters would not fit."""
    for percent in range(1, 101):
        assert Bound.parse(f"params:{percent}%").most(100) == percent


@pytest.mark.parametrize(
    ("text", "shown"),
    [("50.0%", "50%"), ("latency: 800us", "800us"), ("bytes:1MB,50%", "bytes:1MB,50%"), ("50%,50.0%", "50%")],
)
def test_budgets_are_shown_as_they_were_written(text: str, shown: str) -> None:
    assert str(Budget.parse(text)) == shown


NONSENSE = [
    "0", "0%", "-1ms", "50", "abc", "", "0ms", "150%", "nan%", "inf%", "1e3ms", "ms", "50%,", "bytes:", "bytes:-1",
    "bytes:0kB", "bytes:1ms", "params:1kB", "params:101%", "9" * 400 + "ms", "9" * 308 + "s", "bytes:1 MB MB",
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_budgets_that_make_no_sense(text: str) -> None:
    with pytest.raises(BudgetError, match=r"50%|at most 100%"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["watts:5", "watts:5%", "50%,byte:1MB", "Bytes:1MB", "latency_ms:5"])
def test_unknown_costs_list_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown cost .* Known: activation_bytes, bytes, latency, macs, params"):
        Budget.parse(text)


@pytest.mark.parametrize(("text", "units"), [("params:3ms", "%, k, M, G"), ("50", "%, ms, us, s")])
def test_a_wrong_unit_lists_the_right_ones(text: str, units: str) -> None:
    with pytest.raises(BudgetError, match=f"units {units}"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("given_texts", "expected"),
    [
        (["50%", "33%"], ["50%", "33%"]),
        (["50%", "33%", "bytes:1MB"], ["50%,bytes:1MB", "33%,bytes:1MB"]),
        (["bytes:1MB", "params:50%,1ms", "macs:1M"], ["params:50%,1ms,bytes:1MB,macs:1M"]),
        (["bytes:1MB", "params:50%"], ["bytes:1MB,params:50%"]),
        (["bytes:1MB"], ["bytes:1MB"]),
        (["bytes:25%", "bytes:12%"], ["bytes:25%", "bytes:12%"]),
        (["params:50%", "bytes:25%", "bytes:12%"], ["bytes:25%,params:50%", "bytes:12%,params:50%"]),
        (["50%", "bytes:25%", "bytes:12%"], ["50%,bytes:25%,bytes:12%"]),
        (["50%", "50%,bytes:1MB", "bytes:1MB"], ["50%,bytes:1MB"]),
    ],
)
def test_one_cost_has_alternatives_and_all_else_is_added_to_each(given_texts: list[str], expected: list[str]) -> None:
    assert [str(b) for b in alternatives([Budget.parse(text) for text in given_texts])] == expected


@given(st.lists(budgets, min_size=1, max_size=4))
def test_one_alternative_for_every_budget_with_a_latency(given_budgets: list[Budget]) -> None:
    combined = alternatives(given_budgets)
    timed = [budget for budget in given_budgets if budget.timed]
    assert 1 <= len(combined) <= max(len(timed or given_budgets), 1)
    if timed:
        always = {bound for budget in given_budgets if not budget.timed for bound in budget.bounds}
        assert all(always <= set(budget.bounds) for budget in combined)
    assert {bound for budget in combined for bound in budget.bounds} == {b for bs in given_budgets for b in bs.bounds}


limits = st.builds(Limit.of, **{name: st.floats(1e-9, 1e12) | st.just(math.inf) for name in COSTS})


@given(limits)
def test_a_limit_survives_json_and_pickle_and_is_a_key(limit: Limit) -> None:
    for copy in (
        Limit.from_json(json.loads(json.dumps(limit.to_json(), allow_nan=False))),
        pickle.loads(pickle.dumps(limit)),
    ):
        assert copy == limit
        assert {limit: 1}[copy] == 1


def test_a_limit_is_shown_with_its_units() -> None:
    limit = Budget.parse("50%,bytes:1MB,activation_bytes:2KiB").limit(DENSE)
    assert str(limit) == "1 ms, 1,000,000 bytes, 2,048 activation bytes"
    assert limit.limited == ("latency_ms", "bytes", "activation_bytes")
    assert limit.shown([0.25, 1, 2, 3, 4]) == "250 us, 3 bytes, 4 activation bytes"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_limit_is_above_zero(value: float) -> None:
    with pytest.raises(BudgetError, match="maximum above 0"):
        Limit.of(bytes=value)


def test_a_limit_knows_its_costs() -> None:
    with pytest.raises(UsageError, match="unknown cost 'watts'"):
        Limit.of(watts=1)
    with pytest.raises(BudgetError, match="for each of latency_ms"):
        Limit(most=(1.0,))


def test_a_latency_alone() -> None:
    assert most_of("latency", "50%", 2.0) == 1.0
    assert most_of("latency", "800us", 2.0) == pytest.approx(0.8)
    with pytest.raises(BudgetError, match="a limit on latency is a share"):
        most_of("latency", "bytes:1MB", 2.0)


@pytest.mark.parametrize(
    ("text", "dense", "least"),
    [("score:-1%", 0.9, 0.891), (" score : -0.5 %", 0.8, 0.796), ("score:0.92", 0.5, 0.92), ("score:-2%", -5.0, -5.1)],
)
def test_a_budget_by_score_keeps_a_share_of_the_dense_score_or_a_number(text: str, dense: float, least: float) -> None:
    budget = parse_budget(text)
    assert isinstance(budget, ScoreBudget)
    assert budget.least(dense) == pytest.approx(least)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["score:1%", "score:-100%", "score:", "score:-1%,bytes:1MB", "score:-1ms", "score"])
def test_a_budget_by_score_that_makes_no_sense_says_what_can_be_written(text: str) -> None:
    with pytest.raises(BudgetError, match=r"score:-1%.*score:0\.92.*stands alone"):
        parse_budget(text)
