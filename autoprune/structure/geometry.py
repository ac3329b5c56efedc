"""Exact arithmetic of sizes: every dimension as a polynomial in the unit widths, and the operators that cost time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from autoprune.structure.branches import Branches
from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.nodes import concrete, shape_of, symbolic_dims
from autoprune.structure.units import Channels, Site

Array = np.ndarray
CAPTURE_BATCH = 3
Along = Callable[[fx.Node, int], "Dim"]
"""Size of a dimension of a node."""


@dataclass(frozen=True)
class Dim:
    """Exact size of one dimension: `constant + sum(coefficient * product of the widths of some units)`."""

    constant: int
    terms: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that the size depends on, ascending."""
        return tuple(sorted({u for _, units in self.terms for u in units}))

    def __call__(self, widths: Array) -> Array:
        """Sizes `[P]` (int64) for widths `[P, U]`."""
        total = np.full(len(widths), self.constant, dtype=np.int64)
        for coefficient, units in self.terms:
            total += coefficient * np.prod(widths[:, list(units)], axis=1, dtype=np.int64)
        return total

    def __mul__(self, other: Dim) -> Dim:
        """Size of two dimensions together."""
        mine, others = ((self.constant, ()), *self.terms), ((other.constant, ()), *other.terms)
        products = [(a * b, tuple(sorted((*u, *v)))) for a, u in mine for b, v in others if a * b]
        constant = sum(c for c, units in products if not units)
        return Dim(constant, tuple((c, units) for c, units in products if units))

    def per_example(self) -> Dim:
        """Size for one example, of a dimension that was captured with the batch in it."""
        return Dim(self.constant // CAPTURE_BATCH, tuple((c // CAPTURE_BATCH, units) for c, units in self.terms))

    @classmethod
    def of(cls, channels: Channels, unit_widths: Array) -> Dim:
        """Polynomial of the living count of a dimension; `unit_widths` `[U]` are the full widths."""
        names = sorted(channels.of_unit)
        if not names:
            return cls(channels.size)
        belongs = np.stack([channels.of_unit[u] >= 0 for u in names], axis=1)
        patterns, counts = np.unique(belongs, axis=0, return_counts=True)
        constant, terms = 0, []
        for pattern, count in zip(patterns, counts, strict=True):
            units = tuple(u for u, inside in zip(names, pattern, strict=True) if inside)
            full = int(np.prod(unit_widths[list(units)])) if units else 1
            if units:
                terms.append((int(count) // full, units))
            else:
                constant = int(count)
        return cls(constant, tuple(terms))


def size_along(node: fx.Node, axis: int, channels: Mapping[Site, Channels], unit_widths: Array) -> Dim:
    """Size of one dimension of a node of the evaluation graph, for one example."""
    found = channels.get(("eval", node.name, axis))
    size = Dim.of(found, unit_widths) if found else Dim(_output_shape(node)[axis])
    return size.per_example() if axis in symbolic_dims(node) else size


_WEIGHTED = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear")
RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates of recurrent layers."""

_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = {"matmul": 0, "bmm": 0, "mm": 0, "addmm": 1, "baddbmm": 1}
"""Matrix products, and where their two factors begin among the arguments."""
_CHANNELS_LAST = ("linear", "layer_norm", "rms_norm", _ATTENTION, *_PRODUCTS, *RECURRENT)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the evaluation graph that costs time. Spatial sizes are those of the output, for one example.

    Sequences have `height` 0 and their length as `width`; windows and other leading dimensions count as `height`.
    Recurrent layers have their number of directions as `groups` and the hidden sizes of all of them as `c_out`.
    Attention has its heads as `groups`, the length of queries as `width`, that of keys as `kernel`, and the sizes of a
    head as channels; a matrix product has its matrices as `groups`, its rows as `width` and its inner size as `c_in`; a
    linear layer that mixes tokens has its channels as `groups`. `gate` is when it runs.
    """

    node: str
    op: str
    inputs: tuple[str, ...]
    c_in: Dim
    c_out: Dim
    groups: Dim
    height: int = 0
    width: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    gate: Gate = ALWAYS

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that its channel counts, or whether it runs, depend on."""
        return tuple(sorted({*self.c_in.units, *self.c_out.units, *self.groups.units, *self.gate.units}))

    def macs(self, widths: Array) -> Array:
        """Multiply-accumulates for one example, `[P]`: convolutions, linear layers, products, attention; else 0."""
        if self.op in _PRODUCTS or self.op == _ATTENTION:
            attends = self.op == _ATTENTION
            wide = self.c_in(widths) + self.c_out(widths) if attends else self.c_in(widths) * self.c_out(widths)
            places = max(self.width, 1) * int(np.prod(self.kernel or (1,)))
            return places * self.groups(widths) * wide * self.gate(widths)
        if self.op in RECURRENT:
            reads = self.c_in(widths) + self.c_out(widths) // self.groups(widths)
            return RECURRENT[self.op] * self.width * self.c_out(widths) * reads * self.gate(widths)
        if self.op not in _WEIGHTED:
            return np.zeros(len(widths), dtype=np.int64)
        if self.op == "linear":
            places = self.groups(widths) * max(self.height, 1) * max(self.width, 1)
            return places * self.c_out(widths) * self.c_in(widths) * self.gate(widths)
        positions = max(self.height, 1) * max(self.width, 1) * int(np.prod(self.kernel or (1,)))
        if self.op.startswith("conv_transpose"):
            positions //= int(np.prod(self.stride))  # every position of the input is multiplied, not of the output
        macs = positions * self.c_out(widths) * self.c_in(widths) // np.maximum(self.groups(widths), 1)
        return macs * self.gate(widths)


def find_operators(
    graph: fx.Graph, channels: Mapping[Site, Channels], unit_widths: Array, branches: Branches
) -> tuple[Operator, ...]:
    """All tensor operators of an evaluation graph in order, with channel counts as polynomials."""

    axes = _channel_axes(graph)

    def along(node: fx.Node, axis: int) -> Dim:
        return size_along(node, axis, channels, unit_widths)

    operators = []
    for node in graph.nodes:
        if node.op != "call_function" or not _output_shape(node):
            continue
        name = _op_name(node)
        if name in _PRODUCTS or name == _ATTENTION:
            sizes = _product_sizes(node, along)
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
    return [n for n in node.all_input_nodes if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)]


def _layer_sizes(
    node: fx.Node, axes: Mapping[fx.Node, int], along: Along, groups: Channels | None, unit_widths: Array
) -> dict[str, Any]:
    kernel, stride = _window(node)
    sources = _activations(node)
    shape, batch = _output_shape(node), _batch_dims(node)
    linear = _op_name(node) == "linear"

    def labelled(of: fx.Node, axis: int) -> list[int]:
        """Other dimensions that follow widths, such as heads."""
        dims = set(range(len(_output_shape(of)))) - _batch_dims(of) - {axis}
        return [d for d in sorted(dims) if along(of, d).units]

    def channels_of(of: fx.Node, axis: int) -> Dim:
        if len(_output_shape(of)) <= axis:
            return Dim(1)
        apart = [] if linear else labelled(of, axis)  # of a linear layer they are repetitions
        return math.prod((along(of, d) for d in apart), start=along(of, axis))

    own = labelled(node, axes[node])
    repeats = math.prod((along(node, d) for d in own), start=Dim(1)) if linear else Dim(1)
    extent = [shape[d] for d in range(len(shape)) if d not in {*batch, axes[node], *own}]
    repeated = math.prod(shape[d] // CAPTURE_BATCH for d in batch if shape[d] > CAPTURE_BATCH)
    extent = [repeated, *extent] if repeated > 1 else extent
    height, width = [0, 0, math.prod(extent[:-1]) if len(extent) > 1 else 0, *extent[-1:]][-2:]
    return {
        "c_in": channels_of(sources[0], axes.get(sources[0], 1)) if sources else Dim(0),
        "c_out": channels_of(node, axes[node]),
        "groups": Dim.of(groups, unit_widths) if groups else repeats * Dim(_groups(node)),
        "height": height if extent else 0,
        "width": width if extent else 0,
        "kernel": kernel,
        "stride": stride,
    }


def _product_sizes(node: fx.Node, along: Along) -> dict[str, Any]:
    """Sizes of a matrix product or of attention; labelled rows count as matrices, for their number follows widths."""
    first = _PRODUCTS.get(_op_name(node), 0)
    x, y = (cast(fx.Node, n) for n in node.args[first : first + 2])
    attends = _op_name(node) == _ATTENTION
    rank_x, rank = len(_output_shape(x)), len(_output_shape(node))
    matrices = Dim(1)
    for axis in range(rank - 2):
        matrices *= along(node, axis) if axis in symbolic_dims(node) or axis else Dim(1)
    rows = along(x, rank_x - 2) if rank_x > 1 else Dim(1)
    matrices = matrices * rows if rows.units else matrices
    has_columns = attends or len(_output_shape(y)) > 1
    return {
        "c_in": along(x, rank_x - 1),
        "c_out": along(node, rank - 1) if has_columns else Dim(1),
        "groups": matrices,
        "width": 0 if rows.units else rows.constant,
        "kernel": _output_shape(y)[-2:-1] if attends else (),
    }


def _channel_axes(graph: fx.Graph) -> dict[fx.Node, int]:
    """Which dimension of every tensor holds its channels: 1 after convolutions, the last one after linear layers."""
    axes: dict[fx.Node, int] = {}
    for node in graph.nodes:
        rank, name = len(_output_shape(node)), _op_name(node) if node.op == "call_function" else ""
        sources = [
            n for n in node.all_input_nodes if n in axes and len(_output_shape(n)) == rank and n.op != "get_attr"
        ]
        if name in _CHANNELS_LAST:
            axes[node] = rank - 1
            for source in node.all_input_nodes[:1]:
                axes[source] = rank - 1
        elif name.startswith(("conv", "batch_norm")) or not sources:
            axes[node] = min(1, max(rank - 1, 0))
        else:
            axes[node] = axes[sources[0]]
    return axes


def _output_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor, or of its first one where it returns several; `()` where it returns none."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return tuple(concrete(first.shape)) if isinstance(first, torch.Tensor) else ()


def _batch_dims(node: fx.Node) -> set[int]:
    """Dimensions whose size is symbolic: the batch, wherever a permutation put it; the first one if none is."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) else value
    assert isinstance(first, torch.Tensor)
    return {d for d, size in enumerate(first.shape) if isinstance(size, torch.SymInt)} or {0}


def _op_name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    name = (
        packet._qualified_op_name.split("::")[-1]
        if packet is not None
        else getattr(node.target, "__name__", str(node.target))
    )
    return name.removesuffix("_")  # in-place operators cost what the others cost


def _groups(node: fx.Node) -> int:
    name = _op_name(node)
    if name in RECURRENT:
        return 2 if node.args[7] else 1  # bidirectional
    return int(node.args[6]) if name.startswith("conv") and len(node.args) > 6 else 1  # type: ignore[arg-type]


def _window(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and stride of a convolution or pooling."""
    name = _op_name(node)
    if name.startswith("conv"):
        kernel = shape_of(node.args[1])[2:]  # type: ignore[arg-type]
        stride = node.args[3] if len(node.args) > 3 else 1
    elif name in ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"):
        kernel = concrete(node.args[1])
        stride = node.args[2] if len(node.args) > 2 and node.args[2] else kernel
    else:
        return (), ()
    as_tuple = lambda v: (v,) if isinstance(v, int) else tuple(v)  # noqa: E731
    kernel, stride = as_tuple(kernel), as_tuple(stride)
    return kernel, stride * (len(kernel) // len(stride))
