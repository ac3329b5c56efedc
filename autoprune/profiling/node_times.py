"""Per-node times from ONNX Runtime's own profiler, attributed to the operators of the captured graph.

They are whole microseconds and include the profiler's overhead (measured: tables made from these times alone err by
5 %), so they only serve as the prior of a fit to end-to-end times.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from autoprune.device.timing import Kernels
from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.prior import work_ms
from autoprune.onnxgraph.export import plain_name
from autoprune.structure.gates import NEVER

_LAYOUT = "_nchwc"
_TOKEN = re.compile(r"_token_\d+$")  # the runtime appends it when it fuses a quantized operator
_UNWEIGHTED: Mapping[str, frozenset[str]] = {
    "MaxPool": frozenset({"max_pool1d", "max_pool2d"}),
    "AveragePool": frozenset({"avg_pool1d", "avg_pool2d"}),
    "GlobalAveragePool": frozenset({"adaptive_avg_pool2d", "mean"}),
    "ReduceMean": frozenset({"adaptive_avg_pool2d", "mean"}),
    "Concat": frozenset({"cat"}),
    "Pad": frozenset({"pad", "constant_pad_nd"}),
    "BatchNormalization": frozenset({"batch_norm"}),
    "LayerNormalization": frozenset({"layer_norm"}),
    "Softmax": frozenset({"softmax", "scaled_dot_product_attention"}),
    "MatMul": frozenset({"matmul", "bmm"}),
    "Mul": frozenset({"mul"}),
}
"""ONNX operators without weights, and their names in the captured graph; matched in graph order."""


class NodeOwners:
    """Which priced operator every kernel belongs to, for all models resized from one dense export."""

    def __init__(self, dense: onnx.ModelProto, priced: Sequence[PricedOperator]) -> None:
        self._nodes = {node.name: node for node in dense.graph.node}
        self._producers = {output: node for node in dense.graph.node for output in node.output}
        self._owners = self._weighted(priced) | self._unweighted(priced)

    def of_kernel(self, name: str) -> int | None:
        """Position of the priced operator that a kernel belongs to; `None` when nothing in the graph tells."""
        name = _TOKEN.sub("", name.removeprefix("fused ")).partition("/")[0]  # NODE/NameOfTheFusion
        node = self._nodes.get(name) or self._producers.get(name.removesuffix(_LAYOUT))
        while node is not None and node.name not in self._owners:
            node = self._producers.get(node.input[0]) if node.input else None
        return None if node is None else self._owners[node.name]

    def _weighted(self, priced: Sequence[PricedOperator]) -> dict[str, int]:
        by_parameter = {name: i for i, operator in _of_dense(priced) for name in operator.parameters}
        owner_of = {}
        for node in self._nodes.values():
            owners = [by_parameter[plain] for plain in map(plain_name, node.input) if plain in by_parameter]
            if owners:
                owner_of[node.name] = owners[0]
        return owner_of

    def _unweighted(self, priced: Sequence[PricedOperator]) -> dict[str, int]:
        """Match the k-th pooling (...) of the ONNX graph to the k-th of the captured graph."""
        owner_of: dict[str, int] = {}
        for kind, ops in _UNWEIGHTED.items():
            nodes = [node.name for node in self._nodes.values() if node.op_type == kind and node.name not in owner_of]
            wanted = [i for i, operator in _of_dense(priced) if operator.op in ops and not operator.parameters]
            if len(nodes) == len(wanted):
                owner_of |= dict(zip(nodes, wanted, strict=True))
        return owner_of


def _of_dense(priced: Sequence[PricedOperator]) -> list[tuple[int, PricedOperator]]:
    """The operators of the dense model, with their positions."""
    return [(i, operator) for i, operator in enumerate(priced) if operator.unless == NEVER]


def node_times_ms(kernels: Kernels, owners: NodeOwners) -> dict[int, float]:
    """Median milliseconds of a run that each priced operator (by position) took in one model."""
    ms_of_owner: dict[int, np.ndarray] = {}
    for position, name in enumerate(kernels.names):
        name = _following_kernel(kernels.names, position) if name.startswith("Reorder") else name
        owner = owners.of_kernel(name)
        if owner is not None:
            ms_of_owner[owner] = ms_of_owner.get(owner, 0.0) + kernels.ms[:, position]
    return {owner: float(np.median(ms)) for owner, ms in ms_of_owner.items() if len(ms)}


def profiled_ms(
    geometries: Sequence[Geometry],
    numbers: np.ndarray,
    kernels: Iterable[Kernels],
    dense: onnx.ModelProto | None,
    priced: PricedOperators,
) -> dict[int, float]:
    """Return the median milliseconds of every geometry that some profiled model held, by its position in the table.

    Where layers are treated, the time of an operator and of those that rode on it is divided by their work, and so is
    that of the two factors of a layer.

    Args:
        geometries: Those of the table.
        numbers: Positions of the geometries of the profiled policies, int64 `[P, varying operators]`.
        kernels: Times of the kernels of each profiled policy; empty for runtimes without a profiler.
        dense: The dense export; `None` for runtimes without a profiler.
        priced: The charges of the structure.
    """
    if dense is None:
        return {}
    owners = NodeOwners(dense, priced.all)
    treated = any(geometry.treatment for geometry in geometries) or any(op.factor for op in priced.varying)
    columns: dict[str, list[int]] = defaultdict(list)
    for column, operator in enumerate(priced.varying):
        columns[operator.carrier].append(column)
    times_ms: dict[int, list[float]] = defaultdict(list)
    for row, times in zip(numbers, kernels, strict=False):
        for operator, ms in node_times_ms(times, owners).items():
            # Where a branch is removed, an operator that rode on it is charged elsewhere.
            held = [int(row[column]) for column in columns[priced.all[operator].carrier] if row[column] >= 0]
            if len(held) == 1:
                times_ms[held[0]].append(ms)
            elif treated and held:
                work = [work_ms(geometries[number]) for number in held]
                for number, share in zip(held, work, strict=True):
                    times_ms[number].append(ms * share / sum(work))
    return {number: float(np.median(times)) for number, times in times_ms.items()}


def _following_kernel(names: Sequence[str], position: int) -> str:
    """A change of memory layout is charged to the kernel that asked for it: the next one."""
    later: Iterable[str] = (name for name in names[position + 1 :] if not name.startswith("Reorder"))
    return next(iter(later), names[-1])
