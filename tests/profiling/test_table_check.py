from dataclasses import replace

import numpy as np
import pytest

from autoprune.latency.table import HELD_OUT
from autoprune.profiling.table_check import check_table
from tests.machines import QUICK, AdditiveMachine, doubled, recording_timer, simulated_table, simulated_timer, stairs


@pytest.fixture
def machine(structure_of):
    """The machine that `table` was measured on; with noise of its own today."""
    return AdditiveMachine(structure_of("residual"), noise=0.003, seed=77)


@pytest.fixture
def checked(machine, target):
    """Check a table on a simulated machine."""

    def check(table, machine=machine, **options):
        timer = simulated_timer(machine, target, **options)
        return check_table(table, machine.structure, target, timer=timer)

    return check


def test_a_table_holds_on_the_machine_that_it_was_measured_on(table, checked, machine, structure_of):
    check, same = checked(table), AdditiveMachine(structure_of("residual"), noise=0.003, seed=77)
    held = [sample for sample in table.samples if sample.role == HELD_OUT][:30]
    rows = np.array([list(sample.widths.values()) for sample in held])
    measured, again = same.ratios(rows), same.ratios(rows[:8])
    predicted = np.array([sample.predicted_ms for sample in held]) / table.dense_ms
    assert check.holds
    assert check.now.policies == 30
    assert check.now.mape_percent == pytest.approx(100 * np.abs(predicted / measured - 1).mean())
    assert check.now.mape_percent < 1.5
    assert check.now.noise_percent == pytest.approx(100 * np.abs(again / measured[:8] - 1).mean())
    assert check.before == table.held_out
    assert check.dense_ms_now == pytest.approx(check.dense_ms_before)


def test_a_table_whose_entries_were_doubled_does_not_hold(table, checked):
    check = checked(doubled(table))
    assert not check.holds
    assert check.now.mape_percent > 50
    assert check.now.bias_percent > 50
    assert check.now.within_2sd < 0.1


def test_a_table_of_another_machine_does_not_hold(table, checked, structure_of):
    """The same model where registers are twice as long."""

    check = checked(table, AdditiveMachine(structure_of("residual"), stairs(8)))
    assert not check.holds


def test_a_faster_clock_alone_changes_nothing(table, checked):
    check = checked(table, speed=2.0)
    assert check.holds
    assert check.dense_ms_now == pytest.approx(table.dense_ms / 2)
    assert check.dense_ms_before == table.dense_ms


def test_a_table_that_was_never_good_may_stay_as_it_was(table, checked):
    check = checked(table)
    bad_now = replace(check.now, mape_percent=5.0)
    assert not replace(check, now=bad_now).holds
    assert replace(check, now=bad_now, before=replace(check.before, mape_percent=4.0)).holds
    assert replace(check, now=replace(check.now, mape_percent=2.9)).holds


def test_held_out_policies_alone_are_measured_and_some_of_them_twice(table, checked, machine):
    asked = []
    original = machine.ratios
    machine.ratios = lambda widths: asked.append(widths) or original(widths)
    told = []
    checked(table, on_progress=lambda *stage: told.append(stage))
    held = [list(s.widths.values()) for s in table.samples if s.role == HELD_OUT]
    np.testing.assert_array_equal(asked[0], held[:30])
    np.testing.assert_array_equal(asked[1], held[:8])
    assert ("measuring again", 30, 30) in told


def test_few_held_out_policies_are_all_measured(structure_of, space_of, target, checked):
    machine = AdditiveMachine(structure_of("residual"), noise=0.003)
    table = simulated_table(machine, space_of("residual"), target, tested=5)
    check = checked(table, machine)
    assert check.now.policies == 5


def test_a_real_check_measures_here(table, structure_of, target):
    """The table is of a simulated machine, so that nothing is known about whether it holds."""
    timer = recording_timer(structure_of("residual"), target)
    check = check_table(table, structure_of("residual"), target, protocol=QUICK, timer=timer)
    held = [sample.predicted_ms for sample in table.samples if sample.role == HELD_OUT][:30]
    ratios = np.array(timer.timings[0].ratios)
    assert [len(timings.ratios) for timings in timer.timings] == [30, 8]
    assert check.now.policies == 30
    assert check.now.mape_percent == pytest.approx(100 * np.abs(held / (ratios * table.dense_ms) - 1).mean())
    assert check.dense_ms_now == timer.timings[0].reference_ms
    assert check.dense_ms_before == table.dense_ms
