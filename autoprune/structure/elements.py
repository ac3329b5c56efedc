"""Rules of operators without weights: element-wise ones, joins, reductions, pooling, padding and indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from autoprune.structure.analysis import Analysis, align, hide, passing
from autoprune.structure.labels import Value
from autoprune.structure.movements import separable
from autoprune.structure.nodes import argument, concrete, shape_of

aten = torch.ops.aten


def pointwise(state: Analysis, node: fx.Node) -> Value:
    """Rule of element-wise operators: operands are broadcast, and labels are tied along every dimension."""
    return align(state.labels, state.tensors(node), shape_of(node), str(node.target))


def unchanged(state: Analysis, node: fx.Node) -> Value:
    """Rule of casts, copies, dropout, `zeros_like`: the output has the shape and labels of the first operand."""
    return state.value(node.args[0])


def ignored(state: Analysis, node: fx.Node) -> None:
    """Rule of sizes and assertions, which return no tensor."""


def glu(state: Analysis, node: fx.Node) -> Value:
    """Rule of `glu`: the two halves of a dimension are tied."""
    x, shape = state.value(node.args[0]), shape_of(node)
    dim = argument(node, "dim") % len(shape)
    halves: list[list[np.ndarray]] = [[], []]
    for component in x.components:
        parts = np.split(component, 2, dim) if component.shape[dim] > 1 else [component] * 2
        for half, part in zip(halves, parts, strict=True):
            half.append(part)
    values = [separable(state, node, shape, half) for half in halves]
    return align(state.labels, values, shape, str(node.target))


def concatenation(state: Analysis, node: fx.Node) -> Value:
    """Rule of `cat`: labels are joined along one dimension and tied along all other dimensions."""
    labels, shape = state.labels, shape_of(node)
    dim = argument(node, "dim") % len(shape)
    values = [state.value(a) for a in node.args[0]]  # type: ignore[union-attr]
    operands = [value for value in values if 0 not in value.shape]
    joined = []
    for operand in operands:
        parts = operand.along(dim)
        joined.append(labels.whole(parts) if parts else np.zeros(operand.shape[dim], dtype=np.int64))
    others = [Value(hide(o.shape, dim), tuple(c for c in o.components if c.shape[dim] == 1)) for o in operands]
    aligned = align(labels, others, hide(shape, dim), "cat")
    labels_along = np.concatenate(joined)
    own = [labels_along] if labels_along.any() else []
    return Value(shape, aligned.components + Value.of_dims(shape, {dim: own}).components)


def stacking(state: Analysis, node: fx.Node) -> Value:
    """Rule of `stack`: operands are tied along all their dimensions; the new dimension is fixed."""
    shape = shape_of(node)
    dim = argument(node, "dim") % len(shape)
    operands = [state.value(a) for a in node.args[0]]  # type: ignore[union-attr]
    aligned = align(state.labels, operands, operands[0].shape, "stack")
    return Value(shape, tuple(np.expand_dims(c, dim) for c in aligned.components))


def reduction(state: Analysis, node: fx.Node) -> Any:
    """Rule of mean, sum, variance and norm: living indices of a labelled dimension are reduced."""
    return _reduced(state, node, fixes=False)


def selection(state: Analysis, node: fx.Node) -> Any:
    """Rule of softmax, maximum, sorting and running sums: the dimension that is compared along is fixed."""
    return _reduced(state, node, fixes=True)


def maximum(state: Analysis, node: fx.Node) -> Any:
    """Rule of maximum and minimum: over living indices where only values are read; positions fix the dimension."""
    is_pair = isinstance(node.meta["val"], (list, tuple))
    return _reduced(state, node, fixes=is_pair and any(user.args[1] != 0 for user in node.users))


def within(state: Analysis, node: fx.Node) -> Value:
    """Rule of Fourier transforms, `tril` and `triu`: the dimensions that they work on are fixed, the others pass."""
    x = state.value(node.args[0])
    rank = len(x.shape)
    names = {parameter.name for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    listed = argument(node, "dim") if "dim" in names else [-2, -1]
    dims = {d % rank for d in ([listed] if isinstance(listed, int) else listed or range(rank))}
    state.labels.fix_value(x, f"is mixed or masked by {node.target}", dims)
    return Value(shape_of(node), passing(x, [d for d in range(rank) if d not in dims]))


def complex_pairs(state: Analysis, node: fx.Node) -> Value:
    """Rule of `view_as_complex` and `view_as_real`: the last dimension, of size 2, is fixed; the others pass."""
    x, shape = state.value(node.args[0]), shape_of(node)
    state.labels.fix_value(x, "is the real or imaginary part of a number", range(len(shape), len(x.shape)))
    parts = [c for c in x.components if all(size == 1 for size in c.shape[len(shape) :])]
    return Value(shape, tuple(c.reshape((*c.shape, 1)[: len(shape)]) for c in parts))


def _reduced(state: Analysis, node: fx.Node, *, fixes: bool) -> Any:
    x = state.value(node.args[0])
    rank = len(x.shape)
    names = {parameter.name for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    listed = argument(node, "dim") if "dim" in names else None
    dims = [listed] if isinstance(listed, int) else listed or range(rank)
    reduced = {d % rank for d in dims} if rank else set()
    if fixes:
        state.labels.fix_value(x, f"is compared or accumulated by {node.target}", reduced)
    parts = [c for c in x.components if all(c.shape[d] == 1 for d in reduced)]
    value = node.meta["val"]
    shapes = [concrete(v.shape) for v in value] if isinstance(value, (list, tuple)) else [shape_of(node)]
    outputs = []
    for shape in shapes:
        kept = parts if len(shape) == rank else [c.squeeze(tuple(reduced)) for c in parts]
        outputs.append(Value(shape, tuple(kept)))
    return outputs if isinstance(value, (list, tuple)) else outputs[0]


def pool(state: Analysis, node: fx.Node) -> Any:
    """Rule of pooling and resizing: channels pass, labelled spatial (trailing) dimensions are fixed."""
    x = state.value(node.args[0])
    name = str(node.target).split(".")[1]
    spatial = next((int(digit) for digit in "123" if f"{digit}d" in name), len(x.shape) - 2)
    if (neighbours := _neighbours(node, x, spatial)) is not None:
        return neighbours
    state.labels.fix_value(x, f"a spatial dimension of {node.target}", range(len(x.shape) - spatial, len(x.shape)))
    parts = passing(x, range(len(x.shape) - spatial))
    value = node.meta["val"]
    if isinstance(value, (list, tuple)):
        return [Value(concrete(v.shape), parts) for v in value]
    return Value(shape_of(node), parts)


def _neighbours(node: fx.Node, x: Value, spatial: int) -> Value | None:
    """Return the value of an average over neighbouring channels, as in local response norms; `None` for other pools.

    The channels are padded on both sides and have a window of stride 1. After a cut, the window covers living channels.
    """
    if node.target not in (aten.avg_pool2d.default, aten.avg_pool3d.default):
        return None
    first, kernel, shape = len(x.shape) - spatial, argument(node, "kernel_size"), shape_of(node)
    stride = argument(node, "stride") or kernel
    plain = list(stride) == [1] * spatial and not any(argument(node, "padding")) and set(kernel[1:]) == {1}
    if not plain or any(c.shape[d] > 1 for c in x.components for d in range(first + 1, len(x.shape))):
        return None
    skipped, size = kernel[0] // 2, shape[first]
    along = [c[skipped : skipped + size] for c in x.along(first)]
    return Value(shape, (*passing(x, range(first)), *Value.of_dims(shape, {first: along}).components))


def sampling(state: Analysis, node: fx.Node) -> Value:
    """Rule of `grid_sampler(x [N, C, ...], grid [N, ..., axes])`: channels pass, places and axes are fixed."""
    x, grid = state.value(node.args[0]), state.value(node.args[1])
    state.labels.fix_value(x, f"a spatial dimension of {node.target}", range(2, len(x.shape)))
    state.labels.fix_value(grid, f"a place in the grid of {node.target}", range(1, len(grid.shape)))
    return Value(shape_of(node), passing(x, [0, 1]))


def unpooling(state: Analysis, node: fx.Node) -> Value:
    """Rule of `max_unpool(x, indices)`: both have the same channels, which pass; spatial dimensions are fixed."""
    x, indices, shape = state.value(node.args[0]), state.value(node.args[1]), shape_of(node)
    spatial = 3 if "3d" in str(node.target) else 2
    for value in (x, indices):
        dims = range(len(value.shape) - spatial, len(value.shape))
        state.labels.fix_value(value, f"a spatial dimension of {node.target}", dims)
    tied = align(state.labels, [x, indices], x.shape, str(node.target))
    return Value(shape, passing(tied, range(len(shape) - spatial)))


def patches(state: Analysis, node: fx.Node) -> Value:
    """Rule of `im2col`: every channel becomes as many rows as the kernel has places."""
    x, shape = state.value(node.args[0]), shape_of(node)
    state.labels.fix_value(x, "a spatial dimension of im2col", range(2, len(x.shape)))
    rows = [np.repeat(c, shape[1] // x.shape[1]) for c in x.along(1)]
    batch = [c.reshape(-1, 1, 1) for c in passing(x, [0])]
    return Value(shape, (*Value.of_dims(shape, {1: rows}).components, *batch))


def merged_patches(state: Analysis, node: fx.Node) -> Value:
    """Rule of `col2im`: the rows of one channel are tied."""
    x, shape = state.value(node.args[0]), shape_of(node)
    places = x.shape[1] // shape[1]
    state.labels.fix_value(x, "places of patches", [2])
    channels = []
    for component in x.along(1):
        whole = component.reshape(shape[1], places)
        state.labels.union(whole, np.broadcast_to(whole[:, :1], whole.shape))
        channels.append(whole[:, 0])
    return Value.of_dims(shape, {1: channels})


def padding(state: Analysis, node: fx.Node) -> Value:
    """Rule of padding: constants added to a labelled dimension are free; other kinds of padding fix it."""
    x, shape = state.value(node.args[0]), shape_of(node)
    amounts = list(concrete(argument(node, "pad")))
    padded = {len(shape) - 1 - k // 2 for k in range(len(amounts)) if amounts[k]}
    names = {parameter.name for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    plain = min(amounts, default=0) >= 0 and ("mode" not in names or argument(node, "mode") == "constant")
    parts = []
    for component in x.components:
        (dim,) = [d for d, size in enumerate(component.shape) if size > 1]
        if dim not in padded:
            parts.append(component)
        elif not plain:
            state.labels.fix(component, "is padded with its own values or cropped")
        else:
            before, after = amounts[2 * (len(shape) - 1 - dim) :][:2]
            array = [state.labels.fresh(before), component.ravel(), state.labels.fresh(after)]
            parts += Value.of_dims(shape, {dim: [np.concatenate(array)]}).components
    return Value(shape, tuple(parts))
