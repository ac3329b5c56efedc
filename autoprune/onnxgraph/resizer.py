"""ONNX files of any policy, out of the dense export and without the exporter."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from autoprune.errors import LatencyError
from autoprune.onnxgraph.branches import remove_branches
from autoprune.onnxgraph.export import is_transposed, plain_name, serialized
from autoprune.onnxgraph.origins import Origin
from autoprune.onnxgraph.recurrent import GATES, set_hidden_sizes
from autoprune.onnxgraph.sizes import LearnedSizes, is_lookup
from autoprune.records import Policy
from autoprune.structure import Structure, module_tensors

_SMALLEST = 1e-30
"""Weights below are set to 0: arithmetic on denormals is up to 100 times slower and would be taken for a latency."""


class Resizer:
    """Builds the ONNX file of any policy by slicing the weights of the dense export; milliseconds per policy.

    The kept channels are the first of every unit, so that `structure.shrink(policy)` is the same function.
    `sizes` are numbers and tables in the graph that follow widths, `origins` those of weights whose elements are of a
    parameter, without its name.
    Raises `LatencyError` when the dense export holds a weight that cannot be traced back to the state dict.
    """

    def __init__(
        self,
        dense: onnx.ModelProto,
        structure: Structure,
        sizes: LearnedSizes | None = None,
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        self._structure = structure
        self._origins = origins or {}
        self._weights = {i.name: _without_denormals(numpy_helper.to_array(i)) for i in dense.graph.initializer}
        self._graph = onnx.ModelProto()
        self._graph.CopyFrom(dense)
        self._sizes = sizes
        self._tables = sizes.tables.keys() - self._origins.keys() if sizes else frozenset[str]()
        self._places = {place: f"size_{place[0]}_{place[1]}" for place in (sizes.alone if sizes else ())}
        for (number, place), name in self._places.items():
            self._graph.graph.node[number].input[place] = name  # a constant may serve several nodes
        _free_reshapes(self._graph.graph, self._weights)
        self._lookups = _with_own_lookups(self._graph.graph, self._weights, structure)
        del self._graph.graph.initializer[:]
        del self._graph.graph.value_info[:]  # shapes of the dense model
        self._owners = _bias_owners(self._graph.graph, self._weights)
        self._parameters = structure.tensors.keys()
        self._groups = {name: o.groups for o in structure.operators if o.op.startswith("conv") for name in o.parameters}

    def resize(self, policy: Policy) -> bytes:
        """Serialised ONNX model of `policy`."""
        kept = self._structure.kept(policy)
        widths = self._structure.widths([policy])
        proto = onnx.ModelProto()
        proto.CopyFrom(self._graph)
        for node in proto.graph.node:
            parameters = map(plain_name, node.input[1:]) if node.op_type.startswith("Conv") else ()
            for name in self._groups.keys() & set(parameters):  # of a computed weight it is the bias
                _set_groups(node, int(self._groups[name](widths)[0]))
        dead = {name for name in self._weights if self._is_dead(name, kept)}
        sliced = {name: self._sliced(name, w, kept) for name, w in self._weights.items() if name not in dead}
        for name in self._tables - dead - self._owners.keys():
            assert self._sizes is not None
            sliced[name] = np.ascontiguousarray(self._sizes.table(name, self._weights[name], widths[0]))
        proto.graph.initializer.extend(numpy_helper.from_array(weight, name) for name, weight in sliced.items())
        for place, name in self._places.items():
            assert self._sizes is not None
            proto.graph.initializer.append(numpy_helper.from_array(self._sizes.at(place, widths[0]), name))
        lookups = self._structure.lookups(policy) if self._lookups else {}
        for name in self._lookups:
            proto.graph.initializer.append(numpy_helper.from_array(lookups[name], name))
        set_hidden_sizes(proto.graph, sliced)
        if dead:
            remove_branches(proto.graph, dead)
        return serialized(proto)

    def _is_dead(self, name: str, kept: Mapping[str, tuple[np.ndarray | None, ...]]) -> bool:
        """Whether a weight is of a removed branch."""
        origin = self._origins.get(name)
        owner = origin.parameter if origin else self._owners.get(name, (plain_name(name), 0))[0]
        return owner in self._parameters and owner not in kept

    def _sliced(self, name: str, weight: np.ndarray, kept: Mapping[str, tuple[np.ndarray | None, ...]]) -> np.ndarray:
        if name in self._origins:
            origin = self._origins[name]
            shape = tuple(self._structure.tensors[origin.parameter].shape)
            return np.ascontiguousarray(origin.keep(weight, kept[origin.parameter], shape))
        if name in self._owners:
            owner, dim = self._owners[name]
            indices: tuple[np.ndarray | None, ...] = kept.get(owner, (None,) * (dim + 1))[dim : dim + 1]
        else:
            indices = kept.get(plain_name(name), ())
            indices = indices[::-1] if is_transposed(name) else indices
            indices = _stacked(indices, weight) if name.endswith(GATES) else indices
        if len(indices) not in (0, weight.ndim):
            raise LatencyError(
                f"the weight {name!r} has {weight.ndim} dimensions in ONNX but {len(indices)} in the model"
            )
        for dim, index in enumerate(indices):
            if index is not None:
                weight = weight.take(index, axis=dim)
        return np.ascontiguousarray(weight) if weight.ndim else weight


def unnamed_weights(
    dense: onnx.ModelProto, structure: Structure
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """Weights of an export under no name of the state dict, and the tensors of the state dict that it does not hold."""
    stored = {i.name: numpy_helper.to_array(i) for i in dense.graph.initializer}
    owners, held = _bias_owners(dense.graph, stored), {plain_name(name) for name in stored}
    parameters = module_tensors(structure.model)
    weights = {
        name: weight
        for name, weight in stored.items()
        if weight.dtype.kind == "f" and weight.size > 1 and name not in owners and plain_name(name) not in parameters
    }
    known = {id(tensor) for name, tensor in parameters.items() if name in held}  # tied ones are held by one name
    missing = {n: t for n, t in parameters.items() if id(t) not in known and t.is_floating_point() and t.numel() > 1}
    return weights, missing


def _stacked(indices: tuple[np.ndarray | None, ...], weight: np.ndarray) -> tuple[np.ndarray | None, ...]:
    """Indices of a recurrent weight with a dimension of directions before its own; biases are two in one dimension.

    Every gate keeps the same hidden units, so that the order of the gates does not matter.
    """
    if weight.ndim == 3 or not indices or indices[0] is None:
        return (None, *indices) if indices else ()
    return None, np.concatenate([indices[0], indices[0] + weight.shape[1] // 2])


def _without_denormals(weight: np.ndarray) -> np.ndarray:
    return np.where(np.abs(weight) < _SMALLEST, np.zeros_like(weight), weight) if weight.dtype.kind == "f" else weight


def _free_reshapes(graph: onnx.GraphProto, weights: dict[str, np.ndarray]) -> None:
    """Make reshapes fit every policy: leading dimensions that stay are copied, and `[batch, features]` is inferred."""
    shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    for node in list(graph.node):
        shape = weights.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None:
            continue
        before, after = (shapes.get(plain_name(name), []) for name in (node.input[0], node.output[0]))
        merges = before and after and before[0] != after[0]  # its first dimension is not that of its input
        if shape.shape == (2,) and (shape[0] <= 0 < shape[1] or tuple(shape) == (0, -1)) and not merges:
            sizes = [0, -1]
        else:
            same = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
            if len(same) < 2:
                continue
            sizes = [0] * len(same) + shape.tolist()[len(same) :]
        # A constant may serve several reshapes of different inputs.
        node.input[1] = f"{node.output[0]}_shape"
        weights[node.input[1]] = np.array(sizes, dtype=np.int64)
        del node.attribute[:]  # `allowzero` would read the 0 as an empty dimension, not as a copy


def _with_own_lookups(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray], structure: Structure) -> set[str]:
    """Give every lookup its name in the structure: the exporter stores equal ones once. Returns the names.

    They come in the order of the graph.
    """
    dense = structure.lookups(structure.dense_policy())
    names, renamed = list(dense), set[str]()
    for node in graph.node:
        index = weights.get(node.input[1]) if is_lookup(node, 1) else None
        name = next((n for n in names if index is not None and np.array_equal(dense[n], index)), None)
        if name is not None:
            del names[: names.index(name) + 1]
            node.input[1] = name
            renamed.add(name)
    return renamed


def _bias_owners(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int]]:
    """Biases of convolutions and products, with the weight and the dimension whose indices they belong to.

    One of a weight that is computed has those of its own name.
    """
    stored = {plain_name(name): name for name in weights}
    nodes = [n for n in graph.node if n.op_type in {"Conv", "Gemm", "ConvTranspose"} and len(n.input) > 2]
    owners = {stored.get(plain_name(n.input[2])): (plain_name(n.input[1]), _rows(n)) for n in nodes}
    return {bias: owner for bias, owner in owners.items() if bias is not None and owner[0] in stored}


def _rows(node: onnx.NodeProto) -> int:
    """Which dimension of a parameter has an index for each output (none has in grouped transposed convolutions)."""
    if node.op_type != "Gemm":
        return 1 if node.op_type == "ConvTranspose" else 0
    swapped = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if swapped or is_transposed(node.input[1]) else 1


def _set_groups(node: onnx.NodeProto, groups: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = groups
