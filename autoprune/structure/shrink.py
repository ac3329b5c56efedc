"""Cut a captured model to kept channels: slice its parameters, rewrite the sizes in its graphs, leave branches out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn

from autoprune.errors import PolicyError
from autoprune.records import Unit
from autoprune.structure.aliases import is_in_place, owners
from autoprune.structure.branches import may_be_bypassed
from autoprune.structure.capture import Capture
from autoprune.structure.rewrites import REWRITES
from autoprune.structure.units import Channels, Site

aten = torch.ops.aten
Array = np.ndarray


def channel_masks(units: Sequence[Unit], widths: Array, keep: Mapping[str, Array] | None = None) -> dict[int, Array]:
    """Return which channels of every unit live, bool `[width]` by the unit's index.

    Args:
        units: of the dense model.
        widths: to be kept, `[U]`.
        keep: distinct channel indices by unit (default: the first ones).

    Raises:
        PolicyError: the indices do not fit.
    """
    kept = {}
    for number, unit in enumerate(units):
        chosen = None if keep is None else keep.get(unit.name)
        indices = np.arange(widths[number]) if chosen is None else np.asarray(chosen)
        indices = indices.astype(np.int64) if not len(indices) else indices  # an empty list becomes floats
        if len(np.unique(indices)) != widths[number] or not np.isin(indices, np.arange(unit.width)).all():
            raise PolicyError(
                f"{unit.name!r} keeps {widths[number]} distinct channels below {unit.width}; got {indices}"
            )
        mask = np.zeros(unit.width, dtype=bool)
        mask[indices] = True
        kept[number] = mask
    return kept


def living_masks(channels: Mapping[Site, Channels], keep: Mapping[int, Array]) -> dict[Site, Array]:
    """Return which indices of every labelled dimension live; `keep[u]` `[width]` is the mask of unit `u`'s channels."""
    return {site: of_site.living(keep) for site, of_site in channels.items() if of_site.of_unit}


def slice_tensors(
    tensors: Mapping[str, torch.Tensor],
    masks: Mapping[Site, Array],
    canonical: Mapping[str, str],
    dead: AbstractSet[str] = frozenset(),
    lookups: Mapping[str, Site] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the living parts of all parameters, buffers and constants.

    Args:
        tensors: by name; a tensor with several names is cut once and shared again.
        masks: which indices live, bool `[size]` for every labelled dimension.
        canonical: first name of every tensor.
        dead: canonical names of tensors to leave out.
        lookups: constants that hold positions in a dimension, by name with that dimension.
    """
    cut: dict[str, torch.Tensor] = {}
    living = [name for name in tensors if canonical[name] not in dead]
    for name in living:
        tensor, first = tensors[name], canonical[name]
        if first not in cut:
            new = tensor.detach()
            if lookups and (positions := masks.get(lookups.get(name, ("", "", 0)))) is not None:
                new = renumbered(new, positions)
            for dim in range(tensor.dim()):
                mask = masks.get(("parameter", first, dim))
                if mask is not None:
                    new = new.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(new.device))
            new = new.clone() if new.data_ptr() == tensor.data_ptr() else new.contiguous()
            cut[first] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        cut[name] = cut[first]
    return {name: cut[name] for name in living}


def renumbered(index: torch.Tensor, mask: Array) -> torch.Tensor:
    """Return the positions in a cut dimension of the entries of `index` that live; `mask` `[size]` says which do."""
    living = torch.from_numpy(mask).to(index.device)
    return (living.cumsum(0) - 1)[index[living[index]]]


def rewrite(
    capture: Capture,
    masks: Mapping[Site, Array],
    canonical: Mapping[str, str],
    idle: AbstractSet[str] = frozenset(),
) -> Capture:
    """Copy a captured graph with the groups, view sizes, slice bounds and split sizes of the living indices.

    `canonical` maps the names of tensors to the names that sites have. Nodes named in `idle` are left out; an idle
    addition or activation passes its remaining operand on.
    """
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    copies = []
    tensors = {n.name: canonical.get(str(n.target), "") for n in capture.graph.nodes if n.op == "get_attr"}

    def living(name: str, dim: int) -> Array | None:
        kind, of_site = ("parameter", tensors[name]) if name in tensors else (capture.mode, name)
        return masks.get((kind, of_site, dim))

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
        rule = REWRITES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            new[node] = rule(node, new[node], living) or new[node]
    for copy in reversed(copies):
        if not copy.users:
            graph.erase_node(copy)
    return replace(capture, graph=graph, constants={})


def _is_written_later(bypassed: fx.Node, operand: fx.Node, idle: AbstractSet[str]) -> bool:
    """Return whether a later node that is not `idle` writes into a bypassed node's output or operand."""
    memory = owners(bypassed.graph)
    shared = {memory.get(bypassed), memory.get(operand)}
    nodes = [node for node in bypassed.graph.nodes if node.name not in idle or node is bypassed]
    later = nodes[nodes.index(bypassed) + 1 :]
    return any(is_in_place(node) and memory.get(node, node) in shared for node in later)
