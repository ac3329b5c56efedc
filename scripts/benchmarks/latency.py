"""How well five ways of predicting latency predict the same held-out policies of the same models, in one run.

    python scripts/benchmarks/latency.py --out runs/latency [--models resnet20 ...] [--threads 1 2] [--batches 1 8]

Compared: the fitted latency table; isolated operators (each timed alone, as a model of its own); the runtime's profiler
(node times inside whole models); multiply-accumulates; parameters. All but the table get a line fitted to end-to-end
times of the table's own training policies, so that only their shape is judged. Writes results.csv and, with matplotlib,
predicted_against_measured.png. Time it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper

from autoprune.device.connect import make_target
from autoprune.device.runner import time_models
from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latency.evidence import occurrences
from autoprune.latency.fitting import spearman
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.table import FIT, HELD_OUT, LatencyTable
from autoprune.profiling.profile import profile
from autoprune.records import Geometry
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
    parser.add_argument("--space", default="default")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows, points = [], []
    for model in given.models:
        structure = analyze(MODELS[model](1, PIXELS, CLASSES).eval(), (torch.zeros(1, 1, PIXELS, PIXELS),))
        for threads in given.threads:
            for batch in given.batches:
                target = make_target("ort-cpu", threads, batch)
                predictions = compare(structure, target, given.space, given.seed)
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
        build_space(spec, structure.units, structure.digest()),
        target,
        narrow=lambda useful: build_space(spec, structure.units, structure.digest(), useful=useful),
        seed=seed,
    )
    seconds = time.monotonic() - start
    held_widths, measured = policies(table, HELD_OUT)
    line_widths, line_ms = (part[:LINE_POLICIES] for part in shuffled(*policies(table, FIT), seed))
    widths = np.concatenate([held_widths, line_widths])
    features = {
        "isolated operators": isolated_ms(structure, target, widths),
        "profiler sums": profiler_ms(structure, table, widths),
        "MACs": structure.macs(widths).astype(float),
        "parameters": structure.params(widths).astype(float),
    }
    predicted = table.predictor(structure).predict(held_widths)
    noise = {"noise %": table.held_out.noise_percent, "seconds": seconds, "policies": len(table.samples)}
    predictions = {"table": (predicted, measured, noise)}
    for name, feature in features.items():
        line = np.polyfit(feature[len(measured) :], line_ms, 1, w=1 / line_ms)
        predictions[name] = (np.polyval(line, feature[: len(measured)]), measured, {})
    return predictions


def policies(table: LatencyTable, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths `[P, U]` and measured milliseconds `[P]` of the samples of one role."""
    samples = [sample for sample in table.samples if sample.role == role]
    widths = np.array([[sample.widths[name] for name in table.known] for sample in samples], dtype=np.int64)
    return widths, np.array([sample.measured_ms for sample in samples])


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


@cache
def single_operator(geometry: Geometry, batch: int) -> tuple[bytes, np.ndarray]:
    """An ONNX model of one operator with what is fused into it, and an input for it."""
    g = geometry
    rng = np.random.default_rng(0)
    stride = g.stride or (1, 1)
    image = [batch, g.c_in, g.out_rows * stride[0], g.out_columns * stride[-1]]
    weights, nodes = {}, []
    if g.op == "conv2d":
        weights["w"] = rng.standard_normal((g.c_out, g.c_in // g.groups, *g.kernel)).astype(np.float32)
        pads = [k // 2 for k in g.kernel] * 2
        nodes.append(
            helper.make_node(
                "Conv", ["x", "w"], ["y"], kernel_shape=g.kernel, strides=stride, pads=pads, group=g.groups
            )
        )
    elif g.op == "linear" and g.out_columns > 1:  # of every token
        image = [batch, g.out_columns, g.c_in]
        weights["w"] = rng.standard_normal((g.c_in, g.c_out)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    elif g.op == "linear":
        image = [batch, g.c_in]
        weights["w"] = rng.standard_normal((g.c_out, g.c_in)).astype(np.float32)
        nodes.append(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1))
    elif g.op == "scaled_dot_product_attention":
        image = [batch, g.groups, g.out_columns, g.c_in]
        nodes += [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["x", "t"], ["products"]),
            helper.make_node("Softmax", ["products"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "x"], ["y"]),
        ]
    elif g.op == "layer_norm":
        image = [batch, max(g.out_columns, 1), g.c_in]
        weights["w"] = np.ones(g.c_in, dtype=np.float32)
        nodes.append(helper.make_node("LayerNormalization", ["x", "w"], ["y"]))
    elif g.op in ("transpose", "permute", "unbind"):
        image = [batch, max(g.c_in, 1), max(g.out_rows, 1), max(g.out_columns, 1)]
        nodes.append(helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3]))
    elif g.op == "lstm":
        image, hidden = [g.out_columns, batch, g.c_in], g.c_out // g.groups
        for name, size in (("w", g.c_in), ("r", hidden)):
            weights[name] = rng.standard_normal((g.groups, 4 * hidden, size)).astype(np.float32)
        direction = "forward" if g.groups == 1 else "bidirectional"
        nodes.append(helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden, direction=direction))
    elif g.op in ("max_pool2d", "avg_pool2d"):
        kind = "MaxPool" if g.op == "max_pool2d" else "AveragePool"
        nodes.append(helper.make_node(kind, ["x"], ["y"], kernel_shape=g.kernel, strides=stride))
    elif g.op in ("mean", "adaptive_avg_pool2d"):
        image = [batch, g.c_in, 7, 7]
        nodes.append(helper.make_node("GlobalAveragePool", ["x"], ["y"]))
    else:
        image = [batch, g.c_in, max(g.out_rows, 1), max(g.out_columns, 1)]
        nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    value = "y"
    for step in filter(None, g.fused.split("+")):
        if step == "add":
            nodes.append(helper.make_node("Add", [value, value], [value + "a"]))
            value += "a"
        else:
            nodes.append(helper.make_node("Relu", [value], [value + "r"]))
            value += "r"
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(), rng.standard_normal(image, dtype=np.float32)


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

    methods = ["table", "isolated operators", "MACs"]
    figure, axes = plt.subplots(1, len(methods), figsize=(10.5, 3.7), sharey=True, layout="constrained")
    for axis, method in zip(axes, methods, strict=True):
        for color, model in zip(COLORS, dict.fromkeys(p[0] for p in points), strict=False):
            mine = [p for p in points if p[0] == model and p[3] == method]
            measured = np.concatenate([p[5] / p[5].max() for p in mine])
            predicted = np.concatenate([p[4] / p[5].max() for p in mine])
            axis.plot(measured, predicted, ".", color=color, markersize=4, alpha=0.6, label=model)
        axis.plot([0, 1], [0, 1], color="#57606a", linewidth=0.8)
        axis.set(title=method, xlabel="measured, share of the slowest", xlim=(0, 1.05), ylim=(0, 1.15))
    axes[0].set_ylabel("predicted")
    axes[0].legend(frameon=False, fontsize=8, markerscale=2)
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    main()
