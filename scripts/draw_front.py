"""Draw the front of a finished run as a PNG: test score against measured latency, with the uniform baselines.

python scripts/draw_front.py RUN_DIR OUT.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from autoprune.runfolder import RunFolder, read_json

STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "#57606a", "marker": "s", "linestyle": ""},
    "searched": {"color": "#0969da", "marker": "o", "linestyle": "-"},
    "uniform": {"color": "#bf8700", "marker": "^", "linestyle": "--"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    folder = RunFolder(options.run_dir)
    document = read_json(folder.front)
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=160, layout="constrained")
    groups = {"dense": [document["dense"]], "searched": document["models"], "uniform": document["baselines"]}
    for name, models in groups.items():
        points = sorted((m["latency_ms_measured"] * 1e3, 100 * m["test_score"]) for m in models)
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, markersize=7, **STYLES[name])
    for model in document["models"]:
        place = (model["latency_ms_measured"] * 1e3, 100 * model["test_score"])
        label = f"{model['latency_ratio']:.0%} of dense"
        axes.annotate(label, place, xytext=(9, -4), textcoords="offset points", color="#0969da")
    config = folder.read_config() or {}
    axes.set_title(
        f"{config['task']}, {config['model'] or 'default model'}, {config['target']}", loc="left", fontsize=10
    )
    axes.set_xlabel("measured latency, us")
    axes.set_ylabel(f"test {document['metric']}, %")
    axes.margins(x=0.1, y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
