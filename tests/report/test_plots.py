"""Plots are figures that plotly accepts, and the script that holds one is ended by nothing in it."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

import autoprune
from autoprune.latencies import Staircase
from autoprune.report import RunView, read_run
from autoprune.report.cards import kept_plot
from autoprune.report.front_plot import front_plot
from autoprune.report.html import report_parts
from autoprune.report.plots import packed_plotly, script_json
from autoprune.report.runview import ShownTrial
from autoprune.report.search_plots import _axis_range, _maximum_text
from autoprune.report.staircases import staircase_plot

MODEL = {
    "digest": "a1", "test_score": 0.9, "score": 0.91, "latency_ms_measured": 1.0, "latency_ms_predicted": 1.1,
    "latency_ratio": 0.5, "budget": "50%", "strategy": "guided",
}  # fmt: skip
DOCUMENT = {
    "dense": {"test_score": 0.95, "score": 0.96, "latency_ms_measured": 2.0}, "metric": "accuracy", "models": [MODEL],
    "others": [], "baselines": [MODEL | {"digest": "b2", "test_score": 0.8, "score": 0.8}],
    "held_out": {"noise_percent": 1.0}, "score_examples": {"validation": 100, "test": 400},
}  # fmt: skip
VIEW = RunView(path=Path("run"), config={}, document=DOCUMENT)
STAIRS = [
    Staircase(unit=name, widths=(2, 4), latency_ms=(0.01, 0.02), sd_ms=(0.0, 0.001), useful=(2, 4))
    for name in ("a", "b", "c", "d")
]


def test_plotly_accepts_every_figure_of_a_page(finished: autoprune.Run) -> None:
    run = read_run(finished.folder, finished.config.model_dump(), finished.folder.study)
    _, _, sections, _ = report_parts([run, run])
    plots = [plot for section in sections for plot in section.plots] + [staircase_plot(STAIRS, "stairs")]
    assert len(plots) > 8
    for plot in plots:
        figure = go.Figure(data=plot.traces, layout=plot.layout)
        assert len(figure.data) == len(plot.traces)  # pyright: ignore[reportArgumentType]
        assert plot.label


def test_the_front_is_drawn_beside_dense_and_uniform() -> None:
    plot = front_plot([VIEW])
    assert [(t["name"], t["x"], t["y"]) for t in plot.traces] == [
        ("front", [1.0], [0.91]), ("uniform", [1.0], [0.8]), ("dense", [2.0], [0.96]),
    ]  # fmt: skip
    assert [t["meta"]["y"]["test"] for t in plot.traces] == [[0.9], [0.8], [0.95]]
    assert plot.layout["xaxis"]["title"]["text"] == "measured latency, ms"
    symbols = [t["marker"]["symbol"] for t in plot.traces]
    assert len(set(symbols)) == 3
    assert plot.traces[0]["error_x"]["array"] == [pytest.approx(0.0196)]
    narrow, wide = (plot.traces[0]["meta"]["error_y"][of]["array"][0] for of in ("test", "validation"))
    assert 0 < narrow < wide


def test_scored_policies_that_failed_do_not_press_the_models_together() -> None:
    def scored(*scores: float) -> RunView:
        trials = [
            ShownTrial(
                study="rung-0", fidelity="proxy", number=number, digest=str(number), origin="surrogate", ended=None,
                result={"measurement": {"score": score, "latency_ms": 1.0, "latency_source": "predicted"}},
            ) for number, score in enumerate(scores)
        ]  # fmt: skip
        return replace(VIEW, trials=trials)

    plot = front_plot([scored(0.85, 0.1, 0.2)])
    assert plot.traces[0]["name"] == "scored policies (2 more outside: double click)"
    low, high = plot.layout["yaxis"]["range"]
    assert 0.4 < low < 0.7
    assert 0.96 < high < 1.1
    near = front_plot([scored(0.85, 0.9)])
    assert near.traces[0]["name"] == "scored policies"
    assert "range" not in near.layout["yaxis"]


def test_runs_have_a_colour_each() -> None:
    plot = front_plot([VIEW, VIEW])
    assert len({t["marker"]["color"] for t in plot.traces}) == 2


def test_every_unit_has_axes_of_its_own() -> None:
    plot = staircase_plot(STAIRS, "stairs", {"a": [2], "b": [8]})
    assert {t["xaxis"] for t in plot.traces} == {"x", "x2", "x3", "x4"}
    assert {"xaxis", "xaxis2", "xaxis3", "xaxis4", "yaxis", "yaxis4"} < plot.layout.keys()
    assert [each["text"] for each in plot.layout["annotations"]] == ["a", "b", "c", "d"]
    assert plot.layout["grid"]["rows"] == 2
    assert [t["x"] for t in plot.traces if t.get("name") == "chosen on the front"] == [[2]]


def test_no_text_ends_the_script_and_no_number_breaks_it() -> None:
    text = "</script><script>alert(1)</script> \u2028 &"
    written = script_json({"name": text, "y": (1.0, float("nan"), 1 / 3)})
    assert json.loads(written) == {"name": text, "y": [1.0, None, 0.333333]}
    assert not set("<>&\u2028") & set(written)


def test_the_packed_script_is_that_of_the_package() -> None:
    packed = packed_plotly()
    assert len(packed) < 2_200_000
    assert gzip.decompress(base64.b64decode(packed)).startswith(b"/**\n* plotly.js v")


@pytest.mark.parametrize(
    ("cost", "most", "text"),
    [
        ("latency_ms", 0.5, "25% of dense"), ("bytes", 94_110.0, "bytes: 94.1 kB"),
        ("macs", 2_500_000.0, "2,500,000 macs"),
        ("activation_bytes", 2e6, "activation bytes: 2 MB"),
    ],
)  # fmt: skip
def test_a_budget_in_a_legend_has_its_unit(cost: str, most: float, text: str) -> None:
    assert _maximum_text(VIEW, cost, most) == text


def test_scores_that_are_all_the_same_are_drawn_close() -> None:
    assert _axis_range([1.0, 1.0]) == {"range": [0.99, 1.01]}
    assert _axis_range([0.9, 1.0]) == _axis_range([]) == {}


def test_a_unit_without_channels_is_removed() -> None:
    plot = kept_plot(VIEW, "card", MODEL | {"policy": {"stem": 8, "branch": 0}})
    assert plot.traces[0]["text"] == ["8 of 8", "removed"]
