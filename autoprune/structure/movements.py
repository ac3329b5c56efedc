"""Operators that only move elements: labels go through the same ATen operator as the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from autoprune.structure.analysis import Analysis
from autoprune.structure.capture import concrete, shape_of
from autoprune.structure.labels import Array, Value

aten = torch.ops.aten

MOVEMENTS = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
    aten.select.int, aten.expand.default, aten.flip.default,
}  # fmt: skip


def movement(state: Analysis, node: fx.Node) -> Any:
    """View, permute, slice, split, ...: run the same operator on the label arrays."""
    x = state.value(node.args[0])
    if node.target is aten.slice.Tensor and len(node.args) > 4 and node.args[4] != 1:
        state.labels.fix_value(x, "is sliced with a step")
    args, kwargs = map_arg((node.args[1:], node.kwargs), lambda n: concrete(n.meta["val"]))
    target = cast(Callable[..., Any], node.target)
    outputs: list[list[Array]] = []
    for component in x.components:
        moved = target(torch.from_numpy(np.broadcast_to(component, x.shape).copy()), *args, **kwargs)
        outputs.append([_collapsed(t) for t in (moved if isinstance(moved, (list, tuple)) else [moved])])
    value = node.meta["val"]
    if not isinstance(value, (list, tuple)):
        return _separable(state, node, Value(shape_of(node), tuple(o[0] for o in outputs)))
    shapes = [concrete(v.shape) for v in value]
    return [_separable(state, node, Value(s, tuple(o[k] for o in outputs))) for k, s in enumerate(shapes)]


def _collapsed(labels: torch.Tensor) -> Array:
    """Give dimensions along which nothing changes the size 1."""
    for dim in range(labels.dim()):
        if bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels.contiguous().numpy()


def _separable(state: Analysis, node: fx.Node, value: Value) -> Value:
    """Fix what is no plain dimension of labels: one that was split, a single channel, a merge with the batch."""
    symbolic = _symbolic_dims(node)
    kept = []
    for component in value.components:
        varying = sum(size > 1 for size in component.shape)
        if any(component.shape[d] > 1 for d in symbolic):
            state.labels.fix(component, f"is merged with the batch by {node.target}")
        elif varying == 1:
            kept.append(component)
        elif varying > 1:
            state.labels.fix(component, f"is split over two dimensions by {node.target}")
        else:
            state.labels.fix(component, f"is a single channel taken by {node.target}")
    return Value(value.shape, tuple(kept))


def item(state: Analysis, node: fx.Node) -> Any:
    """One output of an operator with several."""
    found = state.values.get(node.args[0])  # type: ignore[arg-type]
    return found[cast(int, node.args[1])] if isinstance(found, list) else Value(shape_of(node))


def _symbolic_dims(node: fx.Node) -> list[int]:
    """Dimensions of a view whose size depends on the batch: only there an explicit size cannot follow the channels."""
    sizes = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], (list, tuple)) else ()
    is_view = node.target in (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    return [d for d, size in enumerate(sizes) if is_view and isinstance(size, fx.Node)]
