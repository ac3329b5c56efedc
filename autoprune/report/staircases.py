"""Latency against width, unit by unit: a table with small drawings for the terminal, and a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from autoprune.records import Staircase
from autoprune.runfolder import write_atomic

if TYPE_CHECKING:
    import plotly.graph_objects as go

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
    from plotly.io import to_html  # 0.1 s that only a page needs

    title = f"{target['name']}, {target['threads']} thread(s), batch {target['batch']}, {target['precision']}"
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Staircases, {title}</title>"
    body = to_html(staircase_figure(stairs, title), include_plotlyjs=True, full_html=False)
    write_atomic(path, (page + body + "</html>\n").encode())
    return path


def staircase_figure(stairs: Sequence[Staircase], title: str) -> go.Figure:
    """Latency of each unit's operators against its width, with two standard deviations; useful widths are marked."""
    from plotly.subplots import make_subplots

    rows = -(-len(stairs) // _COLUMNS)
    figure = make_subplots(rows=rows, cols=_COLUMNS, subplot_titles=[stair.unit for stair in stairs])
    for number, stair in enumerate(stairs):
        place = {"row": number // _COLUMNS + 1, "col": number % _COLUMNS + 1}
        us, two_sd = [1e3 * ms for ms in stair.latency_ms], [2e3 * ms for ms in stair.sd_ms]
        figure.add_scatter(
            x=stair.widths, y=us, mode="lines+markers", marker={"size": 4, "color": "#57606a"}, line={"width": 1},
            error_y={"array": two_sd, "thickness": 0.7, "width": 0}, showlegend=False, **place,
        )  # fmt: skip
        chosen = [i for i, width in enumerate(stair.widths) if width in stair.useful]
        figure.add_scatter(
            x=[stair.widths[i] for i in chosen], y=[us[i] for i in chosen], mode="markers", name="useful width",
            marker={"size": 9, "color": "#0969da"}, showlegend=number == 0, **place,
        )  # fmt: skip
    figure.update_xaxes(title_text="width", rangemode="tozero")
    figure.update_yaxes(title_text="us", rangemode="tozero")
    figure.update_layout(title=title, template="simple_white", height=280 * rows + 80)
    return figure
