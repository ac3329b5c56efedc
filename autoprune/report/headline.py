"""The result of a run in one sentence for each budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoprune.report.amounts import score_interval, shown_bytes, shown_time

Document = Mapping[str, Any]


def headlines(document: Document) -> list[str]:
    """Return a sentence for every budget whose best searched model meets it: how fast, how good, against what.

    Scores are those on test data. Where they are shares of a known number of examples, the sentence says whether the
    dense score lies within the 95 % interval of the model's.

    Args:
        document: content of `front.json`.
    """
    searched = [
        m for m in (*document["models"], *document["others"]) if m["meets_budget"] and m["strategy"] != "uniform"
    ]
    lines = []
    for budget in document.get("budgets", ()):  # runs of earlier versions did not keep them
        models = [model for model in searched if model["budget"] == budget]
        if models:
            best = max(models, key=lambda model: (model["score"], -model["latency_ratio"]))
            lines.append(f"{budget}: {_cost(document, best)}, {_score(document, best)}{_uniform(document, budget)}.")
    return lines


def _cost(document: Document, model: Mapping[str, Any]) -> str:
    dense = document["dense"]
    now, before = model["latency_ms_measured"], dense["latency_ms_measured"]
    if not now or not before or now >= before:
        return (
            f"{model['digest']} takes {shown_bytes(model['bytes'])} of weights instead of {shown_bytes(dense['bytes'])}"
        )
    times = f"{shown_time(now)} instead of {shown_time(before)}"
    return f"{model['digest']} is {before / now:.2g} times as fast as the dense model ({times})"


def _score(document: Document, model: Mapping[str, Any]) -> str:
    dense, examples = document["dense"], document.get("score_examples", {}).get("test")
    score, of_dense = model["test_score"], dense["test_score"]
    text = f"{document['metric']} {score:.4f} instead of {of_dense:.4f} on test data"
    interval = score_interval(score, examples)
    if interval is None or score >= of_dense:
        return text
    place = "within" if interval[0] <= of_dense <= interval[1] else "outside"
    return f"{text} (dense is {place} its 95 % interval, {interval[0]:.4f} to {interval[1]:.4f})"


def _uniform(document: Document, budget: str) -> str:
    scores = [m["test_score"] for m in document["baselines"] if m["budget"] == budget and m["meets_budget"]]
    return f"; uniform widths {max(scores):.4f}" if scores else "; no uniform widths meet this budget"
