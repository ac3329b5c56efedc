"""Memory of activations: which tensors of the evaluation graph live at the same time, and their exact sizes.

Every operator is charged as written: no fusion, no reuse of an input's memory for the output. A runtime that does
either needs less.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from autoprune.structure.capture import concrete
from autoprune.structure.geometry import Dim
from autoprune.structure.units import Channels, Site

Array = np.ndarray

_CAPTURE_BATCH = 3
# Their schema promises a new tensor, but in evaluation they return their input.
_IDENTITIES = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory of one tensor for one example; the batch dimension is left out of `dims`."""

    element_bytes: int
    dims: tuple[Dim, ...]

    def bytes(self, widths: Array) -> Array:
        """Size `[P]` (int64) for widths `[P, U]`."""
        size = np.full(len(widths), self.element_bytes, dtype=np.int64)
        for dim in self.dims:
            size *= dim(widths)
        return size


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Buffers of a graph, and what lives when: `live` is 0 or 1, int64 `[moments, buffers]`."""

    buffers: tuple[Buffer, ...]
    live: Array

    def peak_bytes(self, widths: Array) -> Array:
        """Largest sum of living buffers over all moments, int64 `[P]` for widths `[P, U]`."""
        sizes = np.stack([buffer.bytes(widths) for buffer in self.buffers], axis=1)
        return (sizes @ self.live.T).max(axis=1)

    @classmethod
    def of(cls, graph: fx.Graph, channels: Mapping[Site, Channels], unit_widths: Array) -> Memory:
        """Liveness of a captured graph: every tensor from where it is made, inputs first, to its last reader.

        Views and in-place operators keep the memory of their input. Weights do not count.
        """
        buffers, spans = [], []
        for owner, span in _spans(graph).items():
            for buffer in _buffers(owner, channels, unit_widths):
                buffers.append(buffer)
                spans.append(span)
        # The sum only grows where something is allocated, so those are all the moments that matter.
        moments = np.unique([first for first, _ in spans])
        live = [[first <= moment <= last for first, last in spans] for moment in moments]
        return cls(buffers=tuple(buffers), live=np.array(live, dtype=np.int64))


def _owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The node that allocated the memory of every activation; weights, and views of weights, have none."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_function") or not _tensors(node):
            continue
        if not _aliases(node):
            owners[node] = node
        elif node.all_input_nodes[0] in owners:
            owners[node] = owners[node.all_input_nodes[0]]
    return owners


def _aliases(node: fx.Node) -> bool:
    """Whether the output of a node is (a part of) its first input: views, in-place operators, parts of a tuple."""
    if node.op == "placeholder" or not node.all_input_nodes:
        return False
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if schema.name.split("::")[-1].rstrip("_") in _IDENTITIES:
        return True
    source, output = _tensors(node.all_input_nodes[0]), _tensors(node)
    shares = any(returned.alias_info is not None for returned in schema.returns)
    return shares and bool(source) and source[0].dtype == output[0].dtype  # `to` copies when the type changes


def _spans(graph: fx.Graph) -> dict[fx.Node, tuple[int, int]]:
    """First and last position in the graph at which the memory that a node allocated is in use."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    spans: dict[fx.Node, tuple[int, int]] = {}
    for node, owner in _owners(graph).items():
        last = max(position[reader] for reader in (node, *node.users))
        spans[owner] = position[owner], max(last, spans.get(owner, (0, 0))[1])
    return spans


def _buffers(node: fx.Node, channels: Mapping[Site, Channels], unit_widths: Array) -> Iterator[Buffer]:
    for tensor in _tensors(node):
        dims = []
        for axis, size in enumerate(tensor.shape):
            found = channels.get(("eval", node.name, axis))
            if isinstance(size, torch.SymInt):
                dims.append(Dim(concrete(size) // _CAPTURE_BATCH))
            else:
                dims.append(Dim.of(found, unit_widths) if found else Dim(size))
        yield Buffer(element_bytes=tensor.dtype.itemsize, dims=tuple(dims))


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]
