"""How well five ways of predicting latency predict the same held-out policies of the same models, in one run.

    python scripts/benchmarks/latency.py --out runs/latency [--models resnet20 ...] [--threads 1 2] [--batches 1 8]
        [--space joint vit=transformer-joint lstm=transformer-joint]

Compared: the fitted latency table; isolated operators (each timed alone, as a model of its own); the runtime's profiler
(node times inside whole models); multiply-accumulates; parameters. All but the table get a line fitted to end-to-end
times of the table's own training policies, so that only their shape is judged. With a space that treats layers, the
table alone is judged, on mixed policies: the others do not know treatments. Writes results.csv and, with matplotlib,
predicted_against_measured.png. Time it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from single_operators import single_operator

from autoprune.device.connect import make_target
from autoprune.device.runner import time_models
from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latencies import Geometry
from autoprune.latency.evidence import occurrences
from autoprune.latency.fitting import spearman
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.table import FIT, HELD_OUT, LatencyTable
from autoprune.profiling.profile import profile
from autoprune.space import build_space, find_space, load_spec
from autoprune.structure import Structure, analyze
from autoprune.task.builtin import MODELS

PIXELS, CLASSES = 28, 10
LINE_POLICIES = 30
COLORS = ("#0969da", "#bf8700", "#1a7f37", "#8250df", "#cf222e", "#57606a")
ISOLATED = Protocol(repeats=8, warmup_runs=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    parser.add_argument(
        "--models", nargs="+", default=["resnet20", "resnet8-wide", "mobilenet-tiny", "vgg-tiny", "lstm", "vit"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--space", nargs="+", default=["widths"], help="of all models, and of some: SPACE MODEL=SPACE (default: widths)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, points = [], []
    spaces = dict.fromkeys(given.models, next((each for each in given.space if "=" not in each), "widths"))
    spaces |= dict(each.split("=", 1) for each in given.space if "=" in each)
    for model in given.models:
        structure = analyze(MODELS[model](1, PIXELS, CLASSES).eval(), (torch.zeros(1, 1, PIXELS, PIXELS),))
        for threads in given.threads:
            for batch in given.batches:
                target = make_target("ort-cpu", threads, batch)
                predictions = compare(structure, target, spaces[model], given.seed)
                for method, (predicted, measured, extra) in predictions.items():
                    rows.append(
                        {"model": model, "threads": threads, "batch": batch, "method": method}
                        | errors(predicted, measured)
                        | extra
                    )
                    points.append((model, threads, batch, method, predicted, measured))
                print(pd.DataFrame(rows[-len(predictions) :]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(given.out / "results.csv", index=False)
    print("\nmedians over all rows:")
    print(table.groupby("method", sort=False)[["MAPE %", "largest %", "Spearman"]].median().round(3).to_string())
    draw(points, given.out / "predicted_against_measured.png")


def compare(
    structure: Structure, target: Target, space_name: str, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray, dict[str, float]]]:
    """Predicted and measured milliseconds `[held-out]` of every method."""
    spec = load_spec(find_space(space_name))
    start = time.monotonic()
    table = profile(
        structure,
        build_space(spec, structure.units, structure.digest(), layers=structure.layers),
        target,
        narrow=lambda useful: build_space(
            spec, structure.units, structure.digest(), useful=useful, layers=structure.layers
        ),
        seed=seed,
    )
    seconds = time.monotonic() - start
    held, measured = policies(structure, table, HELD_OUT)
    predicted = table.predictor(structure).predict(held)
    noise = {"noise %": table.held_out.noise_percent, "seconds": seconds, "policies": len(table.samples)}
    predictions = {"table": (predicted, measured, noise)}
    if table.layers:  # the other methods do not know treatments
        return predictions
    line_widths, line_ms = (part[:LINE_POLICIES] for part in shuffled(*policies(structure, table, FIT), seed))
    widths = np.concatenate([held, line_widths])
    features = {
        "isolated operators": isolated_ms(structure, target, widths),
        "profiler sums": profiler_ms(structure, table, widths),
        "MACs": structure.macs(widths).astype(float),
        "parameters": structure.params(widths).astype(float),
    }
    for name, feature in features.items():
        line = np.polyfit(feature[len(measured) :], line_ms, 1, w=1 / line_ms)
        predictions[name] = (np.polyval(line, feature[: len(measured)]), measured, {})
    return predictions


def policies(structure: Structure, table: LatencyTable, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[P, U + L]` and measured milliseconds `[P]` of the samples of one role."""
    samples = [sample for sample in table.samples if sample.role == role]
    rows = structure.rows([sample.policy for sample in samples], table.layers)
    return rows, np.array([sample.measured_ms for sample in samples])


def shuffled(widths: np.ndarray, ms: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(ms))
    return widths[order], ms[order]


def profiler_ms(structure: Structure, table: LatencyTable, widths: np.ndarray) -> np.ndarray:
    """Sum of what the runtime's profiler reported for every operator, `[P]`."""
    geometries = tuple(table.entries)
    numbers = GeometryIndex(PricedOperators.of(structure).varying, geometries).numbers(widths)
    return occurrences(numbers, len(geometries)) @ np.array([entry.prior_ms for entry in table.entries.values()])


def isolated_ms(structure: Structure, target: Target, widths: np.ndarray) -> np.ndarray:
    """Sum of the latencies of all operators, each timed alone, `[P]`."""
    varying = PricedOperators.of(structure).varying
    geometries: dict[Geometry, None] = {}
    for operator in varying:
        geometries |= dict.fromkeys(operator.geometries(widths))
    costs = np.empty(len(geometries))
    for number, geometry in enumerate(geometries):
        model, feed = single_operator(geometry, target.batch)
        timed = time_models([model], target, [feed], reference=model, protocol=ISOLATED)
        costs[number] = timed.latencies_ms[0]
    numbers = GeometryIndex(varying, tuple(geometries)).numbers(widths)
    return occurrences(numbers, len(geometries)) @ costs


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    error = 100 * (predicted / measured - 1)
    return {
        "MAPE %": round(float(np.abs(error).mean()), 2),
        "largest %": round(float(np.abs(error).max()), 2),
        "bias %": round(float(error.mean()), 2),
        "Spearman": round(spearman(predicted, measured), 4),
    }


def draw(points: list[tuple[str, int, int, str, np.ndarray, np.ndarray]], path: Path) -> None:
    """Predicted against measured, as shares of the slowest policy: the table, MACs and isolated operators."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    methods = [m for m in ("table", "isolated operators", "MACs") if any(p[3] == m for p in points)]
    figure, axes = plt.subplots(
        1, len(methods), figsize=(3.5 * len(methods), 3.7), sharey=True, layout="constrained", squeeze=False
    )
    for axis, method in zip(axes[0], methods, strict=True):
        for color, model in zip(COLORS, dict.fromkeys(p[0] for p in points), strict=False):
            mine = [p for p in points if p[0] == model and p[3] == method]
            measured = np.concatenate([p[5] / p[5].max() for p in mine])
            predicted = np.concatenate([p[4] / p[5].max() for p in mine])
            axis.plot(measured, predicted, ".", color=color, markersize=4, alpha=0.6, label=model)
        axis.plot([0, 1], [0, 1], color="#57606a", linewidth=0.8)
        axis.set(title=method, xlabel="measured, share of the slowest", xlim=(0, 1.05), ylim=(0, 1.15))
    axes[0, 0].set_ylabel("predicted")
    axes[0, 0].legend(frameon=False, fontsize=8, markerscale=2)
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    main()
