"""Tools that prune out of the box, on the architectures of `zoo_models.py`, judged in one way (`zoo_judge.py`).

Each is asked for half of the channels and used as its documentation does: with the architecture and an example, without
hints for one architecture. `onnxsim` works on files, which it simplifies first.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import zoo_models
from onnx import numpy_helper
from torch import Tensor, nn
from zoo_judge import (
    TOLERANCE,
    Unjudged,
    exactness,
    largest_difference,
    outputs_of,
    trains,
    with_distinct_weights,
    zeroed,
)

FIELDS = ("status", "params_ratio", "same_shape", "exact", "trains", "s", "reason")
SMALLER = 0.9
"""Share of the parameters that may be left of a model that counts as cut."""
CLASSES = (2, 5, 10, 100)
"""Numbers of outputs of the architectures: Torch-Pruning must be told to keep the last layer."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: on how many architectures each tool has which outcome.

    A model counts as cut when outputs keep their shapes and at most `SMALLER` of the parameters are left. What is
    judged is counted among those.
    """
    lines = [
        "| tool | models | completes | cut | exact | different | unjudged | exact and trains | timeout | crash "
        "| params left (median) | CPU s (median) |",
        "|---|" + "---|" * 11,
    ]
    for tool in TOOLS:
        own = [{key: row.get(f"{tool}_{key}", "") for key in FIELDS} for row in rows if f"{tool}_status" in row]
        done = [row for row in own if row["status"] == "completes"]
        cut = [row for row in done if str(row["same_shape"]) == "True" and row["params_ratio"] <= SMALLER]
        exact = [row for row in cut if row["exact"] == "exact"]
        counts = (
            len(own),
            len(done),
            len(cut),
            len(exact),
            sum(row["exact"] == "different" for row in cut),
            sum(row["exact"].startswith("unjudged") for row in cut),
            "a file" if tool == "onnxsim" else sum(str(row["trains"]) == "True" for row in exact),
            sum(row["status"].startswith("timeout") for row in own),
            sum(row["status"] == "crash" for row in own),
            *(f"{np.median([row[key] for row in done] or [np.nan]):.2f}" for key in ("params_ratio", "s")),
        )
        if own:
            lines.append(f"| {tool} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Half of the channels of everything but the last layer, by magnitude."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]: in the extra `zoo`

    last = [
        module for module in model.modules()
        if (isinstance(module, nn.Linear) and module.out_features in CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels in CLASSES)
    ]  # fmt: skip
    importance = tp.importance.MagnitudeImportance()
    tp.pruner.MagnitudePruner(model, inputs, importance=importance, pruning_ratio=0.5, ignored_layers=last).step()
    return model


def kirigami(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Half of the channels by group magnitude, greedily, as its page shows; outputs stay by default."""
    from torch_kirigami import DependencyGraph  # pyright: ignore[reportMissingImports]: in the extra `zoo`
    from torch_kirigami.pruning import (  # pyright: ignore[reportMissingImports]
        ChannelRatio,
        Greedy,
        GroupMagnitude,
        Pruner,
    )  # fmt: skip

    pruner = Pruner(model, graph=DependencyGraph.build(model, args=inputs))
    candidates = pruner.discover_candidates()
    return pruner.prune(candidates, budget=ChannelRatio(0.5), strategy=Greedy(GroupMagnitude(p=2)))[0]


def autoprune(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Half of every unit, by norm."""
    from autoprune import prune

    return prune(model, inputs, keep=0.5)


IN_PYTORCH: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]] = {
    "autoprune": autoprune, "torch_pruning": torch_pruning, "kirigami": kirigami,
}  # fmt: skip
TOOLS = (*IN_PYTORCH, "onnxsim")


def run(tool: str, name: str) -> dict[str, Any]:
    """Return the row of one tool on one architecture; the status is `completes` or `failed: ERROR`."""
    torch.set_num_threads(1)
    model, inputs = zoo_models.build(name)
    dense = with_distinct_weights(model)
    start = time.process_time()
    try:
        return _on_file(dense, inputs) if tool == "onnxsim" else _in_pytorch(tool, dense, inputs)
    except Exception as error:  # a tool may raise anything, which is a result
        row: dict[str, Any] = {"status": f"failed: {type(error).__name__}", "reason": str(error).strip()[:200]}
        row["s"] = round(time.process_time() - start, 1)
        return row


def _in_pytorch(tool: str, dense: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    shapes = [x.shape for x in outputs_of(dense, inputs)]
    start = time.process_time()
    cut = IN_PYTORCH[tool](copy.deepcopy(dense), inputs).eval()
    seconds = time.process_time() - start
    outputs = outputs_of(cut, inputs)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (dense, cut))
    same = [x.shape for x in outputs] == shapes
    return {
        "status": "completes",
        "s": round(seconds, 1),
        "params_ratio": round(after / before, 3),
        "same_shape": same,
        "exact": exactness(dense, cut, inputs) if same else "different",
        "trains": trains(cut, dense, inputs),
    }


def _on_file(dense: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    import onnxsim  # pyright: ignore[reportMissingImports]: in the extra `zoo`

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dense.onnx")
        torch.onnx.export(dense, inputs, path, dynamo=True, external_data=False, verbose=False)
        file = onnx.load(path)
    start = time.process_time()
    before = onnxsim.simplify(file)[0]
    after = onnxsim.apply_structured_pruning(before, sparsity=0.5)
    seconds = time.process_time() - start
    counts = [sum(x.size for x in _weights(m).values()) for m in (before, after)]
    expected, got = (_run_file(m, inputs) for m in (before, after))
    same = [x.shape for x in expected] == [x.shape for x in got]
    return {
        "status": "completes",
        "s": round(seconds, 1),
        "params_ratio": round(counts[1] / counts[0], 3),
        "same_shape": same,
        "exact": _file_exactness(before, after, inputs) if same else "different",
        "trains": "",
    }


def _weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the floating-point weights of a file by name."""
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32 and array.ndim}


def _run_file(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
    return [np.asarray(output) for output in outputs]


def _file_exactness(before: onnx.ModelProto, after: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> str:
    """Return `exact`, `different` or `unjudged: WHY` of a file."""
    reference = copy.deepcopy(before)
    try:
        changed = zeroed(_weights(before), _weights(after))
    except Unjudged as error:
        return f"unjudged: {error}"
    if any(n.op_type.endswith("Normalization") and n.op_type != "BatchNormalization" and set(n.input) & set(changed)
           for n in reference.graph.node):  # fmt: skip
        return "unjudged: statistics over removed channels"
    for weight in reference.graph.initializer:
        if weight.name in changed:
            weight.CopyFrom(numpy_helper.from_array(changed[weight.name], weight.name))
    expected, got = (_run_file(m, inputs) for m in (reference, after))
    return "exact" if largest_difference(expected, got) < TOLERANCE else "different"
