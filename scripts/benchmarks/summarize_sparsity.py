"""Tables of `sparsity.py` as Markdown: test scores, how far one method is from the others, and bytes used, in percent.

    python scripts/benchmarks/summarize_sparsity.py sparsity.csv [more.csv ...] [--passes 10000] [--against searched]

A score of several seeds is their mean with a 95 % t interval; `-` where no policy of a method has so few bytes. The
score in bold is the highest of its row. The second table has the difference from `--against` to every other method over
the seeds that both have, with a 95 % t interval: `ahead` and `behind` only where the interval leaves out 0, `tie`
otherwise, `?` with a single seed. The third has the mean share of the dense model's bytes. Of rows for the same seed in
several files the last one counts.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from summarize_curves import interval, verdict

METHODS = {
    "searched": "searched", "searched+rigl": "searched, RigL", "uniform": "uniform",
    "global magnitude": "global magnitude", "LAMP": "LAMP", "ERK": "ERK", "one-shot+lamp": "LAMP, any share",
    "gradual+lamp": "gradual", "rigl+lamp": "RigL", "admm+lamp": "ADMM", "l1+lamp": "L1",
}  # fmt: skip
"""Methods in the order of the columns, and their headings."""

Scores = Mapping[tuple[str, str, str], Mapping[str, Mapping[int, float]]]
"""Test scores by model, space and budget; method; and seed."""


def read_scores(rows: Iterable[Mapping[str, str]], passes: int, column: str = "test_score") -> Scores:
    """Return the test scores, or another column, of the rows with so many passes of fine-tuning; later rows win."""
    scores: dict[tuple[str, str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if int(row["passes"]) == passes:
            of_line = scores[row["model"], row["space"], row["budget"]]
            of_line[row["method"]][int(row["seed"])] = float(row[column])
    return scores


def score_table(scores: Scores) -> list[str]:
    """Return the lines of the table of test scores in percent."""
    present = [method for method in METHODS if any(method in of_line for of_line in scores.values())]
    lines = _head("model", "space", "bytes", *(METHODS[method] for method in present))
    for key, of_line in scores.items():
        best = f"{max(100 * fmean(by_seed.values()) for by_seed in of_line.values()):.1f}"
        lines.append(_line(*_of(key), *(cell(of_line.get(method, {}), best) for method in present)))
    return lines


def difference_table(scores: Scores, against: str) -> list[str]:
    """Return the lines of the table of differences in points from one method to every other."""
    present = [m for m in METHODS if m != against and any(m in of_line for of_line in scores.values())]
    lines = _head("model", "space", "bytes", *(f"{METHODS[against]} minus {METHODS[method]}" for method in present))
    for key, of_line in scores.items():
        own = of_line.get(against, {})
        lines.append(_line(*_of(key), *(verdict(own, of_line.get(method, {})) or "-" for method in present)))
    return lines


def bytes_table(shares: Scores) -> list[str]:
    """Return the lines of the table of bytes used in percent of the dense model's."""
    present = [method for method in METHODS if any(method in of_line for of_line in shares.values())]
    lines = _head("model", "space", "bytes", *(METHODS[method] for method in present))
    for key, of_line in shares.items():
        used = (fmean(of_line[method].values()) if method in of_line else None for method in present)
        lines.append(_line(*_of(key), *("-" if share is None else f"{100 * share:.1f}" for share in used)))
    return lines


def cell(by_seed: Mapping[int, float], best: str) -> str:
    """Return the mean in percent of scores by seed and, of several, its interval; `best` is the mean in bold."""
    if not by_seed:
        return "-"
    percent = [100 * score for score in by_seed.values()]
    mean = f"{fmean(percent):.1f}"
    shown = f"**{mean}**" if mean == best else mean
    return shown if len(percent) == 1 else f"{shown} ± {interval(percent):.1f}"


def _of(key: tuple[str, str, str]) -> tuple[str, str, str]:
    model, space, budget = key
    return f"`{model}`", f"`{space}`", budget.replace("%", " %")


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, nargs="+")
    parser.add_argument("--passes", type=int, default=10_000)
    parser.add_argument("--against", default="searched", choices=list(METHODS))
    options = parser.parse_args()
    rows: list[dict[str, str]] = []
    for path in options.csv:
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    scores = read_scores(rows, options.passes)
    used = bytes_table(read_scores(rows, options.passes, "bytes_share"))
    print("\n".join([*score_table(scores), "", *difference_table(scores, options.against), "", *used]))


if __name__ == "__main__":
    main()
