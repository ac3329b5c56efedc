"""Tables of a finished run, from the content of `front.json`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from rich.table import Table

from autoprune.latencies import TimeUnit
from autoprune.records import Unit
from autoprune.report.asked import asked_text
from autoprune.sparsity.patterns import Pattern
from autoprune.treatments import Layer
from autoprune.trials import BASELINES

Document = Mapping[str, Any]

_RANK = re.compile(r"rank:\d+")
_SHARE = re.compile(r"sparse:[\d.]+%")
_TWO_OF_FOUR = Pattern(kept=2, of=4)


def front_table(document: Document) -> Table:
    """The dense model, the front and, beside each model, the uniform baselines of the same budget."""
    dense, metric, unit = document["dense"], document["metric"], time_unit(document)
    table = Table(
        title="Pareto front, with the uniform baselines of each budget", title_justify="left", title_style="bold"
    )
    shown = _shown_sizes(document)
    for title in ("model", "kind", "budget"):
        table.add_column(title, no_wrap=True)
    treated = ["layers"] if document.get("layers") else []
    predicted = ["predicted"] if has_predictions(document) else []
    for title in (f"{metric} val", "test", "measured", "of dense", *predicted, *treated, *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    full = [f"{dense['score']:.4f}", f"{dense['test_score']:.4f}", unit.shown(dense["latency_ms_measured"]), "100.0 %"]
    full += [""] * len(predicted)
    dense_layers = ["fp32"] * len(treated)
    in_int8 = document.get("dense_in_int8")
    table.add_row("dense", "", "", *full, *dense_layers, *_sizes(dense, shown), style="dim", end_section=not in_int8)

    def row(model: Mapping[str, Any], kind: str) -> list[str]:
        asked, layers = asked_text(document.get("budgets", ()), model["budget"]), document.get("layers", 0)
        return _row(model, kind, asked=asked, shown=shown, layers=layers, predicted=bool(predicted), unit=unit)

    if in_int8:
        table.add_row(*row(in_int8, "dense in int8"), style="dim", end_section=True)
    everything = {m["digest"]: m for m in [*document["others"], *document["baselines"], *document["models"]]}
    baselines = {m["digest"] for m in document["baselines"]} - {m["digest"] for m in document["others"]}
    front, of_baselines = ({m["digest"] for m in document[name]} for name in ("models", "baselines"))
    searched = [m for name, m in everything.items() if name in front or name not in baselines]
    searched.sort(key=lambda m: -(m[document["cost"]] if "cost" in document else shown_ms(m)))
    beside = _baselines_but(document, {m["digest"] for m in searched})
    beyond = "too large" if "cost" in document else "too slow"
    for model in searched:
        mark = "" if model["digest"] in front else "dominated" if model["meets_budget"] else beyond
        kind = model["strategy"] if model["digest"] in of_baselines else ""
        own = beside.pop(model["budget"], [])
        table.add_row(*row(model, " ".join(filter(None, (kind, mark))) or "front"), end_section=not own)
        _add_baselines(table, [row(baseline, baseline["strategy"]) for baseline in own])
    for own in beside.values():
        _add_baselines(table, [row(baseline, baseline["strategy"]) for baseline in own])
    return table


def _baselines_but(document: Document, shown: Set[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the baselines that are not shown otherwise, by budget."""
    beside: dict[str, list[Mapping[str, Any]]] = {}
    for baseline in document["baselines"]:
        if baseline["digest"] not in shown:
            beside.setdefault(baseline["budget"], []).append(baseline)
    return beside


def _add_baselines(table: Table, rows: Sequence[Sequence[str]]) -> None:
    for number, cells in enumerate(rows, start=1):
        table.add_row(*cells, style="dim", end_section=number == len(rows))


def rung_table(document: Document) -> Table:
    """Best searched policy against the uniform baseline at every fidelity: how much the search is worth, and when."""
    table = Table(title="Searched against uniform, on validation data", title_justify="left", title_style="bold")
    for title in ("budget", "fidelity"):
        table.add_column(title)
    for title in ("searched", "uniform", "difference", "divergence", "of uniform"):
        table.add_column(title, justify="right")
    cells = {(row["budget"], row["rung"], row["strategy"]): row for row in all_rungs(document)}
    for budget in dict.fromkeys(key[0] for key in cells):
        for rung in dict.fromkeys(key[1] for key in cells):
            ours, base = cells.get((budget, rung, "searched")), cells.get((budget, rung, "uniform"))
            if ours and base:
                told = asked_text(document.get("budgets", ()), budget)
                score, uniform = ours["score"], base["score"]
                losses = [
                    f"{row['divergence']:.4f}" if row.get("divergence") is not None else "" for row in (ours, base)
                ]
                table.add_row(told, rung, f"{score:.4f}", f"{uniform:.4f}", f"{score - uniform:+.4f}", *losses)
        table.add_section()
    return table


def unit_table(
    units: Sequence[Unit],
    levels: Mapping[str, Sequence[object]],
    shares: Mapping[str, tuple[float, float]],
    latency: Mapping[str, float] | None = None,
) -> Table:
    """Units with their kind and width, whether width 0 removes a residual branch, their levels, and what they cut.

    `shares` are those of the model's parameters and multiply-accumulates that go when one channel is left, `latency`
    those of the latency at the smallest width that a table knows.
    """
    table = Table(title="Units", title_justify="left", title_style="bold")
    table.add_column("unit")
    table.add_column("kind")
    table.add_column("width", justify="right")
    table.add_column("removable")
    table.add_column("params", justify="right")
    table.add_column("MACs", justify="right")
    if latency:
        table.add_column("latency", justify="right")
    table.add_column("levels")
    table.add_column("cuts")
    for unit in units:
        cut = [f"{m.parameter}[{m.dim}]" + (f" x{m.per_channel}" if m.per_channel > 1 else "") for m in unit.members]
        shown = ", ".join(cut[:4]) + (f" and {len(cut) - 4} more" if len(cut) > 4 else "")
        removable = "yes" if unit.removable else ""
        worth = [f"{share:.1%}" for share in (*shares[unit.name], *([latency[unit.name]] if latency else []))]
        table.add_row(
            unit.name, unit.kind, str(unit.width), removable, *worth, " ".join(map(str, levels[unit.name])), shown
        )
    return table


def layer_table(layers: Sequence[Layer], levels: Mapping[str, Sequence[object]]) -> Table:
    """Layers with the precisions in which they can compute and what else they can have, and what the space offers.

    Layers of one module, as those of an LSTM with several, have the names of their weights.
    """
    of_module = Counter(layer.module for layer in layers)
    table = Table(title="Layers", title_justify="left", title_style="bold")
    for title in ("layer", "operator", "possible", "levels"):
        table.add_column(title)
    for layer in layers:
        offered = " ".join(map(str, levels.get(layer.name, ("fp32",))))
        ranks = ["rank"] if any(layer.matrix) else []
        zeros = ["sparse", *(["2:4"] if layer.divided_by(_TWO_OF_FOUR) else [])] if layer.shapes else []
        possible = [*layer.precisions, *ranks, *zeros]
        shown = layer.module if of_module[layer.module] == 1 else layer.name
        table.add_row(shown, layer.op, " ".join(possible), offered)
    return table


def fixed_table(fixed: Iterable[Any], unsupported: Mapping[str, Sequence[str]], sizes: Iterable[Any] = ()) -> Table:
    """Weight dimensions that keep their size, and why; operators without a rule; fixed sizes of inputs."""
    table = Table(title="Fixed", title_justify="left", title_style="bold")
    for title in ("parameter", "dimension", "size", "reason"):
        table.add_column(title)
    for entry in fixed:
        table.add_row(entry.parameter, str(entry.dim), str(entry.size), entry.reason)
    for op, nodes in unsupported.items():
        table.add_row(", ".join(nodes), "", "", f"operator {op} has no rule")
    for entry in sizes:
        table.add_row(f"input {entry.input}", str(entry.dim), str(entry.size), entry.reason)
    return table


def all_rungs(document: Document) -> list[dict[str, Any]]:
    """Scores by budget, fidelity and strategy, the full fine-tune last."""
    rows = list(document["rungs"])
    for model in [*document["others"], *document["baselines"], *document["models"]]:
        strategy = model["strategy"] if model["strategy"] in BASELINES else "searched"
        rows.append({"rung": "full", "budget": model["budget"], "strategy": strategy, "score": model["score"]})
    return rows


def treated_layers(model: Mapping[str, Any], layers: int) -> str:
    """Return how many of some layers have each treatment: `int8 in 12 of 21`, `rank in 2, w4 in 1 of 5`, `fp32`."""
    counts = ", ".join(f"{treatment} in {count}" for treatment, count in treatment_counts(model).items())
    return f"{counts} of {layers}" if counts else "fp32"


def treatment_counts(model: Mapping[str, Any]) -> Counter[str]:
    """Return how many layers have each treatment; layers with different ranks, or shares of zeros, count together."""
    alike = (_SHARE.sub("sparse", _RANK.sub("rank", text)) for text in model.get("treatments", {}).values())
    return Counter(alike)


def _row(
    model: Mapping[str, Any],
    kind: str,
    *,
    asked: str,
    shown: Mapping[str, str],
    layers: int,
    predicted: bool,
    unit: TimeUnit,
) -> list[str]:
    return [
        model["digest"],
        kind,
        asked,
        f"{model['score']:.4f}",
        f"{model['test_score']:.4f}",
        unit.shown(model["latency_ms_measured"]),
        f"{100 * model['latency_ratio']:.1f} %",
        *([unit.shown(model["latency_ms_predicted"])] if predicted else []),
        *([treated_layers(model, layers)] if layers else []),
        *_sizes(model, shown),
    ]


def _shown_sizes(document: Document) -> dict[str, str]:
    """Sizes that have a column, with its title: parameters, weight bytes, and what a budget limits."""
    budgets = {m["budget"] or "" for m in [*document["models"], *document["others"], *document["baselines"]]}
    limited = {name for name in ("macs", "activation_bytes") if any(f"{name}:" in budget for budget in budgets)}
    titles = {"params": "params", "macs": "MACs", "bytes": "weights", "activation_bytes": "activations"}
    return {name: title for name, title in titles.items() if name in limited | {"params", "bytes"}}


def _sizes(model: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    """Runs of earlier versions lack the peak of activations."""
    unit = {"bytes": "B", "activation_bytes": "B"}
    return ["" if model.get(name) is None else _count(model[name], unit.get(name, "")) for name in shown]


def shown_ms(model: Mapping[str, Any]) -> float:
    """Latency of a model of `front.json`: measured, or predicted where nothing could be measured."""
    measured = model["latency_ms_measured"]
    return model["latency_ms_predicted"] if measured is None else measured


def has_predictions(document: Document) -> bool:
    """Return whether a latency table predicted the latencies of the models of a run."""
    models = [m for kind in ("models", "others", "baselines") for m in document[kind]]
    return any(model.get("latency_ms_predicted") is not None for model in models)


def time_unit(document: Document) -> TimeUnit:
    """Return the unit of all latencies of a `front.json`."""
    models = [m for kind in ("models", "others", "baselines") for m in document[kind]]
    return TimeUnit.of([document["dense"]["latency_ms_measured"], *map(shown_ms, models)])


def _count(number: int, unit: str = "") -> str:
    """Three digits and a unit: `78.1 k`, `9.35 MB`."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number} {unit}".rstrip()
