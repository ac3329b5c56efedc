"""Sizes that are written in a graph: what each operator's arguments become for the living indices."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from autoprune.structure.nodes import argument, concrete, shape_of

aten = torch.ops.aten
Array = np.ndarray
Living = Callable[[str, int], Array | None]
"""Mask of living indices of a dimension of a node (`-1`: its groups), or `None` when nothing there can be removed."""
Rewrite = Callable[[fx.Node, fx.Node, Living], fx.Node | None]
"""Changes the arguments of a new node, or returns one that takes its place; the old one is the dense graph's."""


def _set(new: fx.Node, name: str, value: Any) -> None:
    """Give an argument, by its name in the schema, another value."""
    for position, parameter in enumerate(new.target._schema.arguments):  # type: ignore[union-attr]
        if parameter.name == name:
            if parameter.kwarg_only or position > len(new.args):
                new.update_kwarg(name, value)
            else:
                new.args = (*new.args[:position], value, *new.args[position + 1 :])


def _groups(old: fx.Node, new: fx.Node, living: Living) -> None:
    mask = living(old.name, -1)
    if mask is not None:
        name = "num_groups" if old.target is aten.group_norm.default else "groups"
        _set(new, name, int(mask.sum()))


def _sizes(name: str) -> Rewrite:
    """Explicit sizes of labelled dimensions follow their living counts; `-1` adjusts itself, and so does the batch."""

    def rewrite(old: fx.Node, new: fx.Node, living: Living) -> None:
        sizes = list(argument(new, name))
        for dim, size in enumerate(sizes):
            mask = living(old.name, dim)
            if mask is None or mask.all() or size == -1:
                continue
            if not isinstance(size, fx.Node):
                sizes[dim] = int(mask.sum())
            elif -1 not in sizes:
                sizes[dim] = -1
            else:
                with new.graph.inserting_before(new):
                    sizes[dim] = _scaled(new.graph, size, int(mask.sum()), len(mask))
        _set(new, name, sizes)

    return rewrite


def _unflatten(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`unflatten(x, dim, sizes)`."""
    dim = argument(old, "dim") % len(shape_of(cast(fx.Node, old.args[0])))
    masks = [living(old.name, dim + k) for k in range(len(argument(old, "sizes")))]
    sizes = argument(new, "sizes")
    counts = [s if m is None or s == -1 else int(m.sum()) for s, m in zip(sizes, masks, strict=True)]
    _set(new, "sizes", counts)


def _repeats(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`repeat(x, repeats)`: dimensions that grew out of size 1 follow their living counts."""
    source, repeats = shape_of(cast(fx.Node, old.args[0])), list(argument(new, "repeats"))
    lead = len(repeats) - len(source)
    for dim in range(len(repeats)):
        mask = living(old.name, dim)
        if mask is not None and (dim < lead or source[dim - lead] == 1):
            repeats[dim] = int(mask.sum())
    _set(new, "repeats", repeats)


def _normalized_shape(old: fx.Node, new: fx.Node, living: Living) -> None:
    sizes = list(argument(old, "normalized_shape"))
    lead = len(shape_of(old)) - len(sizes)
    masks = [living(old.name, lead + k) for k in range(len(sizes))]
    _set(new, "normalized_shape", [s if m is None else int(m.sum()) for s, m in zip(sizes, masks, strict=True)])


def _source_mask(old: fx.Node, living: Living) -> tuple[int, int, Array | None]:
    """The dimension that an operator works along, its size, and its mask in the input."""
    source = cast(fx.Node, old.args[0])
    shape = shape_of(source)
    dim = argument(old, "dim") % len(shape)
    return dim, shape[dim], living(source.name, dim)


def _slice(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`slice(x, dim, start, end, step)`: bounds move to the living counts before them."""
    dim, size, mask = _source_mask(old, living)
    if mask is None or mask.all():
        return
    bounds = [concrete(argument(old, name)) for name in ("start", "end")]
    start, end, _ = slice(*[b if isinstance(b, int) else None for b in bounds]).indices(size)
    new.args = (new.args[0], dim, int(mask[:start].sum()), int(mask[:end].sum()), *new.args[4:])


def _select(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`select(x, dim, index)`: the index moves to the living count before it."""
    _, size, mask = _source_mask(old, living)
    index = argument(old, "index")
    if mask is not None and isinstance(index, int):
        _set(new, "index", int(mask[: index % size].sum()))


def _split(old: fx.Node, new: fx.Node, living: Living) -> None:
    """`split` and `chunk` with a labelled dimension become `split_with_sizes` of the living counts."""
    dim, _, mask = _source_mask(old, living)
    if mask is None:
        return
    sizes = [int(v.shape[dim]) for v in old.meta["val"]]
    ends = np.cumsum(sizes)
    counts = [int(mask[end - size : end].sum()) for size, end in zip(sizes, ends, strict=True)]
    new.target = aten.split_with_sizes.default
    new.args, new.kwargs = (new.args[0], counts, dim), {}


def _padding(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Constants added to a labelled dimension follow its living counts."""
    amounts, rank = list(argument(new, "pad")), len(shape_of(old))
    for dim in range(rank):
        mask, place = living(old.name, dim), 2 * (rank - 1 - dim)
        if mask is not None and place < len(amounts):
            before, after = amounts[place], amounts[place + 1]
            amounts[place] = int(mask[:before].sum())
            amounts[place + 1] = int(mask[len(mask) - after :].sum())
    _set(new, "pad", amounts)


def _attention(old: fx.Node, new: fx.Node, living: Living) -> None:
    """The default scale of attention is that of the dense head, which a narrower one must be told."""
    query = cast(fx.Node, old.args[0])
    width = shape_of(query)[-1]
    if argument(old, "scale") is None and living(query.name, len(shape_of(query)) - 1) is not None:
        _set(new, "scale", width**-0.5)


def _symbolic_size(old: fx.Node, new: fx.Node, living: Living) -> fx.Node | None:
    """The size of a dimension that merges channels with the batch: its readers work with that of the dense model."""
    source, dim = cast(fx.Node, old.args[0]), cast(int, old.args[1])
    mask = living(source.name, dim)
    if mask is None or mask.all():
        return None
    return _scaled(new.graph, new, len(mask), int(mask.sum()))


def _scaled(graph: fx.Graph, size: fx.Node, factor: int, divisor: int) -> fx.Node:
    """A size that is known at run time, times a ratio."""
    return graph.call_function(operator.floordiv, (graph.call_function(operator.mul, (size, factor)), divisor))


REWRITES: dict[Any, Rewrite] = {
    aten.conv1d.default: _groups,
    aten.conv2d.default: _groups,
    aten.conv3d.default: _groups,
    aten.conv1d.padding: _groups,
    aten.conv2d.padding: _groups,
    aten.conv3d.padding: _groups,
    aten.conv_transpose1d.default: _groups,
    aten.conv_transpose2d.input: _groups,
    aten.conv_transpose3d.input: _groups,
    aten.group_norm.default: _groups,
    aten.layer_norm.default: _normalized_shape,
    aten.rms_norm.default: _normalized_shape,
    aten.scaled_dot_product_attention.default: _attention,
    aten.view.default: _sizes("size"),
    aten.reshape.default: _sizes("shape"),
    aten._unsafe_view.default: _sizes("size"),
    aten.unflatten.int: _unflatten,
    aten.expand.default: _sizes("size"),
    aten.repeat.default: _repeats,
    aten.zeros.default: _sizes("size"),
    aten.ones.default: _sizes("size"),
    aten.full.default: _sizes("size"),
    aten.empty.memory_format: _sizes("size"),
    aten.new_zeros.default: _sizes("size"),
    aten.new_ones.default: _sizes("size"),
    aten.new_full.default: _sizes("size"),
    aten.new_empty.default: _sizes("size"),
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.pad.default: _padding,
    aten.constant_pad_nd.default: _padding,
    aten.sym_size.int: _symbolic_size,
}
