"""Exact arithmetic of sizes: every dimension as a polynomial in the unit widths, and what an operator costs."""

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
    size = Dim.of(found, unit_widths) if found else Dim(output_shape(node)[axis])
    return size.per_example() if axis in symbolic_dims(node) else size


_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates of recurrent layers."""

ATTENTION = "scaled_dot_product_attention"
PRODUCTS = {"matmul": 0, "bmm": 0, "mm": 0, "addmm": 1, "baddbmm": 1}
"""Matrix products, and where their two factors begin among the arguments."""
EINSUM = "einsum"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the evaluation graph that costs time. Spatial sizes are those of the output, for one example.

    Sequences have `height` 0 and their length as `width`; windows and other leading dimensions count as `height`.
    Recurrent layers have their number of directions as `groups` and the hidden sizes of all of them as `c_out`.
    Attention has its heads as `groups`, the length of queries as `width`, that of keys as `kernel`, and the sizes of a
    head as channels; a matrix product has its matrices as `groups`, its rows as `width` and its inner size as `c_in`; a
    linear layer that mixes tokens has its channels as `groups`; an einsum has as `c_in` what it sums over and as
    `c_out` what it keeps. `positions` are those of the input, where a transposed convolution multiplies. `gate` is when
    it runs.
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
    dilation: tuple[int, ...] = ()
    positions: int = 0
    parameters: tuple[str, ...] = ()
    gate: Gate = ALWAYS

    @property
    def units(self) -> tuple[int, ...]:
        """Indices of the units that its channel counts, or whether it runs, depend on."""
        return tuple(sorted({*self.c_in.units, *self.c_out.units, *self.groups.units, *self.gate.units}))

    @property
    def costs(self) -> list[object]:
        """Everything that its cost depends on, as a plain JSON value; its name and its place are left out."""
        sizes = [[dim.constant, dim.terms] for dim in (self.c_in, self.c_out, self.groups)]
        return [self.op, *sizes, self.height, self.width, self.kernel, self.stride, self.dilation, self.positions]

    def macs(self, widths: Array) -> Array:
        """Multiply-accumulates for one example, `[P]`: convolutions, linear layers, products, attention; else 0."""
        if self.op in (*PRODUCTS, ATTENTION, EINSUM):
            attends = self.op == ATTENTION
            wide = self.c_in(widths) + self.c_out(widths) if attends else self.c_in(widths) * self.c_out(widths)
            places = max(self.width, 1) * int(np.prod(self.kernel or (1,)))
            return places * self.groups(widths) * wide * self.gate(widths)
        if self.op in RECURRENT:
            reads = self.c_in(widths) + self.c_out(widths) // self.groups(widths)
            return RECURRENT[self.op] * self.width * self.c_out(widths) * reads * self.gate(widths)
        if self.op == "linear":
            places = self.groups(widths) * max(self.height, 1) * max(self.width, 1)
            return places * self.c_out(widths) * self.c_in(widths) * self.gate(widths)
        if self.op not in _CONVOLUTIONS:
            return np.zeros(len(widths), dtype=np.int64)
        positions = self.positions or max(self.height, 1) * max(self.width, 1)
        macs = positions * int(np.prod(self.kernel or (1,))) * self.c_out(widths) * self.c_in(widths)
        return macs // np.maximum(self.groups(widths), 1) * self.gate(widths)


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor, or of its first one where it returns several; `()` where it returns none."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return tuple(concrete(first.shape)) if isinstance(first, torch.Tensor) else ()
