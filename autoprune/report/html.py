"""A self-contained page of one run: the front, the baselines, the policies, the error of the prediction."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.report.plots import Plot
from autoprune.report.tables import (
    all_rungs,
    form_lines,
    layer_lines,
    prediction_line,
    score_budget_lines,
    shown_ms,
    trust_lines,
)
from autoprune.runfolder import write_atomic

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d8dee4; text-align: right; }
th:first-child, td:first-child { text-align: left; }
code { font-size: 13px; }
"""


_KINDS = {"uniform": "uniform ", "int8": "dense in int8 "}
"""Words before the digests of baselines."""


def write_html(document: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Path:
    """Write the page, atomically; it needs no network and no other file."""
    measured = _is_measured(document)
    how = "measured beside the dense model" if measured else "predicted: the latency table is of another device"
    parts = [
        f"<h1>{html.escape(str(config['task']))} on {html.escape(str(config['target']))}</h1>",
        f"<p>Strategy <code>{html.escape(str(config['strategy']))}</code>, {config['threads']} thread(s), "
        f"batch {config['batch']}, seed {config['seed']}. Every latency was {how}.</p>",
        *(f"<p>{html.escape(line)}</p>" for line in layer_lines(document)),
        front_plot(document).html(),
        _models(document),
        *(f"<p>{html.escape(line)}</p>" for line in score_budget_lines(document)),
        *(f"<p>{html.escape(line)}</p>" for line in form_lines(document)),
        "<h2>Searched against uniform</h2>",
        _rungs(document),
        *(f"<p>{html.escape(line)}</p>" for line in trust_lines(document)),
        "<h2>Widths</h2>",
        _widths(document),
        "<h2>Latency prediction</h2>",
        f"<p>{html.escape(prediction_line(document))}</p>",
        f"<p>{html.escape(_table_line(document))}</p>",
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>autoprune</title><style>{_STYLE}</style>"
    write_atomic(path, (page + "\n".join(parts) + "</html>\n").encode())
    return path


def _is_measured(document: Mapping[str, Any]) -> bool:
    """Whether latencies were measured; with a table of another device none is."""
    models = [*document["models"], *document["others"], *document["baselines"]]
    return not models or any(model["latency_ms_measured"] is not None for model in models)


def _table_line(document: Mapping[str, Any]) -> str:
    """Where and when the table was measured; runs of earlier versions did not keep it."""
    table = document.get("latency_table")
    if table is None:
        return ""
    target = table["target"]
    text = (
        f"Measured {table['created']} with {target['runtime']} {target['runtime_version']} ({target['provider']}, "
        f"{target['threads']} thread(s), batch {target['batch']}, {target['precision']}) on {target['cpu']}; "
        f"{sum(table['policies'].values())} policies, fitted again {table['refits']} time(s)."
    )
    return text + (f" A foreign table: {'; '.join(table['foreign'])}." if table["foreign"] else "")


def front_plot(document: Mapping[str, Any]) -> Plot:
    """Test score against latency: dense, front, uniform."""
    dense, models, baselines = document["dense"], document["models"], document["baselines"]
    how = "measured" if _is_measured(document) else "predicted"
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "name": "dense", "mode": "markers",
            "x": [dense["latency_ms_measured"]], "y": [dense["test_score"]],
            "marker": {"size": 12, "symbol": "square", "color": "#57606a"},
        }
    ]  # fmt: skip
    for name, rows, color, mode in (
        ("dense in int8", _in_int8(document), "#8250df", "markers"),
        ("uniform", baselines, "#bf8700", "markers"),
        ("front", models, "#0969da", "lines+markers"),
    ):
        if not rows and name == "dense in int8":
            continue
        traces.append(
            {
                "type": "scatter", "name": name, "mode": mode,
                "x": [shown_ms(m) for m in rows], "y": [m["test_score"] for m in rows],
                "text": [f"{m['digest']}<br>{m['latency_ratio']:.1%} of dense" for m in rows],
                "marker": {"size": 11, "color": color},
            }
        )  # fmt: skip
    layout = {
        "height": 420, "margin": {"l": 60, "r": 20, "t": 20, "b": 50}, "legend": {"x": 0.8, "y": 0.1},
        "xaxis": {"title": {"text": f"{how} latency, ms"}},
        "yaxis": {"title": {"text": f"{document['metric']}, test"}},
    }  # fmt: skip
    return Plot(traces=traces, layout=layout)


def _in_int8(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The dense model in int8, where the space offers that."""
    return [document["dense_in_int8"]] if "dense_in_int8" in document else []


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _models(document: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{_KINDS.get(m['strategy'], '')}{m['digest']}",
            m["budget"] or "",
            f"{m['score']:.4f}",
            f"{m['test_score']:.4f}",
            "" if m["latency_ms_measured"] is None else f"{m['latency_ms_measured']:.4f}",
            f"{m['latency_ratio']:.1%}",
            f"{m['latency_ms_predicted']:.4f}",
            f"{m['params']:,}",
            f"{m['macs']:,}",
            f"{m['bytes']:,}",
            f"{m['activation_bytes']:,}" if m.get("activation_bytes") is not None else "",
            "" if m["budget"] is None else "yes" if m["meets_budget"] else "no",
        ]
        for m in [*document["models"], *document["others"], *document["baselines"], *_in_int8(document)]
    ]
    header = [
        "model",
        "budget",
        "validation",
        "test",
        "measured ms",
        "of dense",
        "predicted ms",
        "params",
        "MACs",
        "weight bytes",
        "activation bytes",
        "meets budget",
    ]
    return _table(header, rows)


def _rungs(document: Mapping[str, Any]) -> str:
    rows = [[r["budget"], r["rung"], r["strategy"], f"{r['score']:.4f}"] for r in all_rungs(document)]
    return _table(["budget", "fidelity", "policy", document["metric"] + ", validation"], rows)


def _widths(document: Mapping[str, Any]) -> str:
    models = [*document["models"], *document["baselines"]]
    header = ["unit or layer", *(f"{m['strategy']} {m['budget']}" for m in models)]
    units = models[0]["policy"] if models else {}
    rows = [[unit, *(str(m["policy"][unit]) for m in models)] for unit in units]
    layers = dict.fromkeys(layer for m in models for layer in m.get("treatments", {}))
    rows += [[layer, *(m.get("treatments", {}).get(layer, "fp32") for m in models)] for layer in layers]
    return _table(header, rows)
