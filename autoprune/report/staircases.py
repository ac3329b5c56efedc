"""Latency against width, unit by unit: a table with small drawings for the terminal, and a page with plots."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from autoprune.latencies import Staircase
from autoprune.report.plots import Plot
from autoprune.runfolder import write_atomic

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 3


def staircase_table(stairs: Sequence[Staircase]) -> Table:
    """Cost of each unit's operators from its smallest to its full width, and the widths that no larger one beats."""
    table = Table(title="Cost of each unit's operators against its width", title_justify="left", title_style="bold")
    table.add_column("unit", no_wrap=True)
    table.add_column("widths", justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("staircase", no_wrap=True)
    table.add_column("useful widths")
    for stair in stairs:
        table.add_row(
            stair.unit,
            f"{stair.widths[0]}-{stair.widths[-1]}",
            f"{stair.latency_ms[0] * 1e3:.1f}-{stair.latency_ms[-1] * 1e3:.1f} us",
            sparkline(stair.latency_ms),
            " ".join(map(str, stair.useful)),
        )
    return table


def sparkline(values: Sequence[float]) -> str:
    """One block character for each value, from 0 to the largest."""
    top = max(values)
    heights = [int(value / top * len(_BARS)) if top > 0 else 0 for value in values]
    return "".join(_BARS[min(height, len(_BARS) - 1)] for height in heights)


def write_staircases(stairs: Sequence[Staircase], target: Mapping[str, Any], path: Path) -> Path:
    """Write a self-contained page with one plot for each unit, atomically."""
    title = f"{target['name']}, {target['threads']} thread(s), batch {target['batch']}, {target['precision']}"
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Staircases, {html.escape(title)}</title>\n"
    write_atomic(path, (page + staircase_plot(stairs, title).html() + "</html>\n").encode())
    return path


def staircase_plot(stairs: Sequence[Staircase], title: str) -> Plot:
    """Latency of each unit's operators against its width, with two standard deviations; useful widths are marked."""
    rows = -(-len(stairs) // _COLUMNS)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "title": {"text": title},
        "height": 280 * rows + 80,
        "grid": {"rows": rows, "columns": _COLUMNS, "pattern": "independent"},
        "annotations": [],
    }
    for number, stair in enumerate(stairs, start=1):
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"} if number > 1 else {"xaxis": "x", "yaxis": "y"}
        traces += [axes | trace for trace in _stair_traces(stair, in_legend=number == 1)]
        for axis, label in zip(axes.values(), ("width", "us"), strict=True):
            layout[f"{axis[0]}axis{axis[1:]}"] = {"title": {"text": label}, "rangemode": "tozero"}
        layout["annotations"].append(
            {
                "text": stair.unit, "showarrow": False, "font": {"size": 16},
                "xref": f"{axes['xaxis']} domain", "x": 0.5, "xanchor": "center",
                "yref": f"{axes['yaxis']} domain", "y": 1.0, "yanchor": "bottom",
            }
        )  # fmt: skip
    return Plot(traces=traces, layout=layout)


def _stair_traces(stair: Staircase, *, in_legend: bool) -> list[dict[str, Any]]:
    us = [1e3 * ms for ms in stair.latency_ms]
    chosen = [i for i, width in enumerate(stair.widths) if width in stair.useful]
    return [
        {
            "type": "scatter", "mode": "lines+markers", "x": stair.widths, "y": us, "showlegend": False,
            "marker": {"size": 4, "color": "#57606a"}, "line": {"width": 1},
            "error_y": {"type": "data", "array": [2e3 * ms for ms in stair.sd_ms], "thickness": 0.7, "width": 0},
        },
        {
            "type": "scatter", "mode": "markers", "name": "useful width", "showlegend": in_legend,
            "x": [stair.widths[i] for i in chosen], "y": [us[i] for i in chosen],
            "marker": {"size": 9, "color": "#0969da"},
        },
    ]  # fmt: skip
