"""A table of `sparsity.py`: test scores in percent by model, space and budget, as Markdown.

    python scripts/benchmarks/summarize_sparsity.py sparsity.csv [--passes 10000]

Several seeds are their mean, with the lowest and the highest one behind it. `-` where no policy of a method has so few
bytes. The score in bold is the highest of its row.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

METHODS = {
    "searched": "searched", "searched+rigl": "searched, RigL", "uniform": "uniform", "global magnitude": "global magnitude", "LAMP": "LAMP", "ERK": "ERK",
    "gradual+lamp": "gradual", "rigl+lamp": "RigL", "admm+lamp": "ADMM", "l1+lamp": "L1",
}  # fmt: skip
"""Methods in the order of the columns, and their headings."""


def table(rows: Iterable[Mapping[str, str]], passes: int) -> list[str]:
    """Return the lines of a Markdown table of the rows with so many passes of fine-tuning."""
    percent: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if int(row["passes"]) == passes:
            of_line = percent[row["model"], row["space"], row["budget"]]
            of_line[row["method"]].append(100 * float(row["test_score"]))
    lines = [f"| model | space | bytes | {' | '.join(METHODS.values())} |", "|---" * (3 + len(METHODS)) + "|"]
    for (model, space, budget), scores in percent.items():
        best = f"{max(map(fmean, scores.values())):.1f}"
        cells = " | ".join(cell(scores.get(method, ()), best) for method in METHODS)
        lines.append(f"| `{model}` | `{space}` | {budget.replace('%', ' %')} | {cells} |")
    return lines


def cell(percent: Sequence[float], best: str) -> str:
    """Return the mean of some scores and, of several, their range; `best` is the mean that is in bold."""
    if not percent:
        return "-"
    mean = f"{fmean(percent):.1f}"
    shown = f"**{mean}**" if mean == best else mean
    return shown if len(percent) == 1 else f"{shown} ({min(percent):.1f} to {max(percent):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--passes", type=int, default=10_000)
    options = parser.parse_args()
    with options.csv.open(newline="") as file:
        print("\n".join(table(csv.DictReader(file), options.passes)))


if __name__ == "__main__":
    main()
