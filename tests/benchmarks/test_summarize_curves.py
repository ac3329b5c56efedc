"""The summary of a benchmark, for curves with known numbers."""

from __future__ import annotations

import pytest
from curves import Row
from summarize_curves import fronts, until

_DENSE = 0.9


def test_front_counts_the_search_once_and_leaves_out_seeds_with_missing_budgets():
    rows = [_row("50%", 0, 0, 0.85, 30), _row("25%", 0, 0, 0.80, 31), _row("50%", 1, 0, 0.90, 99)]
    rows += [_row("50%", 0, 1000, 0.90, 40), _row("25%", 0, 1000, 0.85, 50)]
    by_passes = fronts(rows, _DENSE)
    # The reference is (1, 0.80): 0.5 * 0.05 before fine-tuning, then 0.5 * 0.10 + 0.25 * 0.05, of an area of 0.10.
    assert [by_passes[0].volume, by_passes[1000].volume] == pytest.approx([0.25, 0.625])
    assert [by_passes[0].spent, by_passes[1000].spent] == [500, 1500]
    assert [by_passes[0].seconds, by_passes[1000].seconds] == [31, 60]


def test_until_interpolates_between_points():
    rows = [_row("50%", 0, 0, 0.85, 30), _row("50%", 0, 1000, 0.90, 40)]
    front = list(fronts(rows, _DENSE).values())
    assert until(front, 0.375) == "1,000 passes for each budget, 35 s"
    assert until(front, 0.2) == "500 passes for each budget and 30 s, or less"
    assert until(front, 0.6) == "not after 1,500 passes for each budget"


def _row(budget: str, seed: int, passes: int, score: float, seconds: float) -> Row:
    ratio = float(budget.rstrip("%")) / 100
    return Row(
        method="guided", model="net", budget=budget, seed=seed, search_passes=500, passes=passes, test_score=score,
        latency_ratio=ratio, params=1, macs=1, seconds=seconds,
    )  # fmt: skip
