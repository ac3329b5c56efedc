"""Compare the curves of `benchmark_search.py` and `benchmark_peers.py`, seed by seed.

    python scripts/benchmarks/summarize_curves.py results.csv [more.csv ...] --against guided

For every budget and number of passes: the mean test score of each method, its difference from `--against` over the
seeds that both have, with a 95 % t interval, and the verdict: `behind` and `ahead` only where the interval leaves out
0, `tie` otherwise, `?` with a single seed. Then the hypervolume of each method's models after each number of passes, as
a share of the rectangle from the reference (the dense latency, 10 points behind the dense score) to no latency at all;
and what each method spends, search included, until it has 95 % of the largest one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from curves import Row, read_rows
from scipy import stats

from autoprune.front import hypervolume

_WORST = 0.10
"""Reference of the hypervolume: this many points behind the dense model."""
_ENOUGH = 0.95
"""Share of the largest hypervolume until which passes and seconds are counted."""


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--against", default="guided")
    parser.add_argument("--dense-score", type=float, help="test score of the dense model, for the hypervolume")
    given = parser.parse_args()
    rows = [row for path in given.results for row in read_rows(path) if row.test_score is not None]
    for budget in dict.fromkeys(row.budget for row in rows):
        for point in sorted({row.passes for row in rows}):
            here = [row for row in rows if row.budget == budget and row.passes == point]
            if here:
                print(f"\n{budget} of the dense latency, {point:,} passes after the search")
                for line in compared(here, given.against):
                    print("  " + line)
    if given.dense_score is not None:
        print_volumes(rows, given.dense_score)


def compared(rows: Sequence[Row], against: str) -> list[str]:
    """One line for each method, the best mean first."""
    methods = {method: scores(rows, method) for method in dict.fromkeys(row.method for row in rows)}
    base = methods.get(against, {})
    lines = []
    for method, by_seed in sorted(methods.items(), key=lambda item: -np.mean(list(item[1].values()))):
        mine = [row for row in rows if row.method == method]
        total = np.mean([row.search_passes for row in mine]) + mine[0].passes
        ratio = np.mean([row.latency_ratio for row in mine])
        text = f"{method:17} {np.mean(list(by_seed.values())):7.2%} ({len(by_seed)} seeds, {ratio:.1%} of the latency, "
        text += f"{total:9,.0f} passes in all)"
        lines.append(text + ("" if method == against else "  " + verdict(by_seed, base)))
    return lines


def scores(rows: Sequence[Row], method: str) -> dict[int, float]:
    """Test score by seed."""
    return {row.seed: float(row.test_score or 0) for row in rows if row.method == method}


def interval(values: Sequence[float]) -> float:
    """Return half of the 95 % t interval of the mean of several values."""
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def verdict(by_seed: Mapping[int, float], base: Mapping[int, float]) -> str:
    """Mean paired difference in points, its interval, and what follows."""
    seeds = sorted(by_seed.keys() & base.keys())
    if not seeds:
        return ""
    differences = np.array([by_seed[seed] - base[seed] for seed in seeds]) * 100
    mean = float(differences.mean())
    if len(seeds) < 2:
        return f"{mean:+.2f} ?"
    half = interval(differences.tolist())
    word = "tie" if abs(mean) <= half else "ahead" if mean > 0 else "behind"
    return f"{mean:+.2f} ± {half:.2f} {word}"


@dataclass(frozen=True)
class Front:
    """A method's models of all budgets after so many passes of fine-tuning each, mean over seeds.

    `spent` are sample passes for each budget and `seconds` the clock time for all budgets, search included.
    """

    volume: float
    spent: float
    seconds: float


def print_volumes(rows: Sequence[Row], dense_score: float) -> None:
    """Hypervolume of every method after every number of passes, and what 95 % of the largest one costs."""
    methods = {
        method: fronts([row for row in rows if row.method == method], dense_score)
        for method in dict.fromkeys(row.method for row in rows)
    }
    print(f"\nhypervolume (reference: dense latency, {_WORST:.0%} behind the dense score of {dense_score:.2%})")
    for point in sorted({point for of in methods.values() for point in of}):
        volumes = {method: of[point].volume for method, of in methods.items() if point in of}
        ranked = sorted(volumes.items(), key=lambda item: -item[1])
        print(f"  {point:7,} passes: " + ", ".join(f"{method} {value:.3f}" for method, value in ranked))
    enough = _ENOUGH * max(front.volume for of in methods.values() for front in of.values())
    print(f"\nuntil {_ENOUGH:.0%} of the largest ({enough:.3f}), between the points by straight lines")
    for method, of in methods.items():
        print(f"  {method:17} {until(list(of.values()), enough)}")


def fronts(rows: Sequence[Row], dense_score: float) -> dict[int, Front]:
    """A method's fronts by passes of fine-tuning, in their order, of the seeds that have all budgets."""
    budgets = len({row.budget for row in rows})
    by_passes = {}
    for point in sorted({row.passes for row in rows}):
        seeds = sorted({row.seed for row in rows})
        parts = [[row for row in rows if row.seed == seed and row.passes == point] for seed in seeds]
        parts = [part for part in parts if len(part) == budgets]
        if not parts:
            continue
        by_passes[point] = Front(
            volume=float(np.mean([volume(part, dense_score) for part in parts])),
            spent=float(np.mean([row.search_passes + row.passes for part in parts for row in part])),
            seconds=float(np.mean([clock_time(part, rows) for part in parts])),
        )
    return by_passes


def clock_time(part: Sequence[Row], rows: Sequence[Row]) -> float:
    """Seconds of one search and the fine-tuning of its models: each row counts the whole search again."""
    search = min(row.seconds for row in rows if row.seed == part[0].seed)
    return search + sum(row.seconds - search for row in part)


def until(front: Sequence[Front], enough: float) -> str:
    """Passes and seconds that a method has spent when its hypervolume is `enough`."""
    if front[0].volume >= enough:
        return f"{front[0].spent:,.0f} passes for each budget and {front[0].seconds:.0f} s, or less"
    for before, after in pairwise(front):
        if after.volume >= enough:
            share = (enough - before.volume) / (after.volume - before.volume)
            spent = before.spent + share * (after.spent - before.spent)
            seconds = before.seconds + share * (after.seconds - before.seconds)
            return f"{spent:,.0f} passes for each budget, {seconds:.0f} s"
    return f"not after {front[-1].spent:,.0f} passes for each budget"


def volume(rows: Sequence[Row], dense_score: float) -> float:
    """Share of the rectangle between the reference and a model of no latency and the dense score."""
    reference = (1.0, dense_score - _WORST)
    return hypervolume([r.latency_ratio for r in rows], [float(r.test_score or 0) for r in rows], reference) / _WORST


if __name__ == "__main__":
    main()
