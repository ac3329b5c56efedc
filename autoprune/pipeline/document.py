"""The content of `front.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from autoprune.allocation.promotion import best_within
from autoprune.front import cost_of, hypervolume, non_dominated
from autoprune.manifest import Manifest
from autoprune.records import Policy
from autoprune.runfolder import RunFolder
from autoprune.trials import BASELINES, FrontModel, TrialResult

if TYPE_CHECKING:
    from autoprune.budgets import Limit
    from autoprune.latency.stand_in import StandInTable
    from autoprune.latency.table import LatencyTable

_HYPERVOLUME_SHARE = 0.1


def front_document(
    models: Sequence[FrontModel],
    dense: Mapping[str, Any],
    *,
    metric: str,
    table: LatencyTable | StandInTable,
    cost: str = "latency_ms",
    foreign: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the front, the uniform baselines, and the models that missed their budget or are dominated.

    Args:
        models: all verified models.
        dense: entry of the dense model: `score`, `test_score`, `latency_ms_measured` and its sizes.
        metric: name of the score.
        table: the latency table of the run, or what takes its place.
        cost: what models are compared by beside the score: what the budgets limit, where they limit no latency.
        foreign: in what the target of the table differs from this one.
    """
    # A uniform policy that no searched one beats is on the front like any other.
    met = list({m.digest: m for m in models if m.meets_budget}.values())
    of_cost = partial(cost_of, cost=cost)
    mask = non_dominated([of_cost(m) for m in met], [m.score for m in met])
    front = sorted((m for m, keep in zip(met, mask, strict=True) if keep), key=of_cost)
    shown = {m.digest for m in front}
    searched = [m for m in models if m.strategy not in BASELINES]
    worst = dense["latency_ms_measured" if cost == "latency_ms" else cost]
    reference = (worst, dense["score"] - _HYPERVOLUME_SHARE * abs(dense["score"]))
    area = hypervolume([of_cost(m) for m in front], [m.score for m in front], reference)
    return {
        "metric": metric,
        "dense": dict(dense),
        "models": [to_json(m) for m in front],
        "baselines": [to_json(m) for m in models if m.strategy in BASELINES],
        "others": [to_json(m) for m in searched if m.digest not in shown],
        "hypervolume": {"value": area, f"reference_{cost}": reference[0], "reference_score": reference[1]},
        **_latency_entries(table, foreign),
        **({} if cost == "latency_ms" else {"cost": cost}),
    }


def write_front(folder: RunFolder, document: Mapping[str, Any]) -> None:
    """Write `front.json`, made from the dense weights, the latency table and the metrics of its models."""
    entries = [*document["models"], *document["baselines"], *document["others"], document.get("dense_in_int8") or {}]
    metrics = [folder.model(entry["digest"]).metrics for entry in entries if entry]
    sources = [folder.dense, folder.table if folder.table.exists() else folder.dense_latency, *metrics]
    Manifest(folder).write_json(folder.front, dict(document), sources=sources)


def _latency_entries(table: LatencyTable | StandInTable, foreign: Sequence[str]) -> dict[str, Any]:
    """Return what is known of latencies; without a table, the noise of a measured one alone."""
    from autoprune.latency.stand_in import StandInTable  # looking at a finished run takes no torch

    known = not isinstance(table, StandInTable)
    held_out = vars(table.held_out) if known else {"policies": 0, "noise_percent": 100 * table.noise}
    made = {
        "target": dict(table.target),
        "created": table.created,
        "policies": table.counts if known else {},
        "refits": table.refits,
        "foreign": list(foreign),
    }
    return {"held_out": held_out, "latency_table": made}


def unmet_budgets(budgets: Sequence[str], models: Sequence[FrontModel]) -> list[str]:
    """Return the budgets that no verified model meets."""
    return [budget for budget in budgets if not any(m.meets_budget and m.budget == budget for m in models)]


def rung_scores(
    results: Mapping[str, Sequence[TrialResult]],
    rungs: Sequence[str],
    limits: Mapping[str, Limit],
    uniform: Mapping[str, Policy],
) -> list[dict[str, Any]]:
    """Return the best searched policy and the uniform baseline of every budget at every rung, for the report.

    Args:
        results: by the name of the rung.
        rungs: names of the rungs, the cheapest first.
        limits: by budget.
        uniform: the uniform policy of every budget that has one.
    """
    rows = []
    for rung in rungs:
        by_policy = {result.policy: result for result in results[rung]}
        others = [result for result in results[rung] if result.policy not in set(uniform.values())]
        for budget, limit in limits.items():
            best = best_within(others, limit, 1)
            base = by_policy.get(uniform[budget]) if budget in uniform else None
            for strategy, result in (("searched", best[0] if best else None), ("uniform", base)):
                if result is not None and result.measurement is not None:
                    rows.append({"rung": rung, "budget": budget, "strategy": strategy} | _scores(result))
    return rows


def _scores(result: TrialResult) -> dict[str, Any]:
    measurement = result.measurement
    if measurement is None:
        return {}
    return {
        "digest": result.policy.digest(),
        "score": measurement.score,
        "divergence": measurement.loss,
        "latency_ms_predicted": None if measurement.latency_source == "none" else measurement.latency_ms,
        "sample_passes": result.sample_passes,
    }


def to_json(model: FrontModel) -> dict[str, Any]:
    """Return one model of `front.json`."""
    treated = {name: str(treatment) for name, treatment in model.policy.treatments.items()}
    return vars(model) | {"policy": dict(model.policy.widths)} | ({"treatments": treated} if treated else {})


def from_json(value: Mapping[str, Any], space_id: str) -> FrontModel:
    """Return the model of an entry of `front.json`: the inverse of `to_json`."""
    fields: dict[str, Any] = dict(value)
    treatments = fields.pop("treatments", {})
    stored = {"space_id": space_id, "widths": fields.pop("policy"), "treatments": treatments}
    return FrontModel(**fields, policy=Policy.from_json(stored))
