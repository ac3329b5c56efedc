"""Compare the curves of `benchmark_search.py` and `benchmark_peers.py`, seed by seed.

    python scripts/summarize_curves.py results.csv [more.csv ...] --against guided

For every budget and number of passes: the mean test score of each method, its difference from `--against` over the
seeds that both have, with a 95 % t interval, and the verdict: `behind` and `ahead` only where the interval leaves out
0, `tie` otherwise, `?` with a single seed. Then the hypervolume of each method's models after each number of passes, as
a share of the rectangle from the reference (the dense latency, 10 points behind the dense score) to no latency at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from curves import Row, read_rows
from scipy import stats

from autoprune.front import hypervolume

_WORST = 0.10
"""Reference of the hypervolume: this many points behind the dense model."""


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
    for method, found in sorted(methods.items(), key=lambda item: -np.mean(list(item[1].values()))):
        mine = [row for row in rows if row.method == method]
        total = np.mean([row.search_passes for row in mine]) + mine[0].passes
        ratio = np.mean([row.latency_ratio for row in mine])
        text = f"{method:17} {np.mean(list(found.values())):7.2%} ({len(found)} seeds, {ratio:.1%} of the latency, "
        text += f"{total:9,.0f} passes in all)"
        lines.append(text + ("" if method == against else "  " + verdict(found, base)))
    return lines


def scores(rows: Sequence[Row], method: str) -> dict[int, float]:
    """Test score by seed."""
    return {row.seed: float(row.test_score or 0) for row in rows if row.method == method}


def verdict(found: dict[int, float], base: dict[int, float]) -> str:
    """Mean paired difference in points, its interval, and what follows."""
    seeds = sorted(found.keys() & base.keys())
    if not seeds:
        return ""
    differences = np.array([found[seed] - base[seed] for seed in seeds]) * 100
    mean = float(differences.mean())
    if len(seeds) < 2:
        return f"{mean:+.2f} ?"
    half = float(stats.t.ppf(0.975, len(seeds) - 1) * differences.std(ddof=1) / np.sqrt(len(seeds)))
    word = "tie" if abs(mean) <= half else "ahead" if mean > 0 else "behind"
    return f"{mean:+.2f} ± {half:.2f} {word}"


def print_volumes(rows: Sequence[Row], dense_score: float) -> None:
    """Hypervolume of every method after every number of passes, mean over seeds."""
    print(f"\nhypervolume (reference: dense latency, {_WORST:.0%} behind the dense score of {dense_score:.2%})")
    for point in sorted({row.passes for row in rows}):
        found = {}
        for method in dict.fromkeys(row.method for row in rows):
            mine = [row for row in rows if row.method == method and row.passes == point]
            volumes = [volume([r for r in mine if r.seed == s], dense_score) for s in sorted({r.seed for r in mine})]
            if volumes:
                found[method] = float(np.mean(volumes))
        ranked = sorted(found.items(), key=lambda item: -item[1])
        print(f"  {point:7,} passes: " + ", ".join(f"{method} {value:.3f}" for method, value in ranked))


def volume(rows: Sequence[Row], dense_score: float) -> float:
    """Share of the rectangle between the reference and a model of no latency and the dense score."""
    reference = (1.0, dense_score - _WORST)
    return hypervolume([r.latency_ratio for r in rows], [float(r.test_score or 0) for r in rows], reference) / _WORST


if __name__ == "__main__":
    main()
