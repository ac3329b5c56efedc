"""The front of one or several runs: dense, front, baselines, and every scored policy faint behind them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.report.amounts import NORMAL_95, score_interval
from autoprune.report.plots import DENSE, FRONT, INT8, OTHER, RUN_COLORS, UNIFORM, Plot
from autoprune.report.runview import RunView
from autoprune.report.tables import shown_ms

NAME = "front-plot"
_LOOKS: dict[str, dict[str, Any]] = {
    "models": {"name": "front", "color": FRONT, "symbol": "circle", "size": 10},
    "others": {"name": "not on the front", "color": OTHER, "symbol": "x", "size": 9},
    "baselines": {"name": "uniform", "color": UNIFORM, "symbol": "diamond-open", "size": 15},
    "dense_in_int8": {"name": "dense in int8", "color": INT8, "symbol": "triangle-up", "size": 12},
    "dense": {"name": "dense", "color": DENSE, "symbol": "square", "size": 11},
}
"""How each kind of model is drawn. Later ones lie above earlier ones; open marks leave what is below them visible."""


def model_key(run: RunView, model: Mapping[str, Any]) -> str:
    """Return the name of a model in a page: unique also when runs share policies."""
    return f"{run.name}/{model['digest']}"


def is_measured(run: RunView) -> bool:
    """Return whether latencies were measured; with a table of another device none is."""
    return not run.models or any(model["latency_ms_measured"] is not None for _, model in run.models)


def front_plot(runs: Sequence[RunView]) -> Plot:
    """Return score against latency. Scores are of validation data; `meta` of a trace holds those of test data."""
    traces = [trace for number, run in enumerate(runs) for trace in _traces(run, number, several=len(runs) > 1)]
    scores = _shown_scores(traces)
    how = "measured" if any(run.models for run in runs) and all(map(is_measured, runs)) else "predicted"
    metric = next((run.document["metric"] for run in runs if run.document), "score")
    unit = runs[0].unit
    layout = {
        "height": 460, "margin": {"l": 64, "r": 16, "t": 16, "b": 56}, "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        "xaxis": {"title": {"text": f"{how} latency, {unit.name}"}},
        "yaxis": {"title": {"text": html.escape(metric)}} | ({"range": scores} if scores else {}),
    }  # fmt: skip
    label = f"{metric} against {how} latency of {_counted(runs)}. The table below holds the same numbers."
    return Plot(name=NAME, label=label, traces=traces, layout=layout)


def _shown_scores(traces: Sequence[dict[str, Any]]) -> list[float] | None:
    """Return the range of scores that is drawn at first where it leaves scored policies out, whose name then says so.

    It is that of the models with their intervals, and as much again: one policy of many that fails would otherwise
    press all models into one line. A double click shows the rest.
    """
    edges = [
        score + side * length
        for trace in traces if trace["meta"].get("error_y") is not None
        for of, values in trace["meta"]["y"].items()
        for side, lengths in ((1, "array"), (-1, "arrayminus"))
        for score, length in zip(values, trace["meta"]["error_y"][of].get(lengths, [0.0] * len(values)), strict=True)
    ]  # fmt: skip
    if not edges or max(edges) == min(edges):
        return None
    margin = max(edges) - min(edges)
    low, high, is_narrow = min(edges) - margin, max(edges) + 0.1 * margin, False
    for trace in (trace for trace in traces if trace["meta"].get("error_y") is None):
        outside = sum(not low <= score <= high for score in trace["y"])
        if outside:
            trace["name"], is_narrow = f"{trace['name']} ({outside} more outside: double click)", True
    return [low, high] if is_narrow else None


def _counted(runs: Sequence[RunView]) -> str:
    of_runs = [f"{len(run.models)} models" + (f" of {run.name}" if len(runs) > 1 else "") for run in runs]
    return ", ".join(of_runs) + " beside the dense model"


def _traces(run: RunView, number: int, *, several: bool) -> list[dict[str, Any]]:
    color = RUN_COLORS[number % len(RUN_COLORS)] if several else None
    before = html.escape(f"{run.name}: ") if several else ""
    rows: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in _LOOKS}
    for kind in ("models", "others", "baselines"):
        rows[kind] = list(run.document.get(kind, ()))
    if "dense_in_int8" in run.document:
        rows["dense_in_int8"] = [run.document["dense_in_int8"]]
    traces = [_scored(run, color or DENSE, before)] if run.scored else []
    for kind, look in _LOOKS.items():
        if rows[kind]:
            traces.append(_models(run, kind, rows[kind], look | ({"color": color} if color else {}), before))
    if run.document:
        traces.append(_dense(run, _LOOKS["dense"] | ({"color": color} if color else {}), before))
    return traces


def _models(
    run: RunView, kind: str, rows: Sequence[Mapping[str, Any]], look: Mapping[str, Any], before: str
) -> dict[str, Any]:
    noise, per_ms = NORMAL_95 * run.document["held_out"]["noise_percent"] / 100, run.unit.per_ms
    return {
        "type": "scatter", "name": before + look["name"], "mode": "lines+markers" if kind == "models" else "markers",
        "x": [per_ms * shown_ms(m) for m in rows], "y": [m["score"] for m in rows],
        "error_x": _bars([noise * per_ms * shown_ms(m) for m in rows]) if is_measured(run) else {},
        "error_y": _score_bars(run, "validation", [m["score"] for m in rows]),
        "customdata": [model_key(run, m) for m in rows],
        "text": [_hover(run, m) for m in rows], "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": look["size"], "symbol": look["symbol"], "color": look["color"], "line": {"width": 2}},
        "line": {"color": look["color"], "width": 1.5},
        "meta": {
            "share": _share(run),
            "y": {s: [m[k] for m in rows] for s, k in _SCORES.items()},
            "error_y": {s: _score_bars(run, s, [m[k] for m in rows]) for s, k in _SCORES.items()},
        },
    }  # fmt: skip


_SCORES = {"validation": "score", "test": "test_score"}


def _dense(run: RunView, look: Mapping[str, Any], before: str) -> dict[str, Any]:
    dense, unit = run.document["dense"], run.unit
    text = f"<b>dense</b><br>validation {dense['score']:.4f}, test {dense['test_score']:.4f}"
    return {
        "type": "scatter", "name": before + look["name"], "mode": "markers",
        "x": [unit.per_ms * dense["latency_ms_measured"]], "y": [dense["score"]], "error_x": {},
        "error_y": _score_bars(run, "validation", [dense["score"]]),
        "text": [f"{text}<br>{unit.shown(dense['latency_ms_measured'])}"], "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": look["size"], "symbol": look["symbol"], "color": look["color"]},
        "meta": {
            "share": _share(run), "y": {s: [dense[k]] for s, k in _SCORES.items()},
            "error_y": {s: _score_bars(run, s, [dense[k]]) for s, k in _SCORES.items()},
        },
    }  # fmt: skip


def _scored(run: RunView, color: str, before: str) -> dict[str, Any]:
    """Policies at the dearest fidelity that each was scored at: small marks, and none for test data.

    Without a latency table the latency of a policy is not known, and it has no mark.
    """
    last = {t.digest: t for t in run.scored if t.measurement["latency_source"] != "none"}.values()
    return {
        "type": "scatter", "name": f"{before}scored policies", "mode": "markers",
        "x": [run.unit.per_ms * t.measurement["latency_ms"] for t in last], "y": [t.measurement["score"] for t in last],
        "text": [
            f"{html.escape(t.digest)}<br>{html.escape(t.fidelity)}: {t.measurement['score']:.4f}<br>predicted "
            f"{run.unit.shown(t.measurement['latency_ms'])}" for t in last
        ],
        "hovertemplate": "%{text}<extra></extra>", "error_x": {}, "error_y": {},
        "customdata": [f"{run.name}/{t.digest}" for t in last],
        "marker": {"size": 5, "color": color, "opacity": 0.35},
        "meta": {"share": _share(run), "y": {"validation": [t.measurement["score"] for t in last], "test": []}},
    }  # fmt: skip


def _share(run: RunView) -> float | None:
    """Return the factor from latencies in the unit of the run to shares of the dense one; `None` before it is known."""
    return 1 / (run.unit.per_ms * run.dense_ms) if run.dense_ms else None


def _hover(run: RunView, model: Mapping[str, Any]) -> str:
    asked = run.asked(model)
    budget = f", budget {asked}" if asked else ""
    lines = [
        f"<b>{html.escape(model['digest'])}</b>",
        html.escape(f"{model['strategy']}{budget}"),
        f"validation {model['score']:.4f}, test {model['test_score']:.4f}",
        f"{run.unit.shown(shown_ms(model))}, {model['latency_ratio']:.1%} of dense",
    ]
    return "<br>".join(lines)


def _score_bars(run: RunView, of: str, scores: Sequence[float]) -> dict[str, Any]:
    """Return 95 % intervals where scores are shares of examples, and the run kept how many."""
    examples = run.document.get("score_examples", {}).get(of)
    intervals = [score_interval(score, examples) for score in scores]
    if any(interval is None for interval in intervals):
        return {}
    pairs = [(score, interval) for score, interval in zip(scores, intervals, strict=True) if interval]
    return _bars([high - score for score, (_, high) in pairs]) | {
        "symmetric": False, "arrayminus": [score - low for score, (low, _) in pairs],
    }  # fmt: skip


def _bars(lengths: Sequence[float]) -> dict[str, Any]:
    return {"type": "data", "array": list(lengths), "thickness": 1, "width": 3, "visible": True}
