"""Sizes that are written in a graph: how each operator's arguments change when some indices are removed."""

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
"""A function from a node's name and a dimension (`-1`: its groups) to the mask of living indices (`None`: all live)."""
Rewrite = Callable[[fx.Node, fx.Node, Living], fx.Node | None]
"""A function `(old, new, living)` that changes the arguments of the new graph's node, or returns another node for it.

`old` is the node of the dense graph.
"""


def _set(new: fx.Node, name: str, value: Any) -> None:
    """Set an argument by its name in the schema."""
    for position, parameter in enumerate(new.target._schema.arguments):  # type: ignore[union-attr]
        if parameter.name == name:
            if parameter.kwarg_only or position > len(new.args):
                new.update_kwarg(name, value)
            else:
                new.args = (*new.args[:position], value, *new.args[position + 1 :])


def _groups(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Set the number of groups of a convolution or group norm."""
    mask = living(old.name, -1)
    if mask is not None:
        name = "num_groups" if old.target is aten.group_norm.default else "groups"
        _set(new, name, int(mask.sum()))


def _sizes(name: str, *, of_view: bool = True) -> Rewrite:
    """Return a rewrite of the argument `name`: written sizes of labelled dimensions become living counts.

    A size of -1 adjusts itself; so does one that is known at run time in a view, where it becomes -1.
    """

    def rewrite(old: fx.Node, new: fx.Node, living: Living) -> None:
        sizes = list(argument(new, name))
        for dim, size in enumerate(sizes):
            mask = living(old.name, dim)
            if mask is None or mask.all() or size == -1:
                continue
            if not isinstance(size, fx.Node):
                sizes[dim] = int(mask.sum())
            elif of_view and -1 not in sizes:
                sizes[dim] = -1
            else:
                with new.graph.inserting_before(new):
                    sizes[dim] = _scaled(new.graph, size, int(mask.sum()), len(mask))
        _set(new, name, sizes)

    return rewrite


def _unflatten(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `unflatten(x, dim, sizes)`: sizes become living counts."""
    dim = argument(old, "dim") % len(shape_of(cast(fx.Node, old.args[0])))
    masks = [living(old.name, dim + k) for k in range(len(argument(old, "sizes")))]
    sizes = argument(new, "sizes")
    counts = [s if m is None or s == -1 else int(m.sum()) for s, m in zip(sizes, masks, strict=True)]
    _set(new, "sizes", counts)


def _repeats(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `repeat(x, repeats)`: repeats of dimensions that grew out of size 1 become living counts."""
    source, repeats = shape_of(cast(fx.Node, old.args[0])), list(argument(new, "repeats"))
    lead = len(repeats) - len(source)
    for dim in range(len(repeats)):
        mask = living(old.name, dim)
        if mask is not None and (dim < lead or source[dim - lead] == 1):
            repeats[dim] = int(mask.sum())
    _set(new, "repeats", repeats)


def _normalized_shape(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite the `normalized_shape` of layer and RMS norms."""
    sizes = list(argument(new, "normalized_shape"))
    lead = len(shape_of(old)) - len(sizes)
    masks = [living(old.name, lead + k) for k in range(len(sizes))]
    _set(new, "normalized_shape", [s if m is None else int(m.sum()) for s, m in zip(sizes, masks, strict=True)])


def _source_mask(old: fx.Node, living: Living) -> tuple[int, int, Array | None]:
    """Return the dimension that an operator works along, its size, and its mask in the input."""
    source = cast(fx.Node, old.args[0])
    shape = shape_of(source)
    dim = argument(old, "dim") % len(shape)
    return dim, shape[dim], living(source.name, dim)


def _slice(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `slice(x, dim, start, end, step)`: a bound becomes the living count before it."""
    dim, size, mask = _source_mask(old, living)
    if mask is None or mask.all():
        return
    bounds = [concrete(argument(old, name)) for name in ("start", "end")]
    start, end, _ = slice(*[b if isinstance(b, int) else None for b in bounds]).indices(size)
    new.args = (new.args[0], dim, int(mask[:start].sum()), int(mask[:end].sum()), *new.args[4:])


def _select(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `select(x, dim, index)`: the index becomes the living count before it."""
    _, size, mask = _source_mask(old, living)
    index = argument(old, "index")
    if mask is not None and isinstance(index, int):
        _set(new, "index", int(mask[: index % size].sum()))


def _split(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `split` and `chunk` along a labelled dimension to `split_with_sizes` of the living counts."""
    dim, _, mask = _source_mask(old, living)
    if mask is None:
        return
    sizes = [int(v.shape[dim]) for v in old.meta["val"]]
    ends = np.cumsum(sizes)
    counts = [int(mask[end - size : end].sum()) for size, end in zip(sizes, ends, strict=True)]
    new.target = aten.split_with_sizes.default
    new.args, new.kwargs = (new.args[0], counts, dim), {}


def _narrow(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `narrow(x, dim, start, length)`: both become living counts."""
    _, size, mask = _source_mask(old, living)
    start, length = argument(old, "start"), argument(old, "length")
    if mask is not None and isinstance(start, int) and isinstance(length, int):
        start %= size
        _set(new, "start", int(mask[:start].sum()))
        _set(new, "length", int(mask[start : start + length].sum()))


def _roll(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite `roll(x, shifts, dims)`: as many living indices come to the front as there are among those that did."""
    source = cast(fx.Node, old.args[0])
    shape, dims = shape_of(source), argument(old, "dims")
    shifts = list(argument(old, "shifts"))
    for place, dim in enumerate(dims):
        mask = living(source.name, dim % len(shape))
        if mask is not None:
            shifts[place] = int(mask[len(mask) - shifts[place] % len(mask) :].sum())
    _set(new, "shifts", shifts)


def _padding(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Rewrite the amounts of padding added to a labelled dimension to living counts."""
    amounts, rank = list(argument(new, "pad")), len(shape_of(old))
    for dim in range(rank):
        mask, place = living(old.name, dim), 2 * (rank - 1 - dim)
        if mask is not None and place < len(amounts):
            before, after = amounts[place], amounts[place + 1]
            amounts[place] = int(mask[:before].sum())
            amounts[place + 1] = int(mask[len(mask) - after :].sum())
    _set(new, "pad", amounts)


def _attention(old: fx.Node, new: fx.Node, living: Living) -> None:
    """Write the dense head's default scale down, because a narrower head would have another default."""
    query = cast(fx.Node, old.args[0])
    width = shape_of(query)[-1]
    if argument(old, "scale") is None and living(query.name, len(shape_of(query)) - 1) is not None:
        _set(new, "scale", width**-0.5)


def _symbolic_size(old: fx.Node, new: fx.Node, living: Living) -> fx.Node | None:
    """Scale the size of a dimension that merges channels with the batch back to the dense size that readers expect."""
    source, dim = cast(fx.Node, old.args[0]), cast(int, old.args[1])
    mask = living(source.name, dim)
    if mask is None or mask.all():
        return None
    return _scaled(new.graph, new, len(mask), int(mask.sum()))


def _scaled(graph: fx.Graph, size: fx.Node, factor: int, divisor: int) -> fx.Node:
    """Return a node for a size known at run time, times `factor / divisor`."""
    return graph.call_function(operator.floordiv, (graph.call_function(operator.mul, (size, factor)), divisor))


_CREATED = _sizes("size", of_view=False)

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
    aten.expand.default: _CREATED,
    aten.repeat.default: _repeats,
    aten.zeros.default: _CREATED,
    aten.ones.default: _CREATED,
    aten.full.default: _CREATED,
    aten.empty.memory_format: _CREATED,
    aten.new_zeros.default: _CREATED,
    aten.new_ones.default: _CREATED,
    aten.new_full.default: _CREATED,
    aten.new_empty.default: _CREATED,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.split.sizes: _split,
    aten.tensor_split.sections: _split,
    aten.tensor_split.indices: _split,
    aten.unsafe_chunk.default: _split,
    aten.unsafe_split.Tensor: _split,
    aten.unsafe_split_with_sizes.default: _split,
    aten.narrow.default: _narrow,
    aten.roll.default: _roll,
    aten.rand.default: _CREATED,
    aten.randn.default: _CREATED,
    aten.pad.default: _padding,
    aten.constant_pad_nd.default: _padding,
    aten.sym_size.int: _symbolic_size,
}
