"""Sentences about a finished run, from the content of `front.json`: how far it can be trusted, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.report.amounts import score_interval
from autoprune.report.tables import treatment_counts

Document = Mapping[str, Any]


def layer_lines(document: Document) -> list[str]:
    """Return in how many layers the models of the front have each treatment, as a line; none for widths alone."""
    layers, models = document.get("layers", 0), document["models"]
    if not layers or not models:
        return []
    counts = [treatment_counts(model) for model in models]
    treatments = dict.fromkeys(treatment for of_model in counts for treatment in of_model)
    spans = {treatment: sorted({of_model[treatment] for of_model in counts}) for treatment in treatments}
    shares = [f"{treatment} in {_span(span)} of {layers} layers" for treatment, span in spans.items()]
    return [f"Models of the front have {', '.join(shares) or 'all layers in fp32'}."]


def prediction_line(document: Document) -> str:
    """How well the latency table predicts, and how far off it was for the models of this run."""
    held = document["held_out"]
    if not held["policies"]:
        return (
            f"No budget limits the latency, so none was predicted: models are compared by {document['cost']}, and the "
            "latency of each was measured once."
        )
    everything = [*document["models"], *document["others"], *document["baselines"]]
    measured = [m for m in everything if m["latency_ms_measured"] is not None]
    errors = [abs(m["latency_ms_predicted"] / m["latency_ms_measured"] - 1) for m in measured]
    own = f"; off by at most {max(errors):.1%} for the models of this run" if errors else "; no model was measured here"
    return (
        f"Latency table: on {held['policies']} held-out policies mean error {held['mape_percent']:.1f} %, largest "
        f"{held['max_percent']:.1f} %, bias {held['bias_percent']:+.1f} %, Spearman {held['spearman']:.3f}, re-measure "
        f"noise {held['noise_percent']:.1f} %{own}."
    )


def form_lines(document: Document) -> list[str]:
    """The form of the run's PyTorch models and why; runs of earlier versions did not keep it."""
    form = document.get("form")
    if form is None:
        return []
    if form["name"] == "native":
        line = "PyTorch models have your own classes: outputs and gradients are proven equal."
    else:
        line = f"PyTorch models are graph modules, because {form['reason'].rstrip('.')}."
    return [line, *(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in form["notes"])]


def score_budget_lines(document: Document) -> list[str]:
    """Return the answer to every budget by score: the fastest model that keeps so much, with its interval."""
    lines, examples = [], document.get("score_examples", {}).get("validation")
    for entry in document.get("score_budgets", ()):
        asked = f"{entry['budget']} (at least {entry['least_score']:.4f})"
        if entry["digest"] is None:
            lines.append(f"No model that is faster than the dense one keeps {asked}.")
            continue
        interval = score_interval(entry["score"], examples)
        between = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        lines.append(
            f"{asked}: the fastest model is {entry['digest']}, {entry['latency_ratio']:.1%} of the dense latency, "
            f"score {entry['score']:.4f}{between}."
        )
    return lines


def trust_lines(document: Document) -> list[str]:
    """How far cheap scores ranked policies as dearer ones did, budgets without a model, and what was not repaired."""
    lines = [
        f"Rank correlation of {c['cheap']} and {c['dear']} scores within budgets: {c['rho']:.2f} "
        f"({c['low']:.2f} to {c['high']:.2f}, {c['pairs']} policies)."
        for c in document.get("rank_correlations", ())
    ]
    lines += [f"No fine-tuned model meets {budget}." for budget in document.get("unmet_budgets", ())]
    left = document.get("not_reconstructed", ())
    if left:
        lines.append(
            "Not reconstructed by least squares, ranked by batch-norm scales (without any: by norms of weights): "
            f"{', '.join(left)}."
        )
    return lines


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
