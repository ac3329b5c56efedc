"""Parameters and bytes of a model's tensors, as functions of the widths of its units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.geometry import Dim
from autoprune.treatments import Treatment

Array = np.ndarray

TensorCost = tuple[str, tuple[int, ...], Callable[[Array], Array]]
"""The name of a cost, the columns of rows that it depends on, and a function from rows `[P, U + L]` to it `[P]`."""

_SCALE_BYTES = 4
_BLOCK = 32
"""Inputs of an output channel that share a scale where weights alone are rounded; the last block is filled up."""

_BLOCK_BYTES = {"w8": _BLOCK, "w4": _BLOCK // 2}


def tensor_costs(
    tensors: Mapping[str, torch.Tensor],
    canonical: Mapping[str, str],
    dims: Mapping[str, Sequence[Dim]],
    gates: Mapping[str, Gate],
    layers: Mapping[str, int],
) -> Iterator[TensorCost]:
    """Yield what every tensor costs; tied ones cost once.

    Args:
        tensors: parameters, buffers and constants by name.
        canonical: first name of the tensor behind every name.
        dims: sizes of the dimensions of every tensor.
        gates: of the tensors that go with removed branches.
        layers: column of rows that holds the treatment, by the name of the layer's weight.

    Yields:
        "params" or "bytes", with the columns that it depends on and its amount.
    """
    for name, tensor in tensors.items():
        if canonical[name] != name:
            continue
        gate = gates.get(name, ALWAYS)
        units = tuple(sorted({*gate.units, *(unit for dim in dims[name] for unit in dim.units)}))
        if isinstance(tensor, nn.Parameter):
            yield "params", units, partial(_numel, dims[name], gate, 1)
        if torch.is_floating_point(tensor):
            each, column = tensor.element_size(), layers.get(name)
            if column is None:
                yield "bytes", units, partial(_numel, dims[name], gate, each)
            else:
                yield "bytes", (*units, column), partial(_treated_bytes, dims[name], gate, each, column)


def _treated_bytes(dims: Sequence[Dim], gate: Gate, each: int, column: int, rows: Array) -> Array:
    """Return the bytes of a weight as its treatment stores it: 1 or half a byte a number, and the scales.

    In int8, every output channel has a scale in fp32; with `w8` and `w4`, every block of its inputs has one.
    """
    codes, numbers = rows[:, column], _numel(dims, gate, 1, rows)
    outputs = dims[0](rows) * gate(rows)
    total = each * numbers
    for code in np.unique(codes[codes > 0]).tolist():
        total = np.where(codes == code, _stored_bytes(Treatment.of_code(code).precision, numbers, outputs), total)
    return total


def _stored_bytes(precision: str, numbers: Array, outputs: Array) -> Array:
    """Return the bytes of weights with some numbers and output channels, `[P]`, in a precision."""
    if precision not in _BLOCK_BYTES:
        return numbers + _SCALE_BYTES * outputs
    blocks = -(-numbers // (np.maximum(outputs, 1) * _BLOCK)) * outputs
    return (_BLOCK_BYTES[precision] + _SCALE_BYTES) * blocks


def _numel(dims: Sequence[Dim], gate: Gate, each: int, widths: Array) -> Array:
    total = each * gate(widths).astype(np.int64)
    for dim in dims:
        total *= dim(widths)
    return total
