"""Replayed searches stay in the table, and everything else about them is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_table import RUNGS, ReplayTable
from replayed_search import RowSolver, TableExecutor, replay

from autoprune.allocation.limits import fits
from autoprune.search.sensitivity import by_unit, sensitivities, single_unit_policies
from autoprune.trials import TrialSpec

PATH = Path(__file__).parent / "resnet8.csv"
TABLE = ReplayTable.load(PATH)
LIMIT = TABLE.limit(0.33)


def sensitivity_table():
    results = TABLE.results["proxy"]
    return sensitivities(TABLE.space, {p: results[p].measurement.loss for p in single_unit_policies(TABLE.space)})


def test_the_table_has_what_every_replay_needs():
    assert PATH.stat().st_size <= 200_000
    known = set(TABLE.policies)
    assert known >= {TABLE.space.largest(), TABLE.space.smallest(), *single_unit_policies(TABLE.space)}
    assert any(0 in policy.widths.values() for policy in TABLE.within(LIMIT, "proxy"))
    assert set(TABLE.results["epoch"]) <= set(TABLE.results["brief"]) <= known


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    cut = tmp_path / "cut.csv"
    cut.write_text(PATH.read_text()[:-5])
    assert sum(map(len, ReplayTable.load(cut).results.values())) == sum(map(len, TABLE.results.values())) - 1


def test_policies_outside_fit_no_limit():
    levels = TABLE.space.levels
    outside = next(
        policy
        for policy in (TABLE.space.policy({"stem.0": levels["stem.0"][0], n: levels[n][1]}) for n in levels)
        if policy not in set(TABLE.policies)
    )
    assert not fits(TABLE.predict([outside]), TABLE.limit(1.0)).any()


def test_the_solver_is_exact_over_the_rows():
    table = sensitivity_table()
    inside = [policy for policy in TABLE.policies if fits(TABLE.predict([policy])[0], LIMIT)]
    summed = by_unit(TABLE.space, table, inside).sum(axis=1)
    best = RowSolver(TABLE).solve(table, LIMIT)
    assert best == inside[int(summed.argmin())]
    other = RowSolver(TABLE).solve(table, LIMIT, differ_from=[best])
    assert sum(best.widths[n] != other.widths[n] for n in best.widths) >= 2
    assert RowSolver(TABLE).solve(table, TABLE.limit(0.01)) is None


def test_proposals_move_onto_rows_that_fit_and_a_row_stays():
    rng = np.random.default_rng(0)
    for _ in range(20):
        proposed = TABLE.space.policy({n: int(rng.choice(levels)) for n, levels in TABLE.space.levels.items()})
        moved = TABLE.nearest(proposed, TABLE.space, TABLE.predict, LIMIT, rng)
        assert fits(TABLE.predict([moved])[0], LIMIT)
        assert TABLE.nearest(moved, TABLE.space, TABLE.predict, LIMIT, rng) == moved
    assert TABLE.nearest(proposed, TABLE.space, TABLE.predict, TABLE.limit(0.01), rng) is None


def test_a_policy_without_a_score_is_a_failed_trial():
    absent = next(policy for policy in TABLE.policies if policy not in TABLE.results["epoch"])
    executor = TableExecutor(TABLE)
    executor.submit(TrialSpec(number=7, policy=absent, fidelity=RUNGS[-1], seed=3))
    result = executor.wait()
    assert (result.number, result.status, executor.asked) == (7, "failed", [])


@pytest.mark.parametrize("strategy", ["guided", "direct", "random", "uniform"])
def test_a_replay_asks_rows_alone_and_the_same_again(strategy):
    (first,), (again,) = (replay(TABLE, strategy, [TABLE.limit(0.5)], 3) for _ in range(2))
    np.testing.assert_array_equal(first.best, again.best)
    assert first.picked == again.picked
    assert first.best[-1] in {one.loss for one in TABLE.within(TABLE.limit(0.5), "proxy").values()}
    assert (np.diff(first.passes) > 0).all()
