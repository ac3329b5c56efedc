"""Cut a captured model to kept channels: slice its parameters, rewrite the sizes in its graphs, leave branches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from autoprune.structure.aliases import is_in_place, owners
from autoprune.structure.branches import may_be_bypassed
from autoprune.structure.capture import Capture, shape_of
from autoprune.structure.recurrent_layers import CREATORS
from autoprune.structure.units import Channels, Site

aten = torch.ops.aten
Array = np.ndarray
Living = Callable[[str, int], Array | None]
"""Mask of living indices of a dimension of a node (`-1`: its groups), or `None` when nothing there can be removed."""


def living_masks(channels: Mapping[Site, Channels], keep: Mapping[int, Array]) -> dict[Site, Array]:
    """Living mask of every labelled dimension; `keep[u]` is the boolean mask over the channels of unit `u`."""
    return {site: found.living(keep) for site, found in channels.items() if found.of_unit}


def slice_tensors(
    tensors: Mapping[str, torch.Tensor],
    masks: Mapping[Site, Array],
    canonical: Mapping[str, str],
    dead: AbstractSet[str] = frozenset(),
) -> dict[str, torch.Tensor]:
    """Kept parts of all parameters and buffers but the `dead` ones (canonical names).

    A tensor with several names is cut once and shared again.
    """
    cut: dict[str, torch.Tensor] = {}
    living = [name for name in tensors if canonical[name] not in dead]
    for name in living:
        tensor, first = tensors[name], canonical[name]
        if first not in cut:
            new = tensor.detach().clone()
            for dim in range(tensor.dim()):
                mask = masks.get(("parameter", first, dim))
                if mask is not None:
                    new = new.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(new.device))
            new = new.contiguous()
            cut[first] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        cut[name] = cut[first]
    return {name: cut[name] for name in living}


def rewrite(capture: Capture, masks: Mapping[Site, Array], idle: AbstractSet[str] = frozenset()) -> Capture:
    """Copy a captured graph with groups, view sizes, slice bounds and split sizes for the living indices.

    Nodes named in `idle` are left out; an addition or activation among them passes its remaining operand on.
    """
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    copies = []
    for node in capture.graph.nodes:
        if node.name in idle:
            remaining = [n for n in node.all_input_nodes if n in new]
            if remaining and may_be_bypassed(node):
                new[node] = new[remaining[0]]
                if _is_written_later(node, remaining[0], idle):
                    new[node] = graph.create_node("call_function", aten.clone.default, (new[node],), name=node.name)
                    new[node].meta = dict(node.meta)
                    copies.append(new[node])
            continue
        new[node] = graph.node_copy(node, lambda n: new[n])
        rule = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            rule(node, new[node], lambda name, dim: masks.get((capture.mode, name, dim)))
    for copy in reversed(copies):
        if not copy.users:
            graph.erase_node(copy)
    return Capture(graph=graph, out_spec=capture.out_spec, training=capture.training)


def _is_written_later(bypassed: fx.Node, operand: fx.Node, idle: AbstractSet[str]) -> bool:
    """Whether a later node that is not `idle` writes into the output of a bypassed node or into its operand."""
    memory = owners(bypassed.graph)
    shared = {memory.get(bypassed), memory.get(operand)}
    nodes = [node for node in bypassed.graph.nodes if node.name not in idle or node is bypassed]
    later = nodes[nodes.index(bypassed) + 1 :]
    return any(is_in_place(node) and memory.get(node, node) in shared for node in later)


def _convolution(old: fx.Node, new: fx.Node, living: Living) -> None:
    mask = living(old.name, -1)
    if mask is not None:
        new.update_arg(6, int(mask.sum()))


def _sizes(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`view(x, sizes)`: explicit sizes of labelled dimensions follow their living counts; `-1` adjusts itself."""
    sizes = list(new.args[1])  # type: ignore[arg-type]
    for dim, size in enumerate(sizes):
        mask = living(old.name, dim)
        if mask is not None and isinstance(size, int) and size != -1:
            sizes[dim] = int(mask.sum())
    new.update_arg(1, sizes)


def _created(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`zeros(sizes)` and its kin: sizes of labelled dimensions are their living counts."""
    position = CREATORS[old.target]
    masks = [living(old.name, dim) for dim in range(len(shape_of(old)))]
    sizes: Any = new.args[position]
    new.update_arg(position, [n if m is None else int(m.sum()) for m, n in zip(masks, sizes, strict=True)])


def _slice(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`slice(x, dim, start, end, step)`: bounds move to the living counts before them."""
    source = old.args[0]
    dim = int(old.args[1]) if len(old.args) > 1 else 0  # type: ignore[arg-type]
    size = shape_of(source)[dim]  # type: ignore[arg-type]
    mask = living(source.name, dim % len(shape_of(source)))  # type: ignore[union-attr,arg-type]
    if mask is None:
        return
    start, end, _ = slice(*[a if isinstance(a, int) else None for a in (*old.args[2:4], None, None)][:2]).indices(size)
    new.args = (new.args[0], dim, int(mask[:start].sum()), int(mask[:end].sum()), *new.args[4:])


def _split(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`split` and `chunk` with a labelled dimension become `split_with_sizes` of the living counts."""
    source = old.args[0]
    rank = len(shape_of(source))  # type: ignore[arg-type]
    dim = int(old.args[2] if len(old.args) > 2 else old.kwargs.get("dim", 0)) % rank  # type: ignore[arg-type]
    mask = living(source.name, dim)  # type: ignore[union-attr]
    if mask is None:
        return
    sizes = [int(v.shape[dim]) for v in old.meta["val"]]
    ends = np.cumsum(sizes)
    counts = [int(mask[end - size : end].sum()) for size, end in zip(sizes, ends, strict=True)]
    new.target = aten.split_with_sizes.default
    new.args, new.kwargs = (new.args[0], counts, dim), {}


_REWRITES: dict[Any, Callable[[fx.Node, fx.Node, Living], None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.expand.default: _sizes,
    aten.view.default: _sizes,
    aten.reshape.default: _sizes,
    aten._unsafe_view.default: _sizes,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
} | dict.fromkeys(CREATORS, _created)
