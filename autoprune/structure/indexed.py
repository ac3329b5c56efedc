"""Rules of operators that read or write by index, and of those that make indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from autoprune.structure.analysis import Analysis, align, hide, passing
from autoprune.structure.labels import Value
from autoprune.structure.movements import separable
from autoprune.structure.nodes import argument, shape_of

aten = torch.ops.aten


def indexing(state: Analysis, node: fx.Node) -> Value:
    """Rule of `x[indices]`: the dimensions that are looked up are fixed, and all other dimensions pass."""
    x = state.value(node.args[0])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    dims = [d for d, index in enumerate(indices) if index is not None]
    if any(n.meta["val"].dtype == torch.bool for n in indices if n is not None):
        state.labels.fix_value(x, "is looked up by a mask")
        return Value(shape_of(node))
    state.labels.fix_value(x, "is looked up by index", dims)
    zeros = [None if n is None else torch.zeros(shape_of(n), dtype=torch.int64) for n in indices]
    parts = []
    for component in passing(x, [d for d in range(len(x.shape)) if d not in dims]):
        indexed = aten.index.Tensor(torch.from_numpy(component).expand(x.shape), zeros)
        parts.append(_collapsed(indexed.numpy()))
    return separable(state, node, shape_of(node), parts)


def _collapsed(labels: np.ndarray) -> np.ndarray:
    """Give the size 1 to dimensions along which nothing changes."""
    for dim in range(labels.ndim):
        first = np.take(labels, [0], dim)
        labels = first if (labels == first).all() else labels
    return labels


def lookup(state: Analysis, node: fx.Node) -> Value:
    """Rule of `index_select` and `gather`: labels follow a constant index; else the dimension is fixed."""
    x, shape = state.value(node.args[0]), shape_of(node)
    dim = argument(node, "dim") % len(x.shape)
    index = state.constants.get(str(getattr(node.args[2], "target", "")))
    if index is None or index.dim() != 1:
        state.labels.fix_value(x, "is looked up by index", [dim])
        others = tuple(c for c in x.components if c.shape[dim] == 1)
        return Value(shape, others) if node.target is aten.index_select.default else _gathered(state, node, others, dim)
    parts = [c.take(index.numpy(), axis=dim) if c.shape[dim] > 1 else c for c in x.components]
    return separable(state, node, shape, parts)


def _gathered(state: Analysis, node: fx.Node, others: tuple[np.ndarray, ...], dim: int) -> Value:
    """Return the value of `gather`, whose index has the dimensions of the output: all but `dim` are tied."""
    index, shape = state.value(node.args[2]), shape_of(node)
    state.labels.fix_value(index, "is looked up by index", [dim])
    if hide(state.value(node.args[0]).shape, dim) != hide(shape, dim):
        raise ValueError("only a part of the dimensions is looked up")
    own = Value(hide(shape, dim), tuple(c for c in index.components if c.shape[dim] == 1))
    aligned = align(state.labels, [Value(hide(shape, dim), others), own], hide(shape, dim), str(node.target))
    return Value(shape, aligned.components)


def scattering(state: Analysis, node: fx.Node) -> Value:
    """Rule of `index_add`, `scatter` and others that write into a tensor along `dim`, which is fixed.

    All other dimensions of target, index and source are tied.
    """
    shape = shape_of(node)
    dim = argument(node, "dim") % len(shape)
    operands = [value for value in state.tensors(node) if len(value.shape) == len(shape)]
    for value in operands:
        state.labels.fix_value(value, "is written by index", [dim])
        if hide(value.shape, dim) != hide(shape, dim):
            raise ValueError("only a part of the target is written")
    others = [Value(hide(o.shape, dim), passing(o, [d for d in range(len(shape)) if d != dim])) for o in operands]
    return Value(shape, align(state.labels, others, hide(shape, dim), str(node.target)).components)


def filling(state: Analysis, node: fx.Node) -> Value:
    """Rule of `index_fill(x, dim, index, number)`: the dimension that is filled is fixed, the others pass."""
    x = state.value(node.args[0])
    dim = argument(node, "dim") % len(x.shape)
    state.labels.fix_value(x, "is written by index", [dim])
    return Value(x.shape, passing(x, [d for d in range(len(x.shape)) if d != dim]))


def intervals(state: Analysis, node: fx.Node) -> Value:
    """Rule of `bucketize(x, boundaries)`: every entry by itself; the boundaries are fixed."""
    state.labels.fix_value(state.value(node.args[1]), "is a boundary of an interval")
    return state.value(node.args[0])


def classes(state: Analysis, node: fx.Node) -> Value:
    """Rule of `one_hot(x, classes)`: dimensions pass; that of the classes is new and fixed."""
    return Value(shape_of(node), tuple(c[..., None] for c in state.value(node.args[0]).components))
