"""Per-node times from ONNX Runtime's own profiler, attributed to the operators of the captured graph.

They are whole microseconds and carry the profiler's overhead (measured: tables of them alone err by 5 %), so they
only serve as the prior of a fit to end-to-end times.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from autoprune.latency.geometries import PricedOperator
from autoprune.latency.target import Target
from autoprune.latency.timing import Feeds, named_feeds, open_session, session_options

_RUNS = 12
_WARMUP = 3
_SUFFIX = "_kernel_time"
_LAYOUT = "_nchwc"
_UNWEIGHTED: Mapping[str, frozenset[str]] = {
    "MaxPool": frozenset({"max_pool1d", "max_pool2d"}),
    "AveragePool": frozenset({"avg_pool1d", "avg_pool2d"}),
    "GlobalAveragePool": frozenset({"adaptive_avg_pool2d", "mean"}),
    "ReduceMean": frozenset({"adaptive_avg_pool2d", "mean"}),
    "Concat": frozenset({"cat"}),
    "Pad": frozenset({"pad", "constant_pad_nd"}),
    "BatchNormalization": frozenset({"batch_norm"}),
    "Mul": frozenset({"mul"}),
}
"""ONNX operators without weights, and what the captured graph calls them; matched in graph order."""


class NodeOwners:
    """Which priced operator every profiler event belongs to, for all models resized from one dense export."""

    def __init__(self, dense: onnx.ModelProto, priced: Sequence[PricedOperator]) -> None:
        self._nodes = {node.name: node for node in dense.graph.node}
        self._producers = {output: node for node in dense.graph.node for output in node.output}
        self._owners = self._weighted(priced) | self._unweighted(priced)

    def of_event(self, name: str) -> int | None:
        """Position of the priced operator that a kernel event belongs to; `None` when nothing in the graph tells."""
        name = name.removesuffix(_SUFFIX).removeprefix("fused ")
        node = self._nodes.get(name) or self._producers.get(name.removesuffix(_LAYOUT))
        while node is not None and node.name not in self._owners:
            node = self._producers.get(node.input[0]) if node.input else None
        return None if node is None else self._owners[node.name]

    def _weighted(self, priced: Sequence[PricedOperator]) -> dict[str, int]:
        by_parameter = {name: i for i, operator in enumerate(priced) for name in operator.parameters}
        found = {}
        for node in self._nodes.values():
            owners = [by_parameter[name] for name in node.input if name in by_parameter]
            if owners:
                found[node.name] = owners[0]
        return found

    def _unweighted(self, priced: Sequence[PricedOperator]) -> dict[str, int]:
        """Match the k-th pooling (...) of the ONNX graph to the k-th of the captured graph."""
        found: dict[str, int] = {}
        for kind, ops in _UNWEIGHTED.items():
            nodes = [node.name for node in self._nodes.values() if node.op_type == kind]
            wanted = [i for i, operator in enumerate(priced) if operator.op in ops]
            if len(nodes) == len(wanted):
                found |= dict(zip(nodes, wanted, strict=True))
        return found


def node_times_ms(model: bytes, target: Target, feeds: Feeds, owners: NodeOwners) -> dict[int, float]:
    """Median milliseconds of a run that each priced operator (by position) took in one model."""
    events = _kernel_events(model, target, feeds)
    per_run: list[dict[int, float]] = []
    for run in events:
        times: dict[int, float] = defaultdict(float)
        for position, (name, duration_ms) in enumerate(run):
            owner = owners.of_event(_following_kernel(run, position) if name.startswith("Reorder") else name)
            if owner is not None:
                times[owner] += duration_ms
        per_run.append(times)
    keys = {key for times in per_run for key in times}
    return {key: float(np.median([times.get(key, 0.0) for times in per_run])) for key in keys}


def _following_kernel(run: Sequence[tuple[str, float]], position: int) -> str:
    """A change of memory layout is charged to the kernel that asked for it: the next one."""
    later: Iterable[str] = (name for name, _ in run[position + 1 :] if not name.startswith("Reorder"))
    return next(iter(later), run[-1][0])


def _kernel_events(model: bytes, target: Target, feeds: Feeds) -> list[list[tuple[str, float]]]:
    """Names and milliseconds of the kernels of every run after the warm-up, in the order of execution."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(target)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, target, options)
        wanted = named_feeds(session, feeds)
        for _ in range(_WARMUP + _RUNS):
            session.run(None, wanted)
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
    runs: list[list[tuple[str, float]]] = []
    current: list[tuple[str, float]] = []
    for event in json.loads(text):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            current.append((event["name"], event["dur"] / 1e3))
        elif event.get("name") == "model_run":
            runs.append(current)
            current = []
    return runs[_WARMUP:]
