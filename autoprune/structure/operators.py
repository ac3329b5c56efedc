"""The operators of an evaluation graph that cost time, with their sizes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from autoprune.structure.branches import Branches
from autoprune.structure.gates import ALWAYS
from autoprune.structure.geometry import (
    ATTENTION,
    CAPTURE_BATCH,
    EINSUM,
    PRODUCTS,
    RECURRENT,
    Along,
    Dim,
    Operator,
    output_shape,
    size_along,
)  # fmt: skip
from autoprune.structure.nodes import concrete, shape_of, symbolic_dims
from autoprune.structure.products import einsum_names
from autoprune.structure.units import Channels, Site

Array = np.ndarray
_CHANNELS_LAST = ("linear", "layer_norm", "rms_norm", ATTENTION, *PRODUCTS, *RECURRENT)


def find_operators(
    graph: fx.Graph, channels: Mapping[Site, Channels], unit_widths: Array, branches: Branches
) -> tuple[Operator, ...]:
    """Return all tensor operators of an evaluation graph in order, with channel counts as polynomials.

    `unit_widths` `[U]` are the full widths.
    """
    axes = _channel_axes(graph)

    def along(node: fx.Node, axis: int) -> Dim:
        return size_along(node, axis, channels, unit_widths)

    operators = []
    for node in graph.nodes:
        if node.op != "call_function" or not output_shape(node):
            continue
        name = _op_name(node)
        if name in PRODUCTS or name == ATTENTION:
            sizes = _product_sizes(node, along)
        elif name == EINSUM:
            sizes = _einsum_sizes(node, along)
        else:
            sizes = _layer_sizes(node, axes, along, channels.get(("eval", node.name, -1)), unit_widths)
        operators.append(
            Operator(
                node=node.name,
                op=name,
                inputs=tuple(n.name for n in _activations(node)),
                parameters=tuple(str(n.target) for n in node.all_input_nodes if n.op == "get_attr"),
                gate=branches.runs.get(("eval", node.name), ALWAYS),
                **sizes,
            )
        )
    return tuple(operators)


def _activations(node: fx.Node) -> list[fx.Node]:
    """Return the tensor inputs of a node that are no parameters."""
    return [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)]


def _layer_sizes(
    node: fx.Node, axes: Mapping[fx.Node, int], along: Along, groups: Channels | None, unit_widths: Array
) -> dict[str, Any]:
    kernel, stride, dilation = _window(node)
    sources = _activations(node)
    shape, batch = output_shape(node), _batch_dims(node)
    linear = _op_name(node) == "linear"

    def labelled(of: fx.Node, axis: int) -> list[int]:
        """Return the dimensions besides `axis` whose size follows widths, such as heads."""
        dims = set(range(len(output_shape(of)))) - _batch_dims(of) - {axis}
        return [d for d in sorted(dims) if along(of, d).units]

    def channels_of(of: fx.Node, axis: int) -> Dim:
        if len(output_shape(of)) <= axis:
            return Dim(1)
        apart = [] if linear else labelled(of, axis)  # a linear layer is repeated along such dimensions
        return math.prod((along(of, d) for d in apart), start=along(of, axis))

    own = labelled(node, axes[node])
    repeats = math.prod((along(node, d) for d in own), start=Dim(1)) if linear else Dim(1)
    extent = [shape[d] for d in range(len(shape)) if d not in {*batch, axes[node], *own}]
    repeated = math.prod(shape[d] // CAPTURE_BATCH for d in batch if shape[d] > CAPTURE_BATCH)
    extent = [repeated, *extent] if repeated > 1 else extent
    rows, columns = [0, 0, math.prod(extent[:-1]) if len(extent) > 1 else 0, *extent[-1:]][-2:]
    return {
        "c_in": channels_of(sources[0], axes.get(sources[0], 1)) if sources else Dim(0),
        "c_out": channels_of(node, axes[node]),
        "groups": Dim.of(groups, unit_widths) if groups else repeats * Dim(_groups(node)),
        "out_rows": rows if extent else 0,
        "out_columns": columns if extent else 0,
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "positions": _positions(sources[0], axes) if _op_name(node).startswith("conv_transpose") else 0,
    }


def _positions(node: fx.Node, axes: Mapping[fx.Node, int]) -> int:
    """Return the number of places (all dimensions but channels) of one example."""
    apart = {*_batch_dims(node), axes.get(node, 1)}
    return math.prod(size for dim, size in enumerate(output_shape(node)) if dim not in apart)


def _product_sizes(node: fx.Node, along: Along) -> dict[str, Any]:
    """Return the sizes of a matrix product or attention; rows whose number follows widths count as matrices."""
    first = PRODUCTS.get(_op_name(node), 0)
    x, y = (cast(fx.Node, n) for n in node.args[first : first + 2])
    attends = _op_name(node) == ATTENTION
    rank_x, rank = len(output_shape(x)), len(output_shape(node))
    matrices = Dim(1)
    for axis in range(rank - 2):
        matrices *= along(node, axis) if axis in symbolic_dims(node) or axis else Dim(1)
    rows = along(x, rank_x - 2) if rank_x > 1 else Dim(1)
    matrices = matrices * rows if rows.units else matrices
    has_columns = attends or len(output_shape(y)) > 1
    return {
        "c_in": along(x, rank_x - 1),
        "c_out": along(node, rank - 1) if has_columns else Dim(1),
        "groups": matrices,
        "out_columns": 0 if rows.units else rows.constant,
        "kernel": output_shape(y)[-2:-1] if attends else (),
    }


def _einsum_sizes(node: fx.Node, along: Along) -> dict[str, Any]:
    """Return the size that an einsum sums over and the size that it keeps."""
    operands = cast(Sequence[fx.Node], node.args[1])
    terms, kept = einsum_names(str(node.args[0]), [len(output_shape(n)) for n in operands], len(output_shape(node)))
    sizes: dict[Hashable, Dim] = {}
    for operand, names in zip(operands, terms, strict=True):
        for dim, name in enumerate(names):
            size = along(operand, dim)
            # A size of 1 may stand for all places of another operand.
            sizes[name] = size if size != Dim(1) else sizes.get(name, size)
    return {
        "c_in": math.prod((size for name, size in sizes.items() if name not in kept), start=Dim(1)),
        "c_out": math.prod((size for name, size in sizes.items() if name in kept), start=Dim(1)),
        "groups": Dim(1),
    }


def _channel_axes(graph: fx.Graph) -> dict[fx.Node, int]:
    """Return the channel dimension of every tensor: 1 after convolutions, the last after linear layers."""
    axes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        rank, name = len(output_shape(node)), _op_name(node) if node.op == "call_function" else ""
        sources = [n for n in node.all_input_nodes if n in axes and len(output_shape(n)) == rank and n.op != "get_attr"]
        if name in _CHANNELS_LAST:
            axes[node] = rank - 1
            for source in node.all_input_nodes[:1]:
                axes[source] = rank - 1
        elif name.startswith(("conv", "batch_norm")) or not sources:
            axes[node] = min(1, max(rank - 1, 0))
        else:
            axes[node] = axes[sources[0]]
    return axes


def _batch_dims(node: fx.Node) -> set[int]:
    """Return the dimensions of symbolic size (the batch, wherever it was moved); the first if there is none."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) else value
    assert isinstance(first, torch.Tensor)
    return {d for d, size in enumerate(first.shape) if isinstance(size, torch.SymInt)} or {0}


def _op_name(node: fx.Node) -> str:
    """Return the name of a node's operator, without namespace and without the `_` of in-place operators."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None:
        name = getattr(node.target, "__name__", str(node.target))
    else:
        name = packet._qualified_op_name.split("::")[-1]
    return name.removesuffix("_")  # an in-place operator costs the same


def _groups(node: fx.Node) -> int:
    name = _op_name(node)
    if name in RECURRENT:
        return 2 if node.args[7] else 1  # bidirectional
    given = node.args[6] if name.startswith("conv") and len(node.args) > 6 else 1
    if isinstance(given, fx.Node):  # a group for each example, so that the channels of all examples are counted
        return CAPTURE_BATCH * int(concrete(given.meta["val"]))
    return int(cast(int, given))


def _window(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return kernel, stride and dilation (`()` for none) of a convolution or pooling."""
    name = _op_name(node)
    if name.startswith("conv"):
        kernel = shape_of(node.args[1])[2:]  # type: ignore[arg-type]
        stride = node.args[3] if len(node.args) > 3 else 1
        place = 7 if name.startswith("conv_transpose") else 5
    elif name in ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"):
        kernel = concrete(node.args[1])
        stride = node.args[2] if len(node.args) > 2 and node.args[2] else kernel
        place = 4 if name.startswith("max") else len(node.args)
    else:
        return (), (), ()
    dilation = node.args[place] if len(node.args) > place else 1
    as_tuple = lambda v: (v,) if isinstance(v, int) else tuple(v)  # noqa: E731
    kernel = as_tuple(kernel)
    stride, dilation = (each * (len(kernel) // len(each)) for each in (as_tuple(stride), as_tuple(dilation)))
    return kernel, stride, dilation if set(dilation) != {1} else ()
