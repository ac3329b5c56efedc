"""The card of a model: score, latency, sizes, what was kept, where its time goes, and how to export it."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping
from typing import Any

from autoprune.latencies import TimeUnit
from autoprune.report.amounts import NORMAL_95, score_interval, shown_bytes, shown_interval
from autoprune.report.fragments import missing, table
from autoprune.report.front_plot import is_measured, model_key
from autoprune.report.plots import DENSE, FRONT, INT8, OTHER, Plot
from autoprune.report.runview import RunView
from autoprune.report.tables import has_predictions, shown_ms

_KIND_TEXTS = {
    "models": "front", "others": "not on the front", "baselines": "uniform", "dense_in_int8": "dense in int8",
}  # fmt: skip
"""Words for the lists of `front.json`."""

_MOST_LAYERS = 40
_LEAST_SHARE = 0.002
"""Layers in a plot of times at most, and the share of the dense time that one has at least; the others are one bar."""

_ROW, _ROOM = 22, 96
"""Pixels of one bar, and of all else in a plot of bars."""


def kind_text(kind: str, model: Mapping[str, Any]) -> str:
    """Return what a model is: on the front, a baseline or neither; a uniform one may be on the front, too."""
    uniform = model["strategy"] == "uniform" and kind != "baselines"
    return _KIND_TEXTS[kind] + (", uniform" if uniform else "")


def card_name(number: int, model: Mapping[str, Any]) -> str:
    """Return the name of a card in the page, from the number of its run and the digest."""
    return f"card-{number}-{model['digest']}"


def card(run: RunView, number: int, kind: str, model: Mapping[str, Any]) -> tuple[str, list[Plot]]:
    """Return the HTML of a model's card, and the plots that it has places for.

    Args:
        run: the run of the model.
        number: of the run in the page.
        kind: list of `front.json` that the model is in.
        model: its entry there.
    """
    name = card_name(number, model)
    place, key = html.escape(name), html.escape(model_key(run, model))
    plots = [kept_plot(run, name, model)]
    time = time_plot(run, name, model)
    asked = run.asked(model)
    budget = f", budget {asked}" if asked else ""
    title = html.escape(f"Model {model['digest']}: {kind_text(kind, model)}{budget}")
    parts = [
        f'<article class="card" id="{place}" data-key="{key}" aria-labelledby="{place}-title">',
        f'<h3 id="{place}-title">{title}</h3>',
        _command(run, number, model),
        table("The model beside the dense one", ["quantity", "this model", "dense"], _facts(run, model)),
        plots[0].html(),
    ]
    if time is None:
        parts.append(missing("This run did not keep where the time goes: it has no latency table, or is older."))
    else:
        plots.append(time)
        parts.append(time.html())
    return "\n".join([*parts, "</article>"]), plots


def _facts(run: RunView, model: Mapping[str, Any]) -> list[list[str]]:
    dense, metric, shown_time = run.document["dense"], run.document["metric"], run.unit.shown
    metrics = run.metrics.get(model["digest"], {})
    examples = run.document.get("score_examples", {})
    rows = [
        [
            f"{metric}, {of}" + (" (95 % interval)" if examples else ""),
            *(f"{m[key]:.4f}{_between(m[key], examples.get(of))}" for m in (model, dense)),
        ]
        for of, key in (("validation", "score"), ("test", "test_score"))
    ]
    times = [model["latency_ms_measured"], dense["latency_ms_measured"]]
    noise = NORMAL_95 * run.document["held_out"]["noise_percent"] / 100
    measured = [f"{shown_time(ms)} +- {shown_time(noise * ms)}" if ms else "" for ms in times]
    if is_measured(run):
        rows.append(["latency, measured", measured[0], shown_time(times[1])])
    sd = metrics.get("latency_ms_predicted_sd")
    predicted = shown_time(model["latency_ms_predicted"]) + (f" +- {shown_time(NORMAL_95 * sd)}" if sd else "")
    ratio = model["latency_ratio"]
    rows += [
        *([["latency, predicted", predicted, ""]] if predicted else []),
        ["share of the dense latency", f"{ratio:.1%} ({1 / ratio:.2g} times as fast)", "100 %"],
        *_samples(metrics, run.unit),
        ["weights", shown_bytes(model["bytes"]), shown_bytes(dense["bytes"])],
        ["peak of activations", *(shown_bytes(m.get("activation_bytes")) for m in (model, dense))],
        ["parameters", *(f"{m['params']:,}" for m in (model, dense))],
        ["multiply-accumulates", *(f"{m['macs']:,}" for m in (model, dense))],
    ]
    return rows


def _between(score: float, examples: int | None) -> str:
    return shown_interval(score_interval(score, examples))


def _samples(metrics: Mapping[str, Any], unit: TimeUnit) -> list[list[str]]:
    """Return tenth to ninetieth percentile of single runs, where they were kept."""
    samples = metrics.get("samples", {})
    if not {"model", "dense"} <= samples.keys():
        return []
    spans = [f"{unit.shown(samples[of]['p10_ms'])} to {unit.shown(samples[of]['p90_ms'])}" for of in ("model", "dense")]
    return [["single runs, 10 % to 90 %", *spans]]


def _command(run: RunView, number: int, model: Mapping[str, Any]) -> str:
    digest = model["digest"]
    command = shlex.join(["autoprune", "export", str(run.path), "--policy", digest, "--out", f"{digest}.onnx"])
    place = f"model/{number}/{html.escape(digest)}"
    links = (("onnx", "the ONNX file"), ("zip", "it with a script that runs it"))
    downloads = " ".join(
        f'<a class="download" hidden download="{html.escape(digest)}.{suffix}" data-place="{place}.{suffix}">'
        f"Download {text}</a>"
        for suffix, text in links
    )
    return (
        f'<p class="command"><code>{html.escape(command)}</code> '
        f'<button type="button" class="copy" data-text="{html.escape(command)}">Copy the command</button> '
        f"{downloads}</p>"
    )


def kept_plot(run: RunView, name: str, model: Mapping[str, Any]) -> Plot:
    """Return what is kept of every unit, as bars in the colour of the layer's treatment."""
    treatments = dict(model.get("treatments", {}))
    rows = []
    full = run.document.get("dense_in_int8", {}).get("policy") or _full_widths(run, model)
    for unit, width in model["policy"].items():
        layer = next((each for each in treatments if each in (unit, f"{unit}.weight")), None)
        kept = f"{width} of {full[unit]}" if width else "removed"
        rows.append((unit, width / full[unit], kept, treatments.pop(layer, "fp32")))
    rows += [(layer.removesuffix(".weight"), 1.0, "", each) for layer, each in treatments.items()]
    return Plot(
        name=f"{name}-kept",
        label="Kept share of every unit: " + "; ".join(f"{u} {text} {t}" for u, _, text, t in rows),
        traces=[_bar_trace(rows, treatment) for treatment in dict.fromkeys(row[3] for row in rows)],
        layout=_bar_layout(len(rows), "kept channels", [row[0] for row in rows], most=1.35),
        caption="Kept channels of every unit, in the colour of its layer's treatment. Layers without a number have the "
        "channels of another unit.",
    )


def _full_widths(run: RunView, model: Mapping[str, Any]) -> dict[str, int]:
    """Return the width of every unit in the dense model: the largest that the latency table knows."""
    known = run.table.get("known", {})
    return {unit: max([*known.get(unit, ()), width, 1]) for unit, width in model["policy"].items()}


def _bar_trace(rows: list[tuple[str, float, str, str]], treatment: str) -> dict[str, Any]:
    own = [row for row in rows if row[3] == treatment]
    return {
        "type": "bar", "orientation": "h", "name": html.escape(treatment), "showlegend": True,
        "y": [html.escape(row[0]) for row in own], "x": [row[1] for row in own], "text": [row[2] for row in own],
        "textposition": "outside", "cliponaxis": False, "marker": {"color": treatment_color(treatment)},
        "hovertemplate": "%{y}: %{text}, " + html.escape(treatment) + "<extra></extra>",
    }  # fmt: skip


def treatment_color(treatment: str) -> str:
    """Return the colour of a treatment: of its precision, or of a rank in fp32."""
    if treatment.startswith("int8"):
        return INT8
    return OTHER if treatment.startswith("rank") else FRONT


def _bar_layout(count: int, title: str, order: list[str], most: float | None = None) -> dict[str, Any]:
    """Return the layout of horizontal bars; `most` is the end of the axis, beyond the longest bar for its text."""
    return {
        "height": _ROW * count + _ROOM, "barmode": "overlay", "bargap": 0.25,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 56},
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        "xaxis": {
            "title": {"text": title}, "tickformat": ".0%", "rangemode": "tozero",
            **({"range": [0, most], "tickvals": [0, 0.5, 1]} if most else {}),
        },
        "yaxis": {
            "automargin": True, "autorange": "reversed", "type": "category", "categoryorder": "array",
            "categoryarray": [html.escape(each) for each in order],
        },
    }  # fmt: skip


def time_plot(run: RunView, name: str, model: Mapping[str, Any]) -> Plot | None:
    """Return the predicted time of every layer in the dense model and in this one; `None` where it was not kept."""
    dense, own = (run.parts.get("layers_ms", {}).get(of) for of in ("dense", model["digest"]))
    if not dense or not own:
        return None
    dense, own = _largest(dense, own)
    layers, shown_time = list(dense), run.unit.shown
    total = sum(dense.values())
    traces = [
        {
            "type": "bar", "orientation": "h", "name": who, "marker": {"color": color},
            "y": [html.escape(layer) for layer in layers], "x": [of.get(layer, 0.0) / total for layer in layers],
            "text": [shown_time(of.get(layer, 0.0)) for layer in layers],
            "hovertemplate": "%{y}: %{text}, %{x:.1%} of the dense latency<extra>" + who + "</extra>",
            "textposition": "none",
        }
        for who, of, color in (("dense", dense, DENSE), ("this model", own, FRONT))
    ]  # fmt: skip
    layout = _bar_layout(len(layers), "of the dense time", layers) | {"barmode": "group"}
    layout["height"] = int(1.5 * _ROW * len(layers)) + _ROOM
    shares = "; ".join(
        f"{each} {shown_time(dense.get(each, 0.0))} to {shown_time(own.get(each, 0.0))}" for each in layers
    )
    return Plot(
        name=f"{name}-time", label=f"Predicted time before and after: {shares}", traces=traces, layout=layout,
        caption=f"Where the time goes: predicted {shown_time(total)} before, {shown_time(sum(own.values()))} after.",
    )  # fmt: skip


def _largest(dense: Mapping[str, float], own: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the costs of the layers that cost most in either model, the dearest first; the others are one entry."""
    names = sorted(dict.fromkeys([*dense, *own]), key=lambda n: -max(dense.get(n, 0.0), own.get(n, 0.0)))
    seen = _LEAST_SHARE * sum(dense.values())
    first = [name for name in names[:_MOST_LAYERS] if max(dense.get(name, 0.0), own.get(name, 0.0)) > seen]
    others = names[len(first) :]
    shown = [{name: of.get(name, 0.0) for name in first} for of in (dense, own)]
    if others:
        for of, kept in zip((dense, own), shown, strict=True):
            kept[f"{len(others)} other{'s' if len(others) > 1 else ''}"] = sum(of.get(name, 0.0) for name in others)
    return shown[0], shown[1]


def model_rows(run: RunView) -> list[list[str]]:
    """Return a row for every model; the first cell is a button that shows its card."""
    return [
        [
            f'<button type="button" class="pick" data-key="{html.escape(model_key(run, m))}">'
            f"{html.escape(m['digest'])}</button>",
            kind_text(kind, m),
            run.asked(m),
            f"{m['score']:.4f}",
            f"{m['test_score']:.4f}",
            run.unit.shown(shown_ms(m)),
            f"{m['latency_ratio']:.1%}",
            *([run.unit.shown(m["latency_ms_predicted"])] if has_predictions(run.document) else []),
            f"{m['params']:,}",
            f"{m['macs']:,}",
            shown_bytes(m["bytes"]),
            shown_bytes(m.get("activation_bytes")),
            "" if m["meets_budget"] is None else "yes" if m["meets_budget"] else "no",
        ]
        for kind, m in run.models
    ]


def model_header(run: RunView) -> list[str]:
    """Return the titles of the columns of `model_rows`."""
    return [
        "model", "kind", "budget", "validation", "test", "latency", "of dense",
        *(["predicted"] if has_predictions(run.document) else []),
        "params", "MACs", "weights", "activations", "meets budget",
    ]  # fmt: skip
