"""The model on the target: staircases, sensitivities, and the error of the latency table."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from autoprune.latencies import Staircase
from autoprune.report.fragments import Section, missing, pair, paragraphs
from autoprune.report.lines import prediction_line
from autoprune.report.plots import DENSE, FRONT, OTHER, UNIFORM, Plot
from autoprune.report.runview import RunView
from autoprune.report.staircases import staircase_plot

_MOST_STAIRS = 36
"""Units whose staircase is drawn: those whose width changes the latency most."""

_ROLES = {
    "scan": ("one unit varied", DENSE, 0.35, 5),
    "fit": ("fitted to", DENSE, 0.6, 5),
    "held_out": ("held out", FRONT, 1.0, 8),
    "candidate": ("candidates of this run", UNIFORM, 1.0, 8),
}


def device_section(run: RunView, prefix: str, title: str) -> Section:
    """Return the section about latency and sensitivity."""
    plots: list[Plot] = []
    lacks: list[str] = []
    for plot, lack in (
        (
            stairs_plot(run, prefix),
            "This run did not keep staircases: it has no latency table, or is older.",
        ),
        (sensitivity_plot(run, prefix), "This run has measured no sensitivities (yet, or its strategy needs none)."),
        (error_plot(run, prefix), "This run has no latency table (yet)."),
    ):
        if plot is None:
            lacks.append(missing(lack))
        else:
            plots.append(plot)
    stairs = [plot for plot in plots if plot.name.endswith("stairs")]
    body = "".join(plot.html() for plot in stairs)
    body += pair([plot for plot in plots if plot not in stairs]) + "".join(lacks)
    if run.document:
        body += paragraphs([prediction_line(run.document), table_line(run)])
    return Section(name=f"{prefix}device", title=title, body=body, plots=plots)


def stairs_plot(run: RunView, prefix: str = "") -> Plot | None:
    """Return the staircase of every unit with the widths of the models of the front; `None` where none was kept."""
    stairs = [Staircase.from_json(value) for value in run.parts.get("staircases", ())]
    stairs = sorted(stairs, key=lambda stair: min(stair.latency_ms) - max(stair.latency_ms))[:_MOST_STAIRS]
    chosen = {s.unit: sorted({m["policy"][s.unit] for m in run.document.get("models", ())}) for s in stairs}
    return staircase_plot(stairs, f"{prefix}stairs", chosen, run.unit) if stairs else None


def sensitivity_plot(run: RunView, prefix: str = "") -> Plot | None:
    """Return the loss of every decision at each level as a map; `None` before it was measured."""
    losses = {name: levels for name, levels in run.sensitivity.get("divergence", {}).items() if len(levels) > 1}
    if not losses:
        return None
    count = max(len(levels) for levels in losses.values()) - 1
    values, texts = [], []
    for name, levels in losses.items():
        cells = list(levels.items())[:-1]  # the last level is the whole unit: no loss
        pad: list[Any] = [None] * (count - len(cells))
        values.append([*(math.log10(loss) if loss > 0 else None for _, loss in cells), *pad])
        texts.append([*(f"{html.escape(name)}<br>{html.escape(level)}: {loss:.3g}" for level, loss in cells), *pad])
    ticks = range(math.floor(_least(values)), math.ceil(_most(values)) + 1)
    trace = {
        "type": "heatmap", "z": values, "text": texts, "hovertemplate": "%{text}<extra></extra>", "xgap": 1, "ygap": 1,
        "y": [html.escape(name) for name in losses], "x": [f"level {n + 1}" for n in range(count)],
        "colorscale": "Viridis", "colorbar": {
            "title": {"text": "loss"}, "thickness": 12, "tickvals": list(ticks),
            "ticktext": [f"1e{tick}" for tick in ticks],
        },
    }  # fmt: skip
    layout = {
        "height": 22 * len(losses) + 90, "margin": {"l": 8, "r": 8, "t": 8, "b": 48},
        "yaxis": {"automargin": True, "autorange": "reversed", "type": "category", "showgrid": False},
        "xaxis": {
            "title": {"text": "levels, the smallest first"}, "type": "category", "showticklabels": False,
            "showgrid": False, "ticks": "",
        },
    }  # fmt: skip
    worst = sorted(losses, key=lambda name: -max(losses[name].values()))[:3]
    return Plot(
        name=f"{prefix}sensitivity", label=f"Loss of every decision at each level; most for {', '.join(worst)}",
        traces=[trace], layout=layout,
        caption="Sensitivities: divergence from the dense model with one decision at one of its levels and all others "
        f"whole. Most sensitive: {', '.join(worst)}.",
    )  # fmt: skip


def _least(values: Sequence[Sequence[float | None]]) -> float:
    return min((v for row in values for v in row if v is not None), default=0.0)


def _most(values: Sequence[Sequence[float | None]]) -> float:
    return max((v for row in values for v in row if v is not None), default=0.0)


def error_plot(run: RunView, prefix: str = "") -> Plot | None:
    """Return predicted against measured latencies of the policies that a table was made of; `None` without a table."""
    samples = run.table.get("samples", ())
    if not samples:
        return None
    traces: list[dict[str, Any]] = []
    unit, per_ms = run.unit.name, run.unit.per_ms
    hover = f"measured %{{x:.4g}} {unit}<br>predicted %{{y:.4g}} {unit} (%{{text}})<extra></extra>"
    for role, (name, color, opacity, size) in _ROLES.items():
        own = [s for s in samples if s["role"] == role]
        if own:
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{name} ({len(own)})",
                    "x": [per_ms * s["measured_ms"] for s in own], "y": [per_ms * s["predicted_ms"] for s in own],
                    "text": [f"{s['predicted_ms'] / s['measured_ms'] - 1:+.1%}" for s in own],
                    "hovertemplate": hover,
                    "marker": {"size": size, "color": color, "opacity": opacity},
                }
            )  # fmt: skip
    ends = [per_ms * f(s["measured_ms"] for s in samples) for f in (min, max)]
    traces.append(
        {
            "type": "scatter", "mode": "lines", "name": "exact", "x": ends, "y": ends, "hoverinfo": "skip",
            "line": {"color": OTHER, "width": 1, "dash": "dot"},
        }
    )  # fmt: skip
    layout = {
        "height": 400, "margin": {"l": 64, "r": 12, "t": 12, "b": 48}, "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        "xaxis": {"title": {"text": f"measured latency, {unit}"}, "type": "log"},
        "yaxis": {"title": {"text": f"predicted latency, {unit}"}, "type": "log"},
    }  # fmt: skip
    held = run.table.get("held_out", {})
    told = f"Mean error on held-out policies {held['mape_percent']:.1f} %." if held else ""
    return Plot(
        name=f"{prefix}error", label=f"Predicted against measured latency. {told}", traces=traces, layout=layout,
        caption=f"The latency table: predicted against measured latency of whole models. {told}",
    )  # fmt: skip


def table_line(run: RunView) -> str:
    """Return where and when the table was measured; runs of earlier versions did not keep it."""
    made = run.document.get("latency_table")
    if made is None or not made["policies"]:  # of an earlier version, or without a table
        return ""
    target = made["target"]
    text = (
        f"Measured {made['created']} with {target['runtime']} {target['runtime_version']} ({target['provider']}, "
        f"{target['threads']} thread(s), batch {target['batch']}, {target['precision']}) on {target['cpu']}; "
        f"{sum(made['policies'].values())} policies, fitted again {made['refits']} time(s)."
    )
    return text + (f" A foreign table: {'; '.join(made['foreign'])}." if made["foreign"] else "")
