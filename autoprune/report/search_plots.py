"""How the search went: best score over passes and time, proxy against fine-tuned scores, what was slow, what failed."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from autoprune.budgets import BUDGET_TOLERANCE
from autoprune.report.amounts import shown_bytes
from autoprune.report.durations import duration_text
from autoprune.report.fragments import Section, folded, missing, pair, paragraphs, table
from autoprune.report.lines import trust_lines
from autoprune.report.plots import RUN_COLORS, Plot
from autoprune.report.runview import RunView, ShownTrial
from autoprune.report.tables import all_rungs

_SLOWEST, _FAILURES = 10, 20


def search_section(run: RunView, prefix: str, title: str) -> Section:
    """Return the section about the search of a run."""
    plots = [plot for plot in (progress_plot(run, prefix), fidelity_plot(run, prefix)) if plot is not None]
    body = pair(plots)
    if not run.scored:
        body += missing("The study of this run has no scored policy (yet): there is nothing to draw about its search.")
    elif len(plots) < 2:
        body += missing("No policy has been scored both by the proxy and after fine-tuning (yet).")
    if run.document:
        body += _rungs(run) + paragraphs(trust_lines(run.document))
    return Section(name=f"{prefix}search", title=title, body=body, plots=plots)


def _rungs(run: RunView) -> str:
    rows = [[run.asked(r), r["rung"], r["strategy"], f"{r['score']:.4f}"] for r in all_rungs(run.document)]
    header = ["budget", "fidelity", "policy", run.document["metric"] + ", validation"]
    return folded("Searched against uniform at every fidelity", table("Searched against uniform", header, rows))


def progress_plot(run: RunView, prefix: str = "") -> Plot | None:
    """Return the best score so far within every budget, over sample passes and over minutes; `None` without trials."""
    if not run.scored:
        return None
    traces: list[dict[str, Any]] = []
    for number, limit in enumerate(run.limits or [{}]):
        points = list(_records(run.scored, limit))
        if not points:
            continue
        name = html.escape(_limit_name(run, limit))
        style = {"color": RUN_COLORS[number % len(RUN_COLORS)]}
        for axis, values in (("", [p[0] for p in points]), ("2", [p[1] for p in points])):
            traces.append(
                {
                    "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
                    "showlegend": not axis, "x": values, "y": [p[2] for p in points], "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}", "line": style | {"shape": "hv"}, "marker": style | {"size": 4},
                    "text": [html.escape(p[3]) for p in points],
                    "hovertemplate": "%{text}<br>%{y:.4f} at %{x:.4g}<extra></extra>",
                }
            )  # fmt: skip
    layout = {
        "height": 360, "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        "grid": {"rows": 1, "columns": 2, "pattern": "independent"},
        "xaxis": {"title": {"text": "sample passes"}, "rangemode": "tozero"},
        "xaxis2": {"title": {"text": "minutes"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": html.escape(f"best {run.document.get('metric', 'score')} so far")},
            **_axis_range(y for trace in traces for y in trace["y"]),
        },
        "yaxis2": {"matches": "y"},
    }  # fmt: skip
    return Plot(
        name=f"{prefix}progress", label="Best validation score so far within each budget, over passes and time",
        traces=traces, layout=layout,
        caption="Best validation score so far within each budget, at any fidelity, over the sample passes of the "
        "trials and over the minutes in which trials were worked on.",
    )  # fmt: skip


def _axis_range(values: Iterable[float]) -> dict[str, Any]:
    """Return the range of an axis whose values are all the same, where plotly.js would draw from 0 to twice as much."""
    known = set(values)
    if len(known) != 1:
        return {}
    (value,) = known
    return {"range": [value - 0.01 * max(abs(value), 1e-3), value + 0.01 * max(abs(value), 1e-3)]}


def _limit_name(run: RunView, limit: Mapping[str, float]) -> str:
    if not limit:
        return "all policies"
    told = ", ".join(_maximum_text(run, cost, most) for cost, most in limit.items())
    scores = [text for text in run.config.get("budgets") or () if text.lstrip().startswith("score")]
    others = len(run.config.get("budgets") or ()) > len(scores)
    return f"{', '.join(scores)} ({told})" if scores and not others else told


def _maximum_text(run: RunView, cost: str, most: float) -> str:
    """Return the most of a cost: latencies as a share of the dense model's, numbers of bytes with their unit."""
    if cost == "latency_ms":
        return f"{100 * most / run.dense_ms:.3g}% of dense" if run.dense_ms else run.unit.shown(most)
    name = cost.replace("_", " ")
    return f"{name}: {shown_bytes(most)}" if cost.endswith("bytes") else f"{most:,.0f} {name}"


def _records(trials: Sequence[ShownTrial], limit: Mapping[str, float]) -> Iterator[tuple[float, float, float, str]]:
    """Yield passes, minutes, score and name of every trial within a limit that beat all before, and the last state.

    Minutes are those in which trials were worked on: a run may rest before it is resumed.
    """
    passes, worked, best, reached = 0.0, 0.0, -math.inf, -math.inf
    for trial in trials:
        passes += trial.result["sample_passes"]
        if trial.ended:
            end = trial.ended.timestamp()
            worked += max(end - max(end - trial.result["seconds"], reached), 0.0) / 60
            reached = max(end, reached)
        fits = all(trial.measurement[cost] <= most * (1 + BUDGET_TOLERANCE) for cost, most in limit.items())
        if fits and trial.measurement["score"] > best:
            best = trial.measurement["score"]
            yield passes, worked, best, f"{trial.digest}, {trial.fidelity}"
    if best > -math.inf:
        yield passes, worked, best, "end"


def fidelity_plot(run: RunView, prefix: str = "") -> Plot | None:
    """Return fine-tuned against proxy scores of the policies that have both; `None` when there is none."""
    by_digest: dict[str, dict[str, float]] = defaultdict(dict)
    order = dict.fromkeys(t.fidelity for t in sorted(run.scored, key=lambda t: t.study))
    for trial in run.scored:
        by_digest[trial.digest][trial.fidelity] = trial.measurement["score"]
    cheapest, *dearer = order or [""]
    traces = []
    for number, name in enumerate(dearer):
        pairs = [(d, s[cheapest], s[name]) for d, s in by_digest.items() if cheapest in s and name in s]
        if pairs:
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{html.escape(name)} ({len(pairs)})",
                    "x": [p[1] for p in pairs], "y": [p[2] for p in pairs], "text": [html.escape(p[0]) for p in pairs],
                    "hovertemplate": "%{text}<br>%{x:.4f} to %{y:.4f}<extra></extra>",
                    "marker": {"size": 8, "color": RUN_COLORS[number % len(RUN_COLORS)], "symbol": number},
                }
            )  # fmt: skip
    if not traces:
        return None
    rhos = [
        f"{c['dear']} {c['rho']:.2f} ({c['low']:.2f} to {c['high']:.2f})"
        for c in run.document.get("rank_correlations", ())
        if c["cheap"] == cheapest
    ]
    layout = {
        "height": 380, "margin": {"l": 56, "r": 12, "t": 12, "b": 48}, "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        "xaxis": {
            "title": {"text": html.escape(f"{cheapest} score")}, **_axis_range(x for t in traces for x in t["x"]),
        },
        "yaxis": {"title": {"text": "score after fine-tuning"}, **_axis_range(y for t in traces for y in t["y"])},
    }  # fmt: skip
    told = f"Rank correlation within budgets: {'; '.join(rhos)}." if rhos else "Its rank correlation is not known."
    return Plot(
        name=f"{prefix}fidelities", label=f"Scores after fine-tuning against {cheapest} scores. {told}",
        traces=traces, layout=layout, caption=f"Does the {cheapest} rank policies as fine-tuning does? {told}",
    )  # fmt: skip


def trouble_section(run: RunView, prefix: str, title: str) -> Section:
    """Return the section about what was slow and what failed."""
    timed = [t for t in run.trials if t.result.get("seconds")]
    rows = []
    for study in dict.fromkeys(t.study for t in timed):
        own = [t for t in timed if t.study == study]
        seconds, passes = (sum(t.result[key] for t in own) for key in ("seconds", "sample_passes"))
        rows.append([f"{study} ({own[0].fidelity})", str(len(own)), duration_text(seconds), f"{passes:,.0f}"])
    if run.table:
        count = str(len(run.table.get("samples", ())))
        rows.insert(0, ["latency table", count, duration_text(run.table.get("seconds", 0.0)), ""])
    header = ["stage", "trials or policies", "seconds of work", "sample passes"]
    body = table("Where the time of the search went", header, rows) if rows else missing("Nothing has been timed yet.")
    slowest = sorted(timed, key=lambda t: -t.result["seconds"])[:_SLOWEST]
    if slowest:
        cells = [
            [t.digest, t.fidelity, t.origin, duration_text(t.result["seconds"]), f"{t.result['sample_passes']:,.0f}"]
            for t in slowest
        ]
        body += folded(
            "Slowest trials", table("Slowest trials", ["policy", "fidelity", "origin", "time", "passes"], cells)
        )
    if run.failures:
        shown = [[text] for text in run.failures[-_FAILURES:]]
        body += table(f"{len(run.failures)} attempts failed or were lost, the latest last", ["what happened"], shown)
    else:
        body += paragraphs(["No trial failed or was lost."])
    return Section(name=f"{prefix}trouble", title=title, body=body)
