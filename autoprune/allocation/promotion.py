"""Who goes on to the next, dearer fidelity."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from autoprune.allocation.limits import fits
from autoprune.budgets import Limit
from autoprune.records import Policy
from autoprune.trials import TrialResult

Meets = Callable[[Sequence[Policy], Limit], Sequence[bool]]
"""Which policies meet a limit when they are measured."""


def best_within(results: Sequence[TrialResult], limit: Limit, count: int) -> list[TrialResult]:
    """The `count` finished results of lowest loss that fit the limit, best first; ties go to the lower trial number."""
    fitting = [(r.measurement.loss, r.number, r) for r in results if r.measurement and _fits(r, limit)]
    return [result for _, _, result in sorted(fitting, key=lambda item: item[:2])[:count]]


def diverse(results: Sequence[TrialResult], limit: Limit, count: int, meets: Meets | None = None) -> list[TrialResult]:
    """As `best_within`, taking turns between policies that remove as many branches: the best of each first.

    A cheap score judges widths against widths better than widths against depth. A policy that does not meet the limit
    when `meets` measures it gives its turn to the next best that removes as many; no more are measured than it takes.
    """
    depths: dict[int, deque[TrialResult]] = {}
    for result in best_within(results, limit, len(results)):
        depths.setdefault(sum(width == 0 for width in result.policy.widths.values()), deque()).append(result)
    turns, chosen = deque(depths.values()), []
    while turns and len(chosen) < count:
        asked = [turns.popleft() for _ in range(min(len(turns), count - len(chosen)))]
        firsts = [same_depth.popleft() for same_depth in asked]
        met = meets([result.policy for result in firsts], limit) if meets else [True] * len(firsts)
        chosen += [result for result, inside in zip(firsts, met, strict=True) if inside]
        served = [same_depth for same_depth, inside in zip(asked, met, strict=True) if inside]
        again = [same_depth for same_depth, inside in zip(asked, met, strict=True) if not inside]
        turns = deque(same_depth for same_depth in (*again, *turns, *served) if same_depth)
    return chosen


def promote(
    results: Sequence[TrialResult],
    baselines: Mapping[Limit, Policy],
    limits: Sequence[Limit],
    per_budget: int,
    meets: Meets | None = None,
) -> dict[Policy, str]:
    """Policies for the next rung with their origin, `uniform` or `promoted`, each once, in order of the limits.

    For every limit: its uniform baseline, so that both sides of a comparison always have the same fidelity, and beside
    it the `per_budget` best others that fit, in turns between those that remove as many branches. A baseline whose own
    trial failed is left out; so is a policy that fits as predicted, but not when `meets` measures it.
    """
    uniform = set(baselines.values())
    finished = {result.policy for result in results if result.status == "done"}
    others = [result for result in results if result.policy not in uniform]
    chosen: dict[Policy, str] = {}
    for limit in limits:
        if baselines.get(limit) in finished:
            chosen[baselines[limit]] = "uniform"
        chosen |= {result.policy: "promoted" for result in diverse(others, limit, per_budget, meets)}
    return chosen


def _fits(result: TrialResult, limit: Limit) -> bool:
    return result.measurement is not None and bool(fits(result.measurement.costs(), limit))
