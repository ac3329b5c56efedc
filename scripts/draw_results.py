"""Draw the first table of `docs/results.md`: test accuracy against the share of the dense latency, by strategy.

python scripts/draw_results.py [docs/figures/strategies]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figure_style import plot_pair

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (50, 33, 25, 15)
DENSE = 93.58
LINES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "**guided**": ("autoprune", "blue", {"marker": "o", "linestyle": "-", "linewidth": 2}),
    "uniform": ("uniform, with our repair", "amber", {"marker": "^", "linestyle": "--"}),
    "Torch-Pruning 1.6.1, isomorphic": ("Torch-Pruning 1.6.1", "green", {"marker": "s", "linestyle": ":"}),
    "ModelOpt 0.47 FastNAS by FLOPs": ("ModelOpt FastNAS", "muted", {"marker": "D", "linestyle": ":"}),
}
"""By the first cell of a row: label, colour and style."""
AFTER = {1: "2,000", 2: "10,000"}
"""Position in a cell, and the sample passes of fine-tuning that it stands for."""


def scores(text: str) -> dict[str, dict[int, tuple[float, ...]]]:
    """By row and budget: test accuracy in % after 0, 2,000 and 10,000 sample passes; budgets not met are left out."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in cells] for cells in lines]
    table: dict[str, dict[int, tuple[float, ...]]] = {}
    for name, *cells in rows:
        if name in LINES and name not in table:
            numbers = [re.findall(r"[\d.]+", cell) for cell in cells[: len(BUDGETS)]]
            table[name] = {b: tuple(map(float, n)) for b, n in zip(BUDGETS, numbers, strict=True) if len(n) == 3}
    if missing := LINES.keys() - table.keys():
        raise ValueError(f"docs/results.md needs a row for each line of the figure; none begins with {sorted(missing)}")
    return table


def plot(table: Mapping[str, Mapping[int, tuple[float, ...]]], colors: Mapping[str, str]) -> Any:
    """A matplotlib figure with one plot for each length of fine-tuning."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(AFTER), figsize=(8.6, 3.2), sharey=True, layout="constrained")
    for axis, (position, passes) in zip(axes, AFTER.items(), strict=True):
        axis.axhline(DENSE, color=colors["muted"], linewidth=1, linestyle="--")
        axis.text(15, DENSE + 0.3, "dense", color=colors["muted"], fontsize=9)
        for name, (label, color, style) in LINES.items():
            points = sorted((budget, cell[position]) for budget, cell in table[name].items())
            axis.plot(*zip(*points, strict=True), label=label, color=colors[color], markersize=5, **style)
        axis.set_title(f"after {passes} sample passes of fine-tuning", loc="left", fontsize=10)
        axis.set(xlabel="latency, % of dense", xticks=BUDGETS)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="test accuracy, %", ylim=(73, 95))
    axes[1].legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/figures/strategies"
    table = scores((ROOT / "docs/results.md").read_text())
    plot_pair(out, lambda colors: plot(table, colors))


if __name__ == "__main__":
    main()
