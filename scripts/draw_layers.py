"""Draw what became of every layer of a model of a run, and why: the time that int8 saves there, and what was chosen.

python scripts/draw_layers.py RUN_DIR DIGEST docs/figures/layers       # writes layers-light.svg and layers-dark.svg

The time saved is predicted: that of the model with the layer in fp32 less that with it in int8, all else as chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figure_style import plot_pair

from autoprune.latency.table import LatencyTable
from autoprune.pipeline.profiles import structure_of
from autoprune.pipeline.run import Run
from autoprune.records import Policy
from autoprune.treatments import DENSE, INT8

COLORS = {"int8": "blue", "fp32": "amber"}
"""Colour of the theme of what a layer became."""

Row = tuple[str, float, str]
"""A layer: its label, the microseconds that int8 saves in it, and its treatment."""


def rows_of(run: Run, digest: str) -> list[Row]:
    """The layers of a model that may be int8, in the order of the network; those of removed branches are left out."""
    structure = structure_of(run.config)
    table = LatencyTable.load(run.folder.table)
    predictor, policy = table.predictor(structure), run.candidate(digest).record.policy

    def microseconds(layer: str, treatment: Any) -> float:
        chosen = {**policy.treatments, layer: treatment}
        return 1e3 * float(predictor.predict([Policy(space_id="", widths=policy.widths, treatments=chosen)])[0])

    modules = {layer.name: layer.module for layer in structure.layers}
    shapes = {name: tensor.shape for name, tensor in structure.shrink(policy, prove=False).state_dict().items()}
    rows = []
    for layer in table.layers:
        if INT8 in table.space.levels[layer] and layer in shapes:
            saved = microseconds(layer, DENSE) - microseconds(layer, INT8)
            label = f"{modules[layer]}  {shapes[layer][1]} > {shapes[layer][0]}"
            rows.append((label, saved, str(policy.treatments.get(layer, DENSE))))
    return rows


def plot(rows: Sequence[Row], title: str, colors: Mapping[str, str]) -> Any:
    """A matplotlib figure of the rows."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.24 * len(rows)), layout="constrained")
    for treatment, color in COLORS.items():
        bars = [(place, saved) for place, (_, saved, chosen) in enumerate(rows) if chosen == treatment]
        if not bars:
            continue
        axes.barh([p for p, _ in bars], [saved for _, saved in bars], height=0.7, color=colors[color], label=treatment)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=colors["muted"], linewidth=0.8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("time that int8 saves in the layer, us (predicted)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="lower right", title="chosen")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("digest", help="of a model of the run, or its beginning")
    parser.add_argument("out", type=Path, help="path without a suffix")
    options = parser.parse_args()
    run = Run.open(options.run_dir)
    rows = rows_of(run, options.digest)
    record = run.candidate(options.digest).record
    counts = sum(chosen == "int8" for _, _, chosen in rows)
    offered = f"int8 in {counts} of the {len(rows)} layers left where it was offered"
    title = f"{record.latency_ratio:.0%} of the dense latency: {offered}"
    plot_pair(options.out, lambda colors: plot(rows, title, colors))


if __name__ == "__main__":
    main()
