"""Cut published architectures to half width, prove the result, export it, and put other tools beside it.

Every model runs in its own process with a limit of CPU seconds. Needs the extra `zoo`. Results go to a CSV file, one
line for each model; a second run goes on with what is missing, and tries again what a smaller limit ended. A summary is
printed at the end. How the tools are used and judged: `zoo_peers.py`, `zoo_judge.py`.

    OMP_NUM_THREADS=1 python scripts/benchmarks/zoo.py --out zoo.csv [--only resnet,vit] [--onnx] [--limit 100]
        [--tools autoprune torch_pruning kirigami onnxsim] [--tools-only]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).parent))

import zoo_models
import zoo_peers

from autoprune.structure import Structure, analyze
from autoprune.structure.cut_proof import culprits, difference
from autoprune.structure.input_sizes import at_second

FIELDS = (
    "model", "status", "units", "heads", "params_ratio", "macs_ratio", "latency_ratio", "difference",
    "native", "native_s", "native_reason", "free_sizes", "second_difference",
    "onnx_difference", "analyze_s", "shrink_s", "onnx_s", "unsupported", "reason",
    *(f"{tool}_{field}" for tool in zoo_peers.TOOLS for field in zoo_peers.FIELDS),
)  # fmt: skip
_PATIENCE = 6
"""Seconds of the clock for one CPU second of the limit: a process that waits for ever ends, too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("zoo.csv"))
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--onnx", action="store_true", help="export, compare with ONNX Runtime, time beside dense")
    parser.add_argument("--tools", nargs="+", default=[], choices=zoo_peers.TOOLS, help="tools to judge on the models")
    parser.add_argument("--tools-only", action="store_true", help="leave out what the other columns need")
    parser.add_argument("--limit", type=int, default=100, help="CPU seconds for one model and tool")
    options = parser.parse_args()
    chosen = [n for n in zoo_models.names() if not options.only or any(p in n for p in options.only.split(","))]
    rows = {row["model"]: row for row in _read(options.out)}
    for name in chosen:
        row = rows.setdefault(name, {"model": name})
        if not options.tools_only and _missing(row, "status", options.limit):
            row |= _in_process("", name, options.limit, onnx=options.onnx)
        for tool in options.tools:
            if _missing(row, f"{tool}_status", options.limit):
                result = _in_process(tool, name, options.limit)
                row |= {f"{tool}_{key}": value for key, value in result.items()}
                print(name, tool, result, flush=True)
        _write(options.out, list(rows.values()))
    print(_summary(list(rows.values())))


def _missing(row: dict[str, Any], status: str, limit: int) -> bool:
    """Whether there is no result yet, or one that a smaller limit ended."""
    value = row.get(status, "timeout 0")
    return value.startswith("timeout") and int(value.split()[1]) < limit


def _read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an earlier run, numbers as numbers."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: _number(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows; a run that is killed leaves the file of before or the new one."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _in_process(tool: str, name: str, limit: int, *, onnx: bool = False) -> dict[str, Any]:
    """Run one model in a process of its own; return its row, or a `status` of "timeout LIMIT" or "crash"."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_peers", "timm", "torchvision", "transformers", "autoprune"])  # imported once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(sender, tool, name, limit, onnx))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(_PATIENCE * limit) else {"status": f"timeout {limit}"}
    except EOFError:
        process.join()
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return {"status": f"timeout {limit}" if late else "crash", "reason": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _worker(sender: Connection, tool: str, name: str, limit: int, onnx: bool) -> None:
    """Send the row of one model; the system ends the process at its limit of CPU seconds."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    sender.send(zoo_peers.run(tool, name) if tool else _run(name, onnx))


def _run(name: str, onnx: bool) -> dict[str, Any]:
    """Analyse a model and cut every unit to half; the status is `exact` when the proof's difference is below 1e-5."""
    from autoprune.errors import AutopruneError
    from autoprune.records import Policy

    model, inputs = zoo_models.build(name)
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        structure = analyze(model.eval(), inputs)
    except AutopruneError as error:
        return {"status": "refused", "reason": str(error)[:300]}
    row["analyze_s"] = round(time.perf_counter() - start, 2)
    row |= {"units": len(structure.units), "heads": sum(u.kind == "head" for u in structure.units)}
    row["free_sizes"] = ";".join(f"{structure.sizes.names[n]}[{dim}]" for n, dim, _ in structure.sizes.free())
    row["unsupported"] = ";".join(sorted(structure.unsupported))
    half = Policy(space_id="", widths={u.name: max(1, u.width // 2) for u in structure.units})
    rng = np.random.default_rng(0)
    keep = {u.name: np.sort(rng.choice(u.width, half.widths[u.name], replace=False)) for u in structure.units}
    widths = structure.widths([structure.dense_policy(), half])
    for cost, values in (("params", structure.params(widths)), ("macs", structure.macs(widths))):
        row[f"{cost}_ratio"] = round(float(values[1] / max(1, values[0])), 3)
    start = time.perf_counter()
    masks, removed = structure.masks(half, keep), structure.removed(half)
    shrunk = structure.cut(masks, removed)
    row["difference"] = difference(structure, masks, removed, shrunk)
    second = at_second(structure.sizes, inputs)
    if second is not None:
        row["second_difference"] = difference(structure, masks, removed, shrunk, second)
    row["shrink_s"] = round(time.perf_counter() - start, 2)
    row["status"] = "exact" if row["difference"] < 1e-5 else "wrong"
    if row["status"] == "wrong":
        row["reason"] = ", ".join(culprits(structure, half, keep)[:5])
    if row["status"] == "exact":
        row |= _native(structure, half, keep)
    if row["status"] == "exact" and onnx:
        row |= _in_onnx(structure, shrunk.eval(), inputs)
    return row


def _native(structure: Structure, half: Any, keep: Any) -> dict[str, Any]:
    """Return whether the architecture's own classes are proven at half width, in outputs and gradients, and why not.

    Seconds are those of the processor, so that other jobs do not count.
    """
    from autoprune.errors import AutopruneError
    from autoprune.structure import in_form

    start = time.process_time()
    try:
        cut: Any = in_form(structure, structure.shrink(half, keep, prove=False)).pruned_to
        row = {"native": cut.form, "native_reason": cut.reason[:300]}
    except AutopruneError as error:
        row = {"native": "refused", "native_reason": str(error)[:300]}
    return row | {"native_s": round(time.process_time() - start, 2)}


def _in_onnx(structure: Structure, small: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Compare the small model's ONNX file with PyTorch, and its latency (1 thread, batch 1) with the dense model's."""
    from autoprune.device.connect import make_target
    from autoprune.device.runner import time_models
    from autoprune.errors import AutopruneError
    from autoprune.onnxgraph.export import export_onnx
    from autoprune.pipeline.measurer import CANDIDATE_PROTOCOL
    from autoprune.profiling.policy_timer import random_feeds

    start = time.perf_counter()
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        dense_path, path = Path(folder, "dense.onnx"), Path(folder, "small.onnx")
        try:
            export_onnx(small, inputs, path)
            row["onnx_difference"] = _onnx_difference(small, path, inputs)
            row["onnx_s"] = round(time.perf_counter() - start, 2)
            export_onnx(structure.model, inputs, dense_path)
            feeds, target = random_feeds(structure, batch=1), make_target("ort-cpu")
            timings = time_models([path], target, feeds, reference=dense_path, protocol=CANDIDATE_PROTOCOL)
            row["latency_ratio"] = round(timings.ratios[0], 3)
        except (AutopruneError, RuntimeError) as error:
            row |= {"onnx_difference": row.get("onnx_difference", "failed"), "reason": str(error)[:300]}
    return row


def _onnx_difference(model: nn.Module, path: Path, inputs: tuple[torch.Tensor, ...]) -> float:
    """Return the largest relative difference of any output."""
    session = onnxruntime.InferenceSession(path)
    outputs = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
    with torch.no_grad():
        expected = [t for t in pytree.tree_leaves(model(*inputs)) if isinstance(t, torch.Tensor)]
    return max(
        float(np.abs(a.numpy() - b).max() / max(1e-12, float(a.abs().max())))
        for a, b in zip(expected, outputs, strict=True)
    )


def _summary(rows: list[dict[str, Any]]) -> str:
    exact = [row for row in rows if row.get("status") == "exact"]
    ratios = [row["params_ratio"] for row in exact]
    onnx = [row for row in exact if isinstance(row.get("onnx_difference"), float) and row["onnx_difference"] < 1e-3]
    latencies = [row["latency_ratio"] for row in exact if "latency_ratio" in row]
    seconds = [row["analyze_s"] + row["shrink_s"] for row in exact]
    free = [row for row in exact if row.get("free_sizes") and row.get("second_difference", 1.0) < 1e-5]
    lines = [
        f"free sizes, exact at a second size: {len(free)} of {len(rows)}",
        f"exact: {len(exact)} of {len(rows)}; in ONNX Runtime too: {len(onnx)}",
        f"own classes proven: {sum(row.get('native') == 'native' for row in exact)}; refused: "
        f"{sum(row.get('native') == 'refused' for row in exact)}; seconds: median "
        f"{np.median([row['native_s'] for row in exact if 'native_s' in row] or [0]):.1f}, worst "
        f"{max([row['native_s'] for row in exact if 'native_s' in row], default=0):.1f}",
        f"params left at half width: median {np.median(ratios or [0]):.2f}, worst {max(ratios, default=0):.2f}",
        f"latency left: median {np.median(latencies or [0]):.2f}, worst {max(latencies, default=0):.2f}",
        f"seconds (analyse, cut, prove): median {np.median(seconds or [0]):.1f}, worst {max(seconds, default=0):.1f}",
    ]
    if any(f"{tool}_status" in row for row in rows for tool in zoo_peers.TOOLS):
        lines.append(zoo_peers.table(rows))
    return "\n".join(
        lines
        + [
            f"not exact: {r['model']} {r.get('status')} {r.get('reason', '')}"
            for r in rows
            if "status" in r and r not in exact
        ]
    )


if __name__ == "__main__":
    main()
