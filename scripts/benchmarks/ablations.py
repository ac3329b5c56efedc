"""The guided search with one thing changed at a time: test score after fine-tuning, beside that of the full algorithm.

    python scripts/benchmarks/ablations.py --dense dense.safetensors --rows A0 A1 A6 --seeds 0 1 2 --out ablations.csv

Rows (`ablations.py` has them) share the dense weights and the latency table, which the first row profiles beside the
CSV file. Rows in which a policy scores the same share one study, and each counts the passes of all it asks for. The
policy of a budget is the best one of the last rung that meets it when measured (`--by-prediction`: by the table alone);
it is fine-tuned from its repaired start for each number of passes. Of A10 it is the number of examples that is
the same, so a third of a pass for each is left over. Results are appended (`curves.Row`; `method` is the row); run it
again to go on. `summarize_curves.py --against A0` compares them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ablation_variants import VARIANTS, reachable
from search import ChosenPolicy, append_curve, chosen, complete, note, profiled

from autoprune.search.guided import guided


def main() -> None:
    """Run every row with every seed that has points missing."""
    given = parse()
    complete(given, given.rows, ablate)


def ablate(given: argparse.Namespace, name: str, seed: int, missing: Mapping[str, Sequence[int]]) -> None:
    """Search as a row says, and append the curves of its budgets."""
    start, variant = time.monotonic(), VARIANTS[name]
    print(f"{name}, seed {seed}: {variant.what}", flush=True)
    opened = profiled(given, "A0" if variant.scores_alike else name, seed, **variant.options)
    opened = opened.but(space=variant.space(opened.prepared))
    prepared, limits = opened.prepared, reachable(opened.prepared)
    for budget in [budget for budget, points in missing.items() if points and budget not in limits]:
        smallest = prepared.space.smallest()  # which misses the budget, too
        ratio = float(prepared.costs.predicted_ratios([smallest])[0])
        append_curve(given, prepared.dense_model, smallest, [0], ChosenPolicy(name, budget, seed, 0, ratio, False, 0.0))
    if not limits:
        return
    opened = opened.but(costs=replace(prepared.costs, limits=limits))
    exploration, slots = opened.explored(partial(guided, parts=variant.parts(opened.prepared)))
    rungs = [rung.name for rung in prepared.effort.rungs]
    used = rungs[: variant.rungs]
    spent = opened.passes(exploration.outcome, slots)
    passes = sum(count for part, count in spent.items() if part in used or part not in rungs)
    dense_model = variant.dense_model(opened.prepared)
    seconds = time.monotonic() - start
    for budget in [budget for budget in missing if budget in limits and missing[budget]]:
        last = exploration.outcome.results[used[-1]]
        policy, ratio, meets = chosen(opened, exploration.costs, budget, last, "guided")
        choice = ChosenPolicy(name, budget, seed, round(passes / len(limits)), ratio, meets, seconds)
        append_curve(given, dense_model, policy, missing[budget], choice)
    note(exploration.outcome)


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--model", default="resnet8-wide")
    parser.add_argument("--dense", type=Path, required=True, help="trained weights (safetensors)")
    parser.add_argument("--budget", nargs="+", default=["50%", "33%"])
    parser.add_argument("--rows", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=int, nargs="+", default=[0, 2_000, 10_000])
    parser.add_argument("--trials", type=int, help="proxies of all budgets together (default: effort small)")
    parser.add_argument("--by-prediction", action="store_true", help="do not measure: latencies are the table's")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="CSV file; its folder of runs has the same name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
