"""The result of a run in one sentence for each budget."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from autoprune.device.noise import MOST
from autoprune.latencies import TimeUnit
from autoprune.report.amounts import score_interval, shown_bytes
from autoprune.report.asked import score_asked
from autoprune.report.tables import shown_ms, time_unit

Document = Mapping[str, Any]

_FASTER = 1.03
"""A model that is faster by less is not called so: it may be noise."""

_SHARE_OF = re.compile(r"(\w+):([\d.]+)%")
_PERCENT = re.compile(r"(?<=\d)%")


def headlines(document: Document, unit: TimeUnit | None = None) -> list[str]:
    """Return a sentence for every budget whose best searched model meets it: how fast, how good, against what.

    Budgets are those that the models were searched for, which are combinations of the ones that were given. A budget
    by score has one sentence, about the fastest model that keeps the score: none for each latency that was searched.

    Args:
        document: content of `front.json`.
        unit: of latencies; by default the one that fits those of the document.
    """
    searched = [
        m for m in (*document["models"], *document["others"]) if m["meets_budget"] and m["strategy"] != "uniform"
    ]
    by_budget: dict[str, list[Mapping[str, Any]]] = {}
    for model in searched:
        by_budget.setdefault(model["budget"] or "", []).append(model)
    lines = []
    for budget, models in by_budget.items():
        if score_asked(document.get("budgets", ()), budget):
            continue
        best = max(models, key=lambda model: (model["score"], -model["latency_ratio"]))
        start = f"At {_written(budget)}: " if budget else ""
        beside = _uniform(document, budget, best, unit)
        lines.append(f"{start}{_facts(document, best, unit)}{beside}; model {best['digest']}.")
    return [*lines, *_score_headlines(document, unit)]


def _score_headlines(document: Document, unit: TimeUnit | None) -> Iterator[str]:
    """Yield a sentence for every budget by score that a model keeps."""
    models = {m["digest"]: m for kind in ("baselines", "others", "models") for m in document[kind]}
    for entry in document.get("score_budgets", ()):
        model = models.get(entry["digest"])
        if model is None:
            continue
        asked = f"{entry['budget']} (at least {entry['least_score']:.4f} on validation data)"
        beside = _uniform(document, model["budget"] or "", model, unit)
        if model["strategy"] == "uniform":
            beside = "; its widths are uniform"
        yield (
            f"At {asked}, which led to {model['latency_ratio']:.1%} of the dense latency: "
            f"{_facts(document, model, unit)}{beside}; model {model['digest']}."
        )


def _written(budget: str) -> str:
    """Return a budget as part of a sentence: `bytes:50%` is `50 % of the bytes`."""
    shares = _SHARE_OF.sub(lambda match: f"{match[2]}% of the {match[1].replace('_', ' ')}", budget)
    return _PERCENT.sub(" %", shares).replace(",", " and ")


def noise_lines(document: Document) -> list[str]:
    """Return one line where the latencies of a run vary so much that they were used by request alone."""
    noise = document["held_out"]["noise_percent"] / 100
    if noise <= MOST:
        return []
    return [
        f"MEASURED IN NOISE (--allow-noise): latencies varied by {noise:.0%} from one measurement to the next. Shares "
        "of the latency are as uncertain, and models may miss their budgets on a quiet machine."
    ]


def headline_of(document: Document, model: Mapping[str, Any], unit: TimeUnit | None = None) -> str:
    """Return the sentence about one model, whatever its budget."""
    return f"{_facts(document, model, unit)}; model {model['digest']}."


def place_of_dense(document: Document, model: Mapping[str, Any]) -> str | None:
    """Return where the dense test score lies: `below`, `within` or `above` the 95 % interval of the model's.

    Returns:
        `None` where scores are no shares of a known number of examples.
    """
    interval = _interval(document, model)
    if interval is None:
        return None
    of_dense = document["dense"]["test_score"]
    return "below" if of_dense < interval[0] else "within" if of_dense <= interval[1] else "above"


def _interval(document: Document, model: Mapping[str, Any]) -> tuple[float, float] | None:
    return score_interval(model["test_score"], document.get("score_examples", {}).get("test"))


def _facts(document: Document, model: Mapping[str, Any], unit: TimeUnit | None) -> str:
    return f"{', '.join(_costs(document, model, unit or time_unit(document)))}, {_score(document, model)}"


def _costs(document: Document, model: Mapping[str, Any], unit: TimeUnit) -> list[str]:
    """Return the speed of a faster model, and the weights where it is no faster or a budget limits another cost."""
    dense, ratio = document["dense"], model["latency_ratio"]
    now, before = model["latency_ms_measured"], dense["latency_ms_measured"]
    texts = []
    if now and before and before > _FASTER * now:
        times = f"{unit.shown(now)} instead of {unit.shown(before)}"
        texts.append(f"{before / now:.2g} times as fast as the dense model ({times})")
    elif not now and _FASTER * ratio < 1:  # a table of another device: nothing was measured
        texts.append(f"predicted to be {1 / ratio:.2g} times as fast as the dense model")
    if not texts or ":" in (model["budget"] or ""):
        weights = f"{shown_bytes(model['bytes'])} of weights instead of {shown_bytes(dense['bytes'])}"
        texts.insert(0 if "cost" in document else len(texts), weights)  # first what is limited
    return texts


def _score(document: Document, model: Mapping[str, Any]) -> str:
    score, of_dense = model["test_score"], document["dense"]["test_score"]
    text = f"{document['metric']} {score:.4f} instead of {of_dense:.4f} on test data"
    place, interval = place_of_dense(document, model), _interval(document, model)
    if place is None or interval is None:
        return text
    low, high = interval
    return f"{text} (the dense score lies {place} the 95 % interval of the model's, {low:.4f} to {high:.4f})"


def _better(document: Document, uniform: Mapping[str, Any], model: Mapping[str, Any], unit: TimeUnit) -> str:
    """Return by what a uniform model is ahead of one that scores no more: faster, or less of what is limited."""
    cost = document.get("cost", "latency_ratio")
    if uniform[cost] * _FASTER >= model[cost]:
        return ""
    if cost == "latency_ratio":
        return f", which are faster ({unit.shown(shown_ms(uniform))}, model {uniform['digest']})"
    amount = shown_bytes(uniform[cost]) if cost.endswith("bytes") else f"{uniform[cost]:,} {cost}"
    return f", which take less ({amount}, model {uniform['digest']})"


def _uniform(document: Document, budget: str, model: Mapping[str, Any], unit: TimeUnit | None) -> str:
    """Return the scores of the baselines of a budget, and the latency of a uniform one that is no worse and faster."""
    of_budget = [m for m in document["baselines"] if (m["budget"] or "") == budget and m["meets_budget"]]
    uniform = [m for m in of_budget if m["strategy"] == "uniform"]
    best = max(uniform, key=lambda m: (m["test_score"], -m["latency_ratio"]), default=None)
    others = {m["strategy"]: m["test_score"] for m in of_budget if m["strategy"] != "uniform"}
    told = [f"uniform widths {best['test_score']:.4f}" if best else "no uniform widths meet this budget"]
    if best and best["score"] >= model["score"]:
        told[0] += _better(document, best, model, unit or time_unit(document))
    return "; " + ", ".join([*told, *(f"{name} {score:.4f}" for name, score in others.items())])
