"""Exact arithmetic of sizes: every dimension as a polynomial in the widths of units, and the cost of an operator.

A dimension that joins 8 channels of unit 0 (full width 8) with 5 fixed channels has the size `5 + 1 * w0`. Rows of an
attention projection with 4 heads (unit 1) of 16 channels (unit 2) have the size `1 * w1 * w2`: a row lives while both
its head and its channel of the head do. `Dim` holds such a polynomial and evaluates it for many policies at once:

>>> import numpy as np
>>> Dim(5, ((1, (0,)),))(np.array([[8], [3]]))
array([13,  8])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.nodes import concrete, symbolic_dims
from autoprune.structure.units import Channels, Site

Array = np.ndarray
CAPTURE_BATCH = 3
Along = Callable[[fx.Node, int], "Dim"]
"""A function that returns the size of one dimension of a node."""


@dataclass(frozen=True)
class Dim:
    """Exact size of one dimension: `constant + sum(coefficient * product of the widths of some units)`.

    `terms` holds `(coefficient, indices of units)`. A constant dimension has no terms.
    """

    constant: int
    terms: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that the size depends on, ascending."""
        return tuple(sorted({u for _, units in self.terms for u in units}))

    def __call__(self, widths: Array) -> Array:
        """Return the sizes `[P]` (int64) for widths `[P, U]` (policies, units)."""
        total = np.full(len(widths), self.constant, dtype=np.int64)
        for coefficient, units in self.terms:
            total += coefficient * np.prod(widths[:, list(units)], axis=1, dtype=np.int64)
        return total

    def __mul__(self, other: Dim) -> Dim:
        """Return the size of two dimensions merged into one."""
        mine, others = ((self.constant, ()), *self.terms), ((other.constant, ()), *other.terms)
        products = [(a * b, tuple(sorted((*u, *v)))) for a, u in mine for b, v in others if a * b]
        constant = sum(c for c, units in products if not units)
        return Dim(constant, tuple((c, units) for c, units in products if units))

    def per_example(self) -> Dim:
        """Return the size for one example of a dimension that was captured with the batch in it."""
        return Dim(self.constant // CAPTURE_BATCH, tuple((c // CAPTURE_BATCH, units) for c, units in self.terms))

    @classmethod
    def of(cls, channels: Channels, unit_widths: Array) -> Dim:
        """Return the polynomial of a dimension's living indices; `unit_widths` `[U]` are the full widths."""
        names = sorted(channels.of_unit)
        if not names:
            return cls(channels.size)
        belongs = np.stack([channels.of_unit[u] >= 0 for u in names], axis=1)
        patterns, counts = np.unique(belongs, axis=0, return_counts=True)
        constant, terms = 0, []
        for pattern, count in zip(patterns, counts, strict=True):
            units = tuple(u for u, inside in zip(names, pattern, strict=True) if inside)
            if units:
                terms.append((int(count) // int(np.prod(unit_widths[list(units)])), units))
            else:
                constant = int(count)
        return cls(constant, tuple(terms))


def size_along(node: fx.Node, axis: int, channels: Mapping[Site, Channels], unit_widths: Array) -> Dim:
    """Return the size of one dimension of a node of the evaluation graph, for one example."""
    of_axis = channels.get(("eval", node.name, axis))
    size = Dim.of(of_axis, unit_widths) if of_axis else Dim(output_shape(node)[axis])
    return size.per_example() if axis in symbolic_dims(node) else size


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Number of gates (blocks of rows in each weight) of recurrent layers."""

ATTENTION = "scaled_dot_product_attention"
PRODUCTS = {"matmul": 0, "bmm": 0, "mm": 0, "addmm": 1, "baddbmm": 1, "_grouped_mm": 0, "grouped_mm_fallback": 0}
"""Matrix products, and the position of the first of their two factors among the arguments."""
EINSUM = "einsum"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the evaluation graph that costs time, with its sizes for one example.

    `out_rows` and `out_columns` are the spatial sizes of the output. What the size fields mean depends on the operator:

    - Images: `out_rows`, `out_columns`. Sequences: `out_rows` 0 and their length as `out_columns`. Windows and
      other leading dimensions count as `out_rows`.
    - Recurrent layers: `groups` is the number of directions, `c_out` the hidden sizes of all directions together.
    - Attention: `groups` is the number of heads, `out_columns` the length of queries, `kernel` the length of keys, and
      `c_in` and `c_out` are the sizes of one head.
    - Matrix products: `groups` is the number of matrices, `out_columns` the rows, `c_in` the inner size.
    - Linear layers that mix tokens: `groups` is the number of channels.
    - Einsums: `c_in` is the product of the sizes that are summed over, `c_out` of the sizes that are kept.
    - Transposed convolutions: `positions` is the number of places of the input, where they multiply (else 0).

    `inputs` are the names of the nodes whose activations it reads, `parameters` the state-dict names that it reads, and
    `gate` says at which widths it runs.
    """

    node: str
    op: str
    inputs: tuple[str, ...]
    c_in: Dim
    c_out: Dim
    groups: Dim
    out_rows: int = 0
    out_columns: int = 0
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    positions: int = 0
    parameters: tuple[str, ...] = ()
    gate: Gate = ALWAYS

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that the operator's channel counts, or its gate, depend on, ascending."""
        return tuple(sorted({*self.c_in.units, *self.c_out.units, *self.groups.units, *self.gate.units}))

    @property
    def costs(self) -> list[object]:
        """Everything that the operator's cost depends on, as a plain JSON value, without its name and its place."""
        sizes = [[dim.constant, dim.terms] for dim in (self.c_in, self.c_out, self.groups)]
        fixed = [self.out_rows, self.out_columns, self.kernel, self.stride, self.dilation, self.positions]
        return [self.op, *sizes, *fixed]

    def macs(self, widths: Array) -> Array:
        """Return the multiply-accumulates for one example, int64 `[P]` for widths `[P, U]`.

        Convolutions, linear and recurrent layers, matrix products and attention count; all other operators have 0.
        """
        if self.op in (*PRODUCTS, ATTENTION, EINSUM):
            attends = self.op == ATTENTION
            wide = self.c_in(widths) + self.c_out(widths) if attends else self.c_in(widths) * self.c_out(widths)
            places = max(self.out_columns, 1) * int(np.prod(self.kernel or (1,)))
            return places * self.groups(widths) * wide * self.gate(widths)
        if self.op in RECURRENT:
            reads = self.c_in(widths) + self.c_out(widths) // self.groups(widths)
            return RECURRENT[self.op] * self.out_columns * self.c_out(widths) * reads * self.gate(widths)
        if self.op == "linear":
            places = self.groups(widths) * max(self.out_rows, 1) * max(self.out_columns, 1)
            return places * self.c_out(widths) * self.c_in(widths) * self.gate(widths)
        if self.op not in _CONVOLUTIONS:
            return np.zeros(len(widths), dtype=np.int64)
        positions = self.positions or max(self.out_rows, 1) * max(self.out_columns, 1)
        macs = positions * int(np.prod(self.kernel or (1,))) * self.c_out(widths) * self.c_in(widths)
        return macs // np.maximum(self.groups(widths), 1) * self.gate(widths)


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor, or of the first of several; `()` for a node that returns none."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return tuple(concrete(first.shape)) if isinstance(first, torch.Tensor) else ()
