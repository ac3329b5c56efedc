"""Draw the front of a finished run: test score against measured latency, with the uniform baselines.

python scripts/draw_front.py RUN_DIR docs/figures/front       # writes front-light.svg and front-dark.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figure_style import plot_pair

from autoprune.report.tables import time_unit
from autoprune.runfolder import RunFolder, read_json

STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("muted", {"marker": "s", "linestyle": ""}),
    "searched": ("blue", {"marker": "o", "linestyle": "-"}),
    "uniform": ("amber", {"marker": "^", "linestyle": "--"}),
}
"""Colour of the theme and style of each group of models."""


def plot(document: Mapping[str, Any], title: str, colors: Mapping[str, str]) -> Any:
    """A matplotlib figure of the content of `front.json`."""
    from matplotlib import pyplot as plt

    unit = time_unit(document)
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    groups = {"dense": [document["dense"]], "searched": document["models"], "uniform": document["baselines"]}
    for name, models in groups.items():
        color, style = STYLES[name]
        points = sorted((unit.per_ms * m["latency_ms_measured"], 100 * m["test_score"]) for m in models)
        axes.plot(*zip(*points, strict=True), label=name, markersize=7, color=colors[color], **style)
    for model in document["models"]:
        at = (unit.per_ms * model["latency_ms_measured"], 100 * model["test_score"])
        label = f"{model['latency_ratio']:.0%} of dense"
        axes.annotate(label, at, xytext=(9, -4), textcoords="offset points", color=colors["blue"])
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(f"measured latency, {unit.name}")
    axes.set_ylabel(f"test {document['metric']}, %")
    axes.margins(x=0.1, y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path, help="path without a suffix")
    options = parser.parse_args()
    folder = RunFolder(options.run_dir)
    document, config = read_json(folder.front), folder.read_config() or {}
    title = f"{config['task']}, {config['model'] or 'default model'}, {config['target']}"
    plot_pair(options.out, lambda colors: plot(document, title, colors))


if __name__ == "__main__":
    main()
