"""Plots are figures that plotly accepts, and the script that holds one is ended by nothing in it."""

from __future__ import annotations

import json
import re

import plotly.graph_objects as go
import pytest

from autoprune.latencies import Staircase
from autoprune.report.html import front_plot
from autoprune.report.plots import Plot
from autoprune.report.staircases import staircase_plot

MODEL = {"digest": "a1", "test_score": 0.9, "latency_ms_measured": 1.0, "latency_ratio": 0.5}
DOCUMENT = {
    "dense": {"test_score": 0.95, "latency_ms_measured": 2.0}, "metric": "accuracy", "models": [MODEL], "others": [],
    "baselines": [MODEL | {"test_score": 0.8}],
}  # fmt: skip
STAIRS = [
    Staircase(unit=name, widths=(2, 4), latency_ms=(0.01, 0.02), sd_ms=(0.0, 0.001), useful=(2, 4))
    for name in ("a", "b", "c", "d")
]


def decoded(plot: Plot) -> list:
    """Traces, layout and options that the page hands to plotly.js."""
    call = re.findall(r"<script>Plotly\.newPlot\((.*)\)</script>", plot.html())[-1]
    return json.loads(f"[{call}]")[1:]


@pytest.mark.parametrize("plot", [front_plot(DOCUMENT), staircase_plot(STAIRS, "this host")], ids=["front", "stairs"])
def test_plotly_accepts_the_figure(plot: Plot) -> None:
    traces, layout, _ = decoded(plot)
    figure = go.Figure(data=traces, layout=layout)
    assert figure.layout.template.layout.font.color == "rgb(36,36,36)"  # pyright: ignore[reportAttributeAccessIssue]
    assert len(figure.data) == len(plot.traces)  # pyright: ignore[reportArgumentType]


def test_the_front_is_drawn_beside_dense_and_uniform() -> None:
    traces, layout, _ = decoded(front_plot(DOCUMENT))
    assert [(t["name"], t["x"], t["y"]) for t in traces] == [
        ("dense", [2.0], [0.95]), ("uniform", [1.0], [0.8]), ("front", [1.0], [0.9]),
    ]  # fmt: skip
    assert layout["xaxis"]["title"]["text"] == "measured latency, ms"


def test_every_unit_has_axes_of_its_own() -> None:
    traces, layout, _ = decoded(staircase_plot(STAIRS, "this host"))
    assert [t["xaxis"] for t in traces] == ["x", "x", "x2", "x2", "x3", "x3", "x4", "x4"]
    assert {"xaxis", "xaxis2", "xaxis3", "xaxis4", "yaxis", "yaxis4"} < layout.keys()
    assert [each["text"] for each in layout["annotations"]] == ["a", "b", "c", "d"]
    assert layout["grid"]["rows"] == 2


def test_no_text_ends_the_script_and_no_number_breaks_it() -> None:
    text = "</script><script>alert(1)</script> \u2028 &"
    plot = Plot(traces=[{"type": "scatter", "name": text, "y": (1.0, float("nan"))}], layout={"height": 1})
    traces, _, _ = decoded(plot)
    assert traces == [{"type": "scatter", "name": text, "y": [1.0, None]}]
    assert "alert(1)</script>" not in plot.html()
