"""Draw the staircases of a latency table as a PNG: cost of some units' operators against their width.

python scripts/draw_staircases.py TABLE.json OUT.png --task T [--model M] [--units NAME ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from autoprune.pipeline.profiles import explained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model")
    parser.add_argument("--units", nargs="+")
    given = parser.parse_args()
    options = {"task": given.task} | ({"model": given.model} if given.model else {})
    _, stairs = explained(given.table, **options)
    stairs = [stair for stair in stairs if not given.units or stair.unit in given.units]
    figure, axes = plt.subplots(1, len(stairs), figsize=(3.6 * len(stairs), 3.1), squeeze=False, layout="constrained")
    for axis, stair in zip(axes[0], stairs, strict=True):
        us = [latency_ms * 1e3 for latency_ms in stair.latency_ms]
        axis.plot(stair.widths, us, ".-", color="#57606a", linewidth=1, markersize=4)
        chosen = [i for i, width in enumerate(stair.widths) if width in stair.useful]
        axis.plot(
            [stair.widths[i] for i in chosen], [us[i] for i in chosen], "o", color="#0969da", label="useful width"
        )
        axis.set(title=stair.unit, xlabel="width", xlim=(0, None), ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("cost of the unit's operators, us")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(given.out, dpi=120)
    print(given.out)


if __name__ == "__main__":
    main()
