from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from autoprune.records import Member, Unit
from autoprune.report import RunView, front_table, layer_table, rung_table, unit_table
from autoprune.report.cards import model_header, model_rows
from autoprune.report.tables import _count, treated_layers
from autoprune.treatments import Layer


def test_units_show_what_may_be_removed() -> None:
    members = (Member(parameter="a.weight", dim=0, per_channel=1),)
    units = [Unit(name=n, kind="channel", width=8, members=members, removable=n == "inner") for n in ("stem", "inner")]
    stream = io.StringIO()
    shares = {"stem": (0.5, 0.25), "inner": (0.125, 0.75)}
    Console(file=stream, width=100).print(unit_table(units, {"stem": (4, 8), "inner": (0, 4, 8)}, shares))
    rows = {line.split()[1]: line.split() for line in stream.getvalue().splitlines() if "a.weight" in line}
    assert rows["inner"][3:16] == ["channel", "│", "8", "│", "yes", "│", "12.5%", "│", "75.0%", "│", "0", "4", "8"]
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


def test_layers_name_all_that_they_can_have() -> None:
    fc = Layer(name="fc.weight", op="linear", nodes=(), precisions=("fp32", "w4"), matrix=(8, 8), shapes=((8, 8),))
    stem = Layer(name="stem.weight", op="conv2d", nodes=(), precisions=("fp32",), shapes=((8, 3, 3, 3),))
    assert [*layer_table([fc, stem], {}).columns[2].cells] == ["fp32 w4 rank sparse 2:4", "fp32 sparse"]


DENSE = {"score": 0.99, "test_score": 0.98, "latency_ms_measured": 0.2, "bytes": 100, "params": 25}
MODEL = DENSE | {"macs": 1,
    "digest": "a1", "strategy": "guided", "budget": "35.4%", "meets_budget": True, "latency_ratio": 0.3,
    "latency_ms_predicted": 0.07,
}  # fmt: skip
DOCUMENT = {"dense": DENSE, "metric": "accuracy", "models": [MODEL], "others": [], "baselines": []}


def columns(table: Table) -> dict[str, list[str]]:
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def test_latencies_that_a_score_led_to_are_told_as_that_budget() -> None:
    rungs = [{"rung": "proxy", "budget": "35.4%", "strategy": s, "score": 0.9} for s in ("searched", "uniform")]
    document = DOCUMENT | {"budgets": ["50%", "score:-1%"], "rungs": rungs}
    assert columns(front_table(document))["budget"] == ["", "score:-1% (35.4%)"]
    assert columns(rung_table(document))["budget"] == ["score:-1% (35.4%)"]
    assert columns(front_table(document | {"budgets": ["35.4%", "score:-1%"]}))["budget"] == ["", "35.4%"]


def test_predictions_have_a_column_where_a_table_made_some() -> None:
    assert columns(front_table(DOCUMENT))["predicted"] == ["", "70 us"]
    unpredicted = DOCUMENT | {"models": [MODEL | {"latency_ms_predicted": None}]}
    assert "predicted" not in columns(front_table(unpredicted))
    for document, count in ((DOCUMENT, 1), (unpredicted, 0)):
        run = RunView(path=Path("run"), config={}, document={"held_out": {"noise_percent": 1.0}, **document})
        assert model_header(run).count("predicted") == count
        assert len(model_rows(run)[0]) == len(model_header(run))
