"""Parameters, bytes and multiplications of a model, as functions of widths and of the treatments of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.geometry import Dim, Operator
from autoprune.treatments import Treatment, rank_of_code, replaces

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
    operators: Sequence[Operator],
) -> Iterator[TensorCost]:
    """Yield what every tensor costs; tied ones cost once.

    A weight that an embedding reads, too, stays whole beside the treated one.

    Args:
        tensors: parameters, buffers and constants by name.
        canonical: first name of the tensor behind every name.
        dims: sizes of the dimensions of every tensor.
        gates: of the tensors that go with removed branches.
        layers: column of rows that holds the treatment, by the name of the layer's weight.
        operators: of the model.

    Yields:
        "params" or "bytes", with the columns that it depends on and its amount.
    """
    readers: dict[str, set[str]] = {}
    for operator in operators:
        for name in operator.parameters:
            readers.setdefault(canonical[name], set()).add(operator.op)
    for name, tensor in tensors.items():
        if canonical[name] != name:
            continue
        gate = gates.get(name, ALWAYS)
        units = tuple(sorted({*gate.units, *(unit for dim in dims[name] for unit in dim.units)}))
        each, column = tensor.element_size(), layers.get(name)
        columns = units if column is None else (*units, column)
        if isinstance(tensor, nn.Parameter):
            count = partial(_numel, dims[name], gate, 1)
            yield "params", columns, count if column is None else partial(_numbers, dims[name], gate, column)
        if torch.is_floating_point(tensor):
            whole = partial(_numel, dims[name], gate, each)
            yield "bytes", columns, whole if column is None else partial(_treated_bytes, dims[name], gate, each, column)
            if column is not None and len(readers.get(name, ())) > 1:
                yield "bytes", columns, partial(_whole_beside, whole, column)


def mac_costs(
    operators: Sequence[Operator],
    canonical: Mapping[str, str],
    dims: Mapping[str, Sequence[Dim]],
    layers: Mapping[str, int],
) -> Iterator[TensorCost]:
    """Yield "macs", columns and multiply-accumulates for one example of every operator (see `tensor_costs`)."""
    for operator in operators:
        weight = next((canonical[name] for name in operator.parameters if canonical[name] in layers), None)
        if weight is None:
            yield "macs", operator.units, operator.macs
        else:
            units = {*operator.units, *(unit for dim in dims[weight] for unit in dim.units)}
            macs = partial(_macs_of_factors, operator, dims[weight], layers[weight])
            yield "macs", (*sorted(units), layers[weight]), macs


def ranks_in_use(dims: Sequence[Dim], column: int, rows: Array) -> Array:
    """Return the rank of a layer, `[P]`; 0 where its weight is whole (see `treatments.replaces`)."""
    ranks, (outputs, inputs) = rank_of_code(rows[:, column]), _matrix(dims, rows)
    return np.where(replaces(ranks, outputs, inputs), ranks, 0)


def _matrix(dims: Sequence[Dim], rows: Array) -> tuple[Array, Array]:
    """Return the rows and columns, `[P]` each, of a weight as a matrix."""
    return dims[0](rows), _numel(dims[1:], ALWAYS, 1, rows)


def _macs_of_factors(operator: Operator, dims: Sequence[Dim], column: int, rows: Array) -> Array:
    ranks, (outputs, inputs), whole = ranks_in_use(dims, column, rows), _matrix(dims, rows), operator.macs(rows)
    of_factors = whole // np.maximum(outputs * inputs, 1) * ranks * (outputs + inputs)
    return np.where(ranks > 0, of_factors, whole)


def _numbers(dims: Sequence[Dim], gate: Gate, column: int, rows: Array) -> Array:
    """Return how many numbers a weight has, or the factors that replace it."""
    ranks, (outputs, inputs) = ranks_in_use(dims, column, rows), _matrix(dims, rows)
    return np.where(ranks > 0, ranks * (outputs + inputs), outputs * inputs) * gate(rows)


def _treated_bytes(dims: Sequence[Dim], gate: Gate, each: int, column: int, rows: Array) -> Array:
    """Return the bytes of a weight as its treatment stores it: 1 or half a byte a number, and the scales.

    In int8, every output channel has a scale in fp32; with `w8` and `w4`, every block of its inputs has one.
    """
    codes, ranks, (outputs, inputs) = rows[:, column], ranks_in_use(dims, column, rows), _matrix(dims, rows)
    total = each * outputs * inputs
    for code in np.unique(codes[codes > 0]).tolist():
        stored = partial(_stored_bytes, Treatment.of_code(code).precision, each)
        factors = stored(ranks * inputs, ranks) + stored(outputs * ranks, outputs)
        treated = np.where(ranks > 0, factors, stored(outputs * inputs, outputs))
        total = np.where(codes == code, treated, total)
    return total * gate(rows)


def _whole_beside(whole: Callable[[Array], Array], column: int, rows: Array) -> Array:
    """Return the bytes of the whole weight where the layer that shares it is treated."""
    return np.where(rows[:, column] > 0, whole(rows), 0)


def _stored_bytes(precision: str, each: int, numbers: Array, outputs: Array) -> Array:
    """Return the bytes of weights with some numbers and output channels, `[P]`; `each` are those of one in fp32."""
    if precision == "fp32":
        return each * numbers
    if precision not in _BLOCK_BYTES:
        return numbers + _SCALE_BYTES * outputs
    blocks = -(-numbers // (np.maximum(outputs, 1) * _BLOCK)) * outputs
    return (_BLOCK_BYTES[precision] + _SCALE_BYTES) * blocks


def _numel(dims: Sequence[Dim], gate: Gate, each: int, widths: Array) -> Array:
    total = each * gate(widths).astype(np.int64)
    for dim in dims:
        total *= dim(widths)
    return total
