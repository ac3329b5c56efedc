"""Rules of operators that only move elements: labels go through the same ATen operator as the data.

Label arrays are expanded without copying (repeated dimensions have stride 0), so that most operators cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from autoprune.structure.analysis import Analysis
from autoprune.structure.geometry import CAPTURE_BATCH
from autoprune.structure.labels import Array, Value
from autoprune.structure.nodes import FREE, argument, concrete, shape_of, symbolic_dims

aten = torch.ops.aten

RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.view_as.default,
    aten.reshape_as.default,
}  # fmt: skip
MOVEMENTS = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.slice.Tensor,
    aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.select.int, aten.unbind.int,
    aten.roll.default, aten.flip.default, aten.movedim.int, aten.swapaxes.default, aten.swapdims.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.unfold.default,
    aten.repeat_interleave.self_int, aten.movedim.intlist, aten.mT.default, aten.narrow.default,
    aten.tensor_split.sections, aten.tensor_split.indices, aten.unsafe_chunk.default, aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default, aten.split.sizes, aten.rot90.default, aten.diagonal.default,
    aten.permute_copy.default, aten.transpose_copy.int, aten.unbind_copy.int,
}  # fmt: skip
_UNEVEN: dict[Any, tuple[str, ...]] = {
    aten.unfold.default: ("dimension",), aten.rot90.default: ("dims",),
    aten.diagonal.default: ("dim1", "dim2"),
}  # fmt: skip
"""Operators that move elements to other places once some indices are gone, and the arguments with the dimensions."""

VIEWS_IN_PLACE: dict[Any, Any] = {
    aten.squeeze_.default: aten.squeeze.default, aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims, aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.transpose_.default: aten.transpose.int, aten.t_.default: aten.t.default,
    aten.swapaxes_.default: aten.swapaxes.default, aten.swapdims_.default: aten.swapdims.default,
}  # fmt: skip
"""Operators that change the shape of their operand, and those that return it changed; captured graphs have the latter.

Readers that come later read the operator's output in a graph, and never its operand.
"""


def movement(state: Analysis, node: fx.Node) -> Any:
    """Rule of permute, slice, split and others in `MOVEMENTS`: run the same operator on the label arrays."""
    x = state.value(node.args[0])
    _fix_uneven(state, node, x)
    args, kwargs = map_arg((node.args[1:], node.kwargs), lambda n: concrete(n.meta["val"]))
    target = cast(Callable[..., Any], node.target)
    outputs: list[list[Array]] = []
    value = node.meta["val"]
    shapes = [concrete(v.shape) for v in (value if isinstance(value, (list, tuple)) else [value])]
    for component in x.components:
        moved = target(torch.from_numpy(component).expand(x.shape), *args, **kwargs)
        outputs.append([_collapsed(t) for t in (moved if isinstance(moved, (list, tuple)) else [moved])])
    if not isinstance(value, (list, tuple)):
        moved_value = separable(state, node, shapes[0], [o[0] for o in outputs])
        if node.target is aten.pixel_shuffle.default:
            state.labels.fix_value(moved_value, "becomes a row or column of pixels", _pixels(moved_value))
        return moved_value
    return [separable(state, node, s, [o[k] for o in outputs]) for k, s in enumerate(shapes)]


def reshaping(state: Analysis, node: fx.Node) -> Value:
    """Rule of view, flatten, squeeze and others in `RESHAPES`: each run of dimensions is reshaped by itself."""
    x, shape = state.value(node.args[0]), shape_of(node)
    return separable(state, node, shape, [reshaped(c, x.shape, shape) for c in x.components])


def reshaped(component: Array, before: tuple[int, ...], after: tuple[int, ...]) -> Array:
    """Reshape a component of a tensor of shape `before` to shape `after`; elements keep their row-major order."""
    labels, shape = component, [1] * len(after)
    for inside, outside in _runs(before, after):
        if any(component.shape[d] > 1 for d in inside):
            block = component.reshape([component.shape[d] for d in inside])
            block = np.broadcast_to(block, [before[d] for d in inside]).reshape([after[d] for d in outside])
            labels = _collapsed(torch.from_numpy(block.copy()))
            for dim, size in zip(outside, labels.shape, strict=True):
                shape[dim] = size
    return labels.reshape(shape)


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split both shapes into the shortest runs of dimensions with equal products, pair by pair.

    >>> _runs((6, 4), (2, 3, 4))
    [([0], [0, 1]), ([1], [2])]
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        inside, outside = [], []
        while True:
            size_in, size_out = math.prod(before[d] for d in inside), math.prod(after[d] for d in outside)
            if inside and outside and size_in == size_out:
                break
            if (size_in <= size_out or j == len(after)) and i < len(before):
                inside.append(i)
                i += 1
            elif j < len(after):
                outside.append(j)
                j += 1
            else:
                break
        runs.append((inside, outside))
    return runs


def _collapsed(labels: torch.Tensor) -> Array:
    """Give the size 1 to dimensions along which nothing changes."""
    for dim in range(labels.dim()) if labels.numel() else ():
        first = labels.narrow(dim, 0, 1)
        if labels.stride(dim) == 0 or labels.shape[dim] == 1 or bool((labels == first).all()):
            labels = first
    return labels.contiguous().numpy()


def separable(state: Analysis, node: fx.Node, shape: tuple[int, ...], components: Sequence[Array]) -> Value:
    """Return a value whose components vary along one dimension each.

    A component of several dimensions is split, or fixed if the batch is among them; a single channel is fixed.
    """
    if 0 in shape:
        return Value(shape)  # an empty part, such as what partial rotary embeddings leave of a whole head
    symbolic = symbolic_dims(node)
    kept = []
    for component in components:
        varying = [d for d, size in enumerate(component.shape) if size > 1]
        if not varying:
            state.labels.fix(component, f"is a single channel taken by {node.target}")
        elif len(varying) == 1 and not component.any():
            continue
        elif len(varying) == 1:
            kept.append(component)
        elif set(varying) <= symbolic:
            state.labels.fix(component, f"is merged with the batch by {node.target}")
        else:
            kept += state.labels.factors(component)
    return Value(shape, tuple(kept))


def _fix_uneven(state: Analysis, node: fx.Node, x: Value) -> None:
    """Fix the dimensions along which an operator would not do the same on fewer indices."""
    rank = len(x.shape)
    if node.target is aten.slice.Tensor and argument(node, "step") != 1:
        source = cast(fx.Node, node.args[0])
        dim = argument(node, "dim") % rank
        if dim in symbolic_dims(source) | source.meta.get(FREE, {}).keys():
            state.labels.fix_value(x, "is sliced with a step, along a size that the input decides", [dim])
    elif node.target is aten.roll.default:
        shifts, dims = argument(node, "shifts"), argument(node, "dims")
        dims = [d for s, d in zip(shifts, dims, strict=True) if not isinstance(s, int)] if dims else range(rank)
        state.labels.fix_value(x, f"is moved by {node.target}", {d % rank for d in dims})
    elif node.target is aten.pixel_unshuffle.default:
        state.labels.fix_value(x, "is a row or column of pixels that becomes channels", _pixels(x))
    elif node.target in _UNEVEN:
        given = [argument(node, name) for name in _UNEVEN[node.target]]
        listed = [d for dims in given for d in ([dims] if isinstance(dims, int) else dims)]
        state.labels.fix_value(x, f"is moved by {node.target}", {d % rank for d in listed or range(rank)})


def _pixels(value: Value) -> range:
    return range(len(value.shape) - 2, len(value.shape))


def item(state: Analysis, node: fx.Node) -> Any:
    """Rule of `getitem`: one output of an operator with several."""
    outputs = state.values.get(node.args[0])  # type: ignore[arg-type]
    return outputs[cast(int, node.args[1])] if isinstance(outputs, list) else Value(shape_of(node))


def repetition(state: Analysis, node: fx.Node) -> Value:
    """Rule of `repeat`: labels repeat along a labelled dimension; a dimension that grows out of size 1 is free."""
    x, shape = state.value(node.args[0]), shape_of(node)
    lead = len(shape) - len(x.shape)
    parts = []
    for component in x.components:
        component = component.reshape([1] * lead + list(component.shape))
        parts.append(np.tile(component, [s // t if t > 1 else 1 for s, t in zip(shape, component.shape, strict=True)]))
    return Value(shape, (*parts, *created(state, node, _grown(x.shape, shape)).components))


def expansion(state: Analysis, node: fx.Node) -> Value:
    """Rule of `expand`: a dimension that grows out of size 1 is free, with labels that belong to no parameter."""
    x, shape = state.value(node.args[0]), shape_of(node)
    lead = len(shape) - len(x.shape)
    parts = [c.reshape([1] * lead + list(c.shape)) for c in x.components]
    return Value(shape, (*parts, *created(state, node, _grown(x.shape, shape)).components))


def _grown(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return the dimensions of `after` that a broadcast made."""
    lead = len(after) - len(before)
    return [d for d in range(len(after)) if d < lead or (before[d - lead] == 1 and after[d] > 1)]


def created(state: Analysis, node: fx.Node, dims: Sequence[int] | None = None) -> Value:
    """Rule of `zeros`, `full` and others: all dimensions, or `dims`, are free; the batch carries no labels.

    A size that is a multiple of the batch, as of heads that are folded into it, is free within each example.
    """
    shape, symbolic, free = shape_of(node), symbolic_dims(node), node.meta.get(FREE, {})
    labels = {}
    for dim in range(len(shape)) if dims is None else dims:
        if shape[dim] > 1 and dim not in symbolic:
            labels[dim] = [state.labels.fresh(shape[dim])]
        elif dim in symbolic and dim not in free and shape[dim] > CAPTURE_BATCH and shape[dim] % CAPTURE_BATCH == 0:
            labels[dim] = [np.tile(state.labels.fresh(shape[dim] // CAPTURE_BATCH), CAPTURE_BATCH)]
    return Value.of_dims(shape, labels)
