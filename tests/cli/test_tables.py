"""Printed tables lose nothing, however narrow the terminal is."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

import autoprune
from autoprune.cli.tables import show_table
from autoprune.report import front_table, rung_table


def printed(table: Table, width: int) -> str:
    stream = io.StringIO()
    show_table(table, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("make", [front_table, rung_table])
@pytest.mark.parametrize("width", [20, 40, 79, 120, 10_000])
def test_every_number_of_a_run_is_printed_whole(finished: autoprune.Run, make, width: int) -> None:
    whole = printed(make(finished.document), 10_000)
    numbers = sorted(re.findall(r"[+-]?\d+\.?\d*(?: [%a-zA-Z]+)?|\b[0-9a-f]{12}\b", whole))
    narrow = printed(make(finished.document), width)
    assert "…" not in narrow
    shown = narrow if width > 300 else re.sub(r",\s+", ", ", narrow)
    for number in numbers:
        assert number in shown
    assert all(len(line) <= max(width, 60) for line in narrow.splitlines())


def test_long_text_folds_and_short_columns_stay() -> None:
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("share", justify="right")
    table.add_column("reason")
    table.add_row("layers.0", "50.8 %", "because " * 20 + "x" * 30)
    lines = printed(table, 60).splitlines()
    assert any("layers.0" in line and "50.8 %" in line for line in lines)
    assert all(len(line) <= 60 for line in lines)
    assert "".join(printed(table, 60).split()).count("because") == 20
