from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from autoprune.latencies import Staircase
from autoprune.report.staircases import sparkline, staircase_table, write_staircases

STEM = Staircase(unit="stem", widths=(2, 4, 8), latency_ms=(0.01, 0.01, 0.02), sd_ms=(0.0, 0.0, 0.001), useful=(4, 8))
TARGET = {"name": "this host", "threads": 1, "batch": 1, "precision": "fp32"}


def test_a_row_has_widths_costs_and_useful_widths() -> None:
    stream = io.StringIO()
    Console(file=stream, width=100).print(staircase_table([STEM]))
    row = next(line for line in stream.getvalue().splitlines() if "stem" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["stem", "2-8", "10-20 us", "▅▅█", "4 8"]


def test_a_sparkline_of_zeros_is_flat() -> None:
    assert sparkline([0.0, 0.0]) == "▁▁"


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    page = write_staircases([STEM, STEM], TARGET, tmp_path / "stairs.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "this host, 1 thread(s), batch 1, fp32" in page
    assert "<script src=" not in page
