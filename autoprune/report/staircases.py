"""Latency against width, unit by unit: a table with small drawings for the terminal, and a page with plots."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from autoprune.latencies import Staircase, TimeUnit
from autoprune.report.fragments import Section
from autoprune.report.page import page
from autoprune.report.plots import DENSE, FRONT, UNIFORM, Plot
from autoprune.runfolder import write_atomic

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 3


def staircase_table(stairs: Sequence[Staircase]) -> Table:
    """Cost of each unit's operators from its smallest to its full width, and the widths that no larger one beats."""
    table = Table(title="Cost of each unit's operators against its width", title_justify="left", title_style="bold")
    unit = unit_of(stairs)
    table.add_column("unit", no_wrap=True)
    table.add_column("widths", justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("staircase", no_wrap=True)
    table.add_column("useful widths")
    for stair in stairs:
        table.add_row(
            stair.unit,
            f"{stair.widths[0]}-{stair.widths[-1]}",
            f"{stair.latency_ms[0] * unit.per_ms:.3g}-{unit.shown(stair.latency_ms[-1])}",
            sparkline(stair.latency_ms),
            " ".join(map(str, stair.useful)),
        )
    return table


def unit_of(stairs: Sequence[Staircase]) -> TimeUnit:
    """Return the unit of some staircases that are shown beside each other."""
    return TimeUnit.of(ms for stair in stairs for ms in stair.latency_ms)


def sparkline(values: Sequence[float]) -> str:
    """One block character for each value, from 0 to the largest."""
    top = max(values)
    heights = [int(value / top * len(_BARS)) if top > 0 else 0 for value in values]
    return "".join(_BARS[min(height, len(_BARS) - 1)] for height in heights)


def write_staircases(stairs: Sequence[Staircase], target: Mapping[str, Any], path: Path) -> Path:
    """Write a self-contained page with one plot for each unit, atomically."""
    title = f"{target['name']}, {target['threads']} thread(s), batch {target['batch']}, {target['precision']}"
    plot = staircase_plot(stairs, "stairs")
    section = Section(name="staircases", title="Cost of each unit's operators", body=plot.html(), plots=[plot])
    write_atomic(path, page(f"Staircases, {title}", [], [section]).encode())
    return path


def staircase_plot(
    stairs: Sequence[Staircase],
    name: str,
    chosen: Mapping[str, Sequence[int]] | None = None,
    unit: TimeUnit | None = None,
) -> Plot:
    """Latency of each unit's operators against its width, with two standard deviations.

    Args:
        stairs: of the units.
        name: of the plot in its page.
        chosen: widths that models have, by unit.
        unit: of latencies; by default the one that fits the staircases.
    """
    unit = unit or unit_of(stairs)
    rows = -(-len(stairs) // _COLUMNS)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "height": 240 * rows + 80,
        "margin": {"l": 48, "r": 8, "t": 32, "b": 40},
        "grid": {"rows": rows, "columns": _COLUMNS, "pattern": "independent", "xgap": 0.2, "ygap": 0.35},
        "legend": {"orientation": "h", "y": -0.3 / rows, "yanchor": "top", "x": 0},
        "annotations": [],
    }
    for number, stair in enumerate(stairs, start=1):
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"} if number > 1 else {"xaxis": "x", "yaxis": "y"}
        own = (chosen or {}).get(stair.unit, ())
        traces += [axes | trace for trace in _stair_traces(stair, own, unit, in_legend=number == 1)]
        for axis, label in zip(axes.values(), ("width", unit.name), strict=True):
            layout[f"{axis[0]}axis{axis[1:]}"] = {"title": {"text": label}, "rangemode": "tozero"}
        layout["annotations"].append(
            {
                "text": html.escape(stair.unit), "showarrow": False, "font": {"size": 13},
                "xref": f"{axes['xaxis']} domain", "x": 0.5, "xanchor": "center",
                "yref": f"{axes['yaxis']} domain", "y": 1.0, "yanchor": "bottom",
            }
        )  # fmt: skip
    ends = ((s.unit, unit.shown(s.latency_ms[0]), unit.shown(s.latency_ms[-1])) for s in stairs)
    told = "; ".join(f"{name} {first} to {last}" for name, first, last in ends)
    caption = "Staircases: predicted cost of each unit's operators against its width, all partners full; bars are two "
    caption += "standard deviations. Useful widths are those that no larger width beats."
    return Plot(name=name, label=f"Staircases: {told}", traces=traces, layout=layout, caption=caption)


def _stair_traces(stair: Staircase, chosen: Sequence[int], unit: TimeUnit, *, in_legend: bool) -> list[dict[str, Any]]:
    costs = dict(zip(stair.widths, (unit.per_ms * ms for ms in stair.latency_ms), strict=True))
    bars = [2 * unit.per_ms * ms for ms in stair.sd_ms]
    useful = [width for width in stair.widths if width in stair.useful]
    chosen = [width for width in chosen if width in costs]
    marks = (("useful width", useful, FRONT, "circle", 8), ("chosen on the front", chosen, UNIFORM, "diamond-open", 14))
    return [
        {
            "type": "scatter", "mode": "lines+markers", "x": stair.widths, "y": list(costs.values()),
            "showlegend": False, "marker": {"size": 4, "color": DENSE}, "line": {"width": 1, "color": DENSE},
            "error_y": {"type": "data", "array": bars, "thickness": 0.7, "width": 0},
        },
        *(
            {
                "type": "scatter", "mode": "markers", "name": name, "legendgroup": name, "showlegend": in_legend,
                "x": widths, "y": [costs[width] for width in widths],
                "marker": {"size": size, "color": color, "symbol": symbol, "line": {"width": 2}},
            }
            for name, widths, color, symbol, size in marks
            if widths or in_legend
        ),
    ]  # fmt: skip
