"""Widths and precision together, beside widths alone and precision after widths, by measured latency.

    python scripts/benchmarks/precision.py --task fashion-mnist --model resnet20 --dense dense.safetensors \
        --budget 50% --budget 33% --budget 25% --budget 15% --budget 10% --seeds 0 1 2 --points 0 10000 --out joint.csv

- `joint`: the guided search over widths and the precision of every layer.
- `widths`: the guided search over widths, in fp32.
- `widths-then-int8`: as `widths`, for the largest fp32 latency at which the uniform net meets the budget in int8; then
  every layer is int8 that is faster so, by the latency table. Models are scored in fp32 while they are searched.
- `direct-joint`: Optuna's proposals over widths and precision.

`--joint-space` and `--widths-space` are the spaces of other families: `transformer-joint` and `transformer`, whose int8
takes the ranges of every run.

All share the latency table, which knows int8 layers, the dense weights, repair and fine-tuning. Budgets are shares of
the dense latency in fp32. What is scored on test data is the twin, which rounds as the deployed file does. Rows and
curves are those of `search.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from search import (
    ChosenPolicy,
    Opened,
    append_all,
    append_curve,
    common_arguments,
    complete,
    note,
    profiled,
    shortened,
)

from autoprune.allocation.promotion import best_within
from autoprune.allocation.uniform import uniform_policy
from autoprune.budgets import Budget
from autoprune.latency.table import LatencyTable
from autoprune.pipeline.cost_model import CostModel
from autoprune.records import Policy
from autoprune.treatments import INT8, INT8_DYNAMIC
from autoprune.trials import TrialResult

_CANDIDATES = 12
_STEP = 0.02
"""Between the fp32 latencies that are tried, as shares of the dense one."""


def main() -> None:
    """Run every method with every seed that has rows missing."""
    parser = common_arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--joint-space", default="joint", help="first in a run: its table knows int8 layers")
    parser.add_argument("--widths-space", default="widths")
    given = parser.parse_args()
    complete(given, given.methods, compare)


def compare(given: argparse.Namespace, method: str, seed: int, missing: Mapping[str, Sequence[int]]) -> None:
    """Search with one method and seed, and append the curves of all its budgets."""
    start = time.monotonic()
    opened = _opened(given, method, seed)
    fp32 = _fp32_budgets(opened, given.budget) if method == "widths-then-int8" else {}
    if fp32:
        costs = replace(opened.prepared.costs, limits={}).with_budgets([Budget.parse(text) for text in fp32.values()])
        opened = opened.but(costs=costs)
    exploration, slots = opened.explored()
    seconds = time.monotonic() - start
    passes = round(sum(opened.passes(exploration.outcome, slots).values()) / len(given.budget))
    print(f"{method}, seed {seed}: {passes:,} sample passes for each budget, {seconds:.0f} s", flush=True)
    note(exploration.outcome)
    last = exploration.last_rung
    if not fp32:
        append_all(given, opened, exploration.costs, method, seed, missing, last, search_passes=passes, seconds=seconds)
        return
    for budget, points in missing.items():
        policy, ratio, fits = _in_int8(opened, exploration.costs, budget, fp32[budget], last)
        choice = ChosenPolicy(method, budget, seed, passes, ratio, fits, seconds)
        append_curve(given, opened.prepared.dense_model, policy, points, choice)


def _opened(given: argparse.Namespace, method: str, seed: int) -> Opened:
    joint, strategy = METHODS[method]
    space = given.joint_space if joint else given.widths_space
    opened = profiled(given, method, seed, space=space, strategy=strategy, sampler=given.sampler)
    return opened.but(effort=shortened(opened.prepared.effort, given.rungs))


def _fp32_budgets(opened: Opened, budgets: Sequence[str]) -> dict[str, str]:
    """Return the largest share of the dense latency in fp32 whose uniform net meets each budget in int8.

    Narrow nets need not be faster in int8, so all shares are tried, and a budget that none meets stands for itself.
    """
    costs, space = opened.prepared.costs, opened.prepared.space
    dense_widths, shares = opened.plan().dense_widths, {}
    for text in (f"{share:.0%}" for share in np.arange(1, 0, -_STEP)):
        free = replace(costs, limits={}).with_budgets([Budget.parse(text)])
        uniform = uniform_policy(space, dense_widths, free.limited_costs, *free.limits.values())
        if uniform is not None:
            shares[text] = float(costs.predicted_ratios([in_int8(opened, uniform)])[0])
    fp32 = {budget: next((text for text in shares if shares[text] <= _share(budget)), budget) for budget in budgets}
    print(f"fp32 latencies whose uniform nets meet the budgets in int8: {fp32}", flush=True)
    return fp32


def _share(budget: str) -> float:
    return float(budget.removesuffix("%")) / 100


def in_int8(opened: Opened, policy: Policy) -> Policy:
    """Return a policy with every layer in int8 that is predicted to be faster so, given the others."""
    costs, table = opened.prepared.costs, opened.prepared.costs.table
    assert isinstance(table, LatencyTable)
    levels = {name: table.space.levels[name][0] for name in table.layers}
    int8 = {name: level for name, level in levels.items() if level in (INT8, INT8_DYNAMIC)}
    layers = list(int8)

    def treated(chosen: frozenset[str]) -> Policy:
        treatments = {name: int8[name] for name in layers if name in chosen}
        return Policy(space_id=policy.space_id, widths=policy.widths, treatments=treatments)

    best, least = frozenset(layers), np.inf
    for chosen in (best, frozenset[str]()):
        while True:
            options = [chosen, *(chosen ^ {layer} for layer in layers)]
            ratios = costs.predicted_ratios([treated(option) for option in options])
            step = int(ratios.argmin())
            if ratios[step] < least:
                best, least = options[step], float(ratios[step])
            if step == 0:
                break
            chosen = options[step]
    return treated(best)


def _in_int8(
    opened: Opened, costs: CostModel, budget: str, fp32_budget: str, last: Sequence[TrialResult]
) -> tuple[Policy, float, bool]:
    """Return the best searched policy that meets the budget in int8 when measured, its ratio, and whether it does."""
    candidates = best_within(last, costs.limits[fp32_budget], _CANDIDATES)
    policies = [in_int8(opened, result.policy) for result in candidates]
    ratios = opened.prepared.deployment.ratios(policies, costs).tolist()
    pairs = list(zip(policies, ratios, strict=True))
    fitting = [pair for pair in pairs if costs.meets(budget, *pair)]
    return (*fitting[0], True) if fitting else (*min(pairs, key=lambda pair: pair[1]), False)


METHODS: Mapping[str, tuple[bool, str]] = {
    "joint": (True, "guided"),
    "widths": (False, "guided"),
    "widths-then-int8": (False, "guided"),
    "direct-joint": (True, "direct"),
}
"""Whether each method searches precision, and its strategy."""


if __name__ == "__main__":
    main()
