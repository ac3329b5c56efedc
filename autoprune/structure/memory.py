"""Memory of activations: which tensors of the evaluation graph live at the same time, and their exact sizes.

Every operator is charged as written: no fusion, no reuse of an input's memory for the output. A runtime with fusion or
reuse needs less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from autoprune.structure.aliases import owners, tensors_of
from autoprune.structure.geometry import Dim
from autoprune.structure.nodes import concrete
from autoprune.structure.units import Channels, Site

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory of one tensor for one example; the batch dimension is left out of `dims`."""

    element_bytes: int
    dims: tuple[Dim, ...]

    def bytes(self, widths: Array) -> Array:
        """Return the size in bytes, int64 `[P]` for widths `[P, U]`."""
        size = np.full(len(widths), self.element_bytes, dtype=np.int64)
        for dim in self.dims:
            size *= dim(widths)
        return size


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Buffers of a graph, and whether each lives at each moment: `live` is 0 or 1, int64 `[moments, buffers]`."""

    buffers: tuple[Buffer, ...]
    live: Array

    def peak_bytes(self, widths: Array) -> Array:
        """Return the largest sum of living buffers over all moments in bytes, int64 `[P]` for widths `[P, U]`."""
        sizes = np.stack([buffer.bytes(widths) for buffer in self.buffers], axis=1)
        return (sizes @ self.live.T).max(axis=1)

    @classmethod
    def of(cls, graph: fx.Graph, channels: Mapping[Site, Channels], unit_widths: Array) -> Memory:
        """Follow every tensor of a captured graph from where it is made, inputs first, to its last reader.

        Views and in-place operators keep the memory of their input. Weights do not count. `unit_widths` `[U]` are the
        full widths.
        """
        buffers, spans = [], []
        for owner, span in _spans(graph).items():
            for buffer in _buffers(owner, channels, unit_widths):
                buffers.append(buffer)
                spans.append(span)
        # The sum only grows at an allocation, so no other moment can be the peak.
        moments = np.unique([first for first, _ in spans])
        live = [[first <= moment <= last for first, last in spans] for moment in moments]
        return cls(buffers=tuple(buffers), live=np.array(live, dtype=np.int64))


def _spans(graph: fx.Graph) -> dict[fx.Node, tuple[int, int]]:
    """Return the first and last position in the graph at which the memory that a node allocated is in use."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    spans: dict[fx.Node, tuple[int, int]] = {}
    for node, owner in owners(graph).items():
        last = max(position[reader] for reader in (node, *node.users))
        spans[owner] = position[owner], max(last, spans.get(owner, (0, 0))[1])
    return spans


def _buffers(node: fx.Node, channels: Mapping[Site, Channels], unit_widths: Array) -> Iterator[Buffer]:
    for tensor in tensors_of(node):
        dims = []
        for axis, size in enumerate(tensor.shape):
            of_axis = channels.get(("eval", node.name, axis))
            # A later output may be narrower than the first: the hidden state of a single direction.
            dim = Dim.of(of_axis.first(concrete(size)), unit_widths) if of_axis else Dim(concrete(size))
            dims.append(dim.per_example() if isinstance(size, torch.SymInt) else dim)
        yield Buffer(element_bytes=tensor.dtype.itemsize, dims=tuple(dims))
