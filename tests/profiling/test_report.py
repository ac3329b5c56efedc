from dataclasses import replace

import numpy as np
import pytest

from autoprune.latency.fitting import HeldOut
from autoprune.latency.table import HELD_OUT, SCAN
from autoprune.profiling.report import accuracy_lines, check_lines, errors_line, latency_shares
from autoprune.profiling.table_check import TableCheck
from tests.machines import AdditiveMachine, simulated_table

ERRORS = HeldOut(
    policies=40,
    mape_percent=1.26,
    max_percent=4.04,
    bias_percent=-0.31,
    spearman=0.9912,
    noise_percent=0.62,
    within_2sd=0.925,
)
LINE = (
    "on 40 held-out policies: mean error 1.3 %, largest 4.0 %, bias -0.3 %, Spearman 0.991, re-measure noise 0.6 %; "
    "92% within two predicted standard deviations"
)


def test_errors_are_one_line():
    assert errors_line(ERRORS) == LINE
    assert "bias +0.3 %" in errors_line(replace(ERRORS, bias_percent=0.31))


def test_a_table_says_how_it_was_made_and_how_good_it_is(table):
    samples = (replace(table.samples[0], role=SCAN), *table.samples[1:])
    reported = replace(table, held_out=ERRORS, dense_ms=0.5004, remainder_ms=0.05, samples=samples)
    assert accuracy_lines(reported) == [
        "ort-cpu, 1 thread(s), batch 1, fp32: dense 500 us, of which 50 us are fixed",
        f"{len(table.entries)} geometries from 1 scanned and 119 sampled policies in 2 s; the dense model moved by at "
        "most 1.0 % within a block (2 blocks repeated)",
        LINE,
        "simulated",
    ]


def test_a_table_without_scans_says_so_and_refits_are_counted(table):
    held = tuple(sample for sample in table.samples if sample.role == HELD_OUT)
    lines = accuracy_lines(replace(table, samples=held, notes=(), refits=2))
    assert "from 0 scanned and 0 sampled policies" in lines[1]
    assert lines[-1] == "fitted again 2 time(s) with measured candidates"


def test_a_check_says_whether_the_table_holds():
    good = TableCheck(now=ERRORS, before=ERRORS, dense_ms_now=0.55, dense_ms_before=0.5)
    first, then, now, last = check_lines(good)
    assert first == "the dense model takes 550 us now, +10.0% against the table"
    assert (then, now) == (f"then: {LINE}", f"now:  {LINE}")
    assert last == "the table still holds"
    bad = replace(good, now=replace(ERRORS, mape_percent=9.0))
    assert "no longer holds" in check_lines(bad)[-1]
    assert "autoprune profile" in check_lines(bad)[-1]


def test_the_latency_that_a_unit_is_worth(structure_of, space_of, target):
    structure = structure_of("residual")
    machine = AdditiveMachine(structure)
    table = simulated_table(machine, space_of("residual"), target)
    shares = latency_shares(table, structure)
    assert list(shares) == [unit.name for unit in structure.units]
    for place, unit in enumerate(structure.units):
        widths = np.array([[other.width for other in structure.units]])
        widths[0, place] = min(table.known[unit.name])
        assert shares[unit.name] == pytest.approx(1 - machine.ms(widths)[0] / machine.dense_ms, abs=0.02)
