from __future__ import annotations

import io

import pytest
from rich.console import Console

from autoprune.records import Member, Unit
from autoprune.report import layer_table, unit_table
from autoprune.report.tables import _count, treated_layers
from autoprune.treatments import Layer


def test_units_show_what_may_be_removed() -> None:
    members = (Member(parameter="a.weight", dim=0, per_channel=1),)
    units = [Unit(name=n, kind="channel", width=8, members=members, removable=n == "inner") for n in ("stem", "inner")]
    stream = io.StringIO()
    shares = {"stem": (0.5, 0.25), "inner": (0.125, 0.75)}
    Console(file=stream, width=100).print(unit_table(units, {"stem": (4, 8), "inner": (0, 4, 8)}, shares))
    rows = {line.split()[1]: line.split() for line in stream.getvalue().splitlines() if "a.weight" in line}
    assert rows["inner"][5:14] == ["yes", "│", "12.5%", "│", "75.0%", "│", "0", "4", "8"]
    assert "yes" not in rows["stem"]


def test_latency_is_shown_when_it_is_known() -> None:
    unit = Unit(name="stem", kind="channel", width=8, members=(Member(parameter="a.weight", dim=0, per_channel=1),))
    stream = io.StringIO()
    table = unit_table([unit], {"stem": (4, 8)}, {"stem": (0.5, 0.25)}, {"stem": 0.3})
    Console(file=stream, width=100).print(table)
    assert "latency" in stream.getvalue()
    assert "30.0%" in stream.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (999_400, "999 k"), (999_600, "1 M"), (78_100, "78.1 k"), (2_000_000_000, "2 G")]
)
def test_counts_have_three_digits(number: int, text: str) -> None:
    assert _count(number) == text


@pytest.mark.parametrize(
    ("treatments", "text"),
    [
        (["rank:8", "rank:24", "int8"], "rank in 2, int8 in 1 of 5"),
        (["sparse:50%", "sparse:87.5%", "int8+sparse:50%", "2:4"], "sparse in 2, int8+sparse in 1, 2:4 in 1 of 5"),
        (["int8"], "int8 in 1 of 5"),
        ([], "fp32"),
    ],
)
def test_layers_with_different_ranks_or_shares_count_together(treatments: list[str], text: str) -> None:
    assert treated_layers({"treatments": dict(zip("abcd", treatments, strict=False))}, 5) == text


def test_layers_of_one_module_are_told_apart() -> None:
    names = ("lstm.weight_ih_l0", "lstm.weight_ih_l1", "head.weight")
    layers = [Layer(name=name, op="", nodes=(), precisions=("fp32", "int8-dynamic")) for name in names]
    table = layer_table(layers, {})
    assert [*table.columns[0].cells] == ["lstm.weight_ih_l0", "lstm.weight_ih_l1", "head"]
