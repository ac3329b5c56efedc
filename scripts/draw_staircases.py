"""Draw the staircases of a latency table: cost of some units' operators against their width.

python scripts/draw_staircases.py TABLE.json docs/figures/staircases --task T [--model M] [--units NAME ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figure_style import plot_pair

from autoprune.pipeline.profiles import explained
from autoprune.report.staircases import unit_of


def plot(stairs: Sequence[Any], colors: Mapping[str, str]) -> Any:
    """A matplotlib figure with one plot for each staircase."""
    from matplotlib import pyplot as plt

    unit = unit_of(stairs)
    figure, axes = plt.subplots(1, len(stairs), figsize=(3.6 * len(stairs), 3.1), squeeze=False, layout="constrained")
    for axis, stair in zip(axes[0], stairs, strict=True):
        costs = [unit.per_ms * latency_ms for latency_ms in stair.latency_ms]
        axis.plot(stair.widths, costs, ".-", color=colors["muted"], linewidth=1, markersize=4)
        chosen = [i for i, width in enumerate(stair.widths) if width in stair.useful]
        label = "width that no larger one beats"
        axis.plot([stair.widths[i] for i in chosen], [costs[i] for i in chosen], "o", color=colors["blue"], label=label)
        axis.set(title=stair.unit, xlabel="width", xlim=(0, None), ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(f"cost of the unit's operators, {unit.name}")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path, help="path without a suffix")
    parser.add_argument("--task", required=True)
    parser.add_argument("--model")
    parser.add_argument("--units", nargs="+")
    given = parser.parse_args()
    options = {"task": given.task} | ({"model": given.model} if given.model else {})
    _, stairs = explained(given.table, **options)
    stairs = [stair for stair in stairs if not given.units or stair.unit in given.units]
    plot_pair(given.out, lambda colors: plot(stairs, colors))


if __name__ == "__main__":
    main()
