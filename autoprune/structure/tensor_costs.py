"""Parameters, bytes and multiplications of a model, as functions of widths and of the treatments of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.sparsity.storage import stored_bytes
from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.geometry import Dim, Operator
from autoprune.treatments import Treatment, rank_of_code, replaces, timed_code

Array = np.ndarray

TensorCost = tuple[str, tuple[int, ...], Callable[[Array], Array]]
"""The name of a cost, the columns of rows that it depends on, and a function from rows `[P, U + L]` to it `[P]`."""


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
    of_each = whole // np.maximum(outputs * inputs, 1)
    of_factors = of_each * ranks * (outputs + inputs)
    return np.where(ranks > 0, of_factors, whole) - of_each * _zeros(dims, column, rows)


def _numbers(dims: Sequence[Dim], gate: Gate, column: int, rows: Array) -> Array:
    """Return how many numbers a weight has that are not zero, or the factors that replace it."""
    ranks, (outputs, inputs) = ranks_in_use(dims, column, rows), _matrix(dims, rows)
    whole = outputs * inputs - _zeros(dims, column, rows)
    return np.where(ranks > 0, ranks * (outputs + inputs), whole) * gate(rows)


def _zeros(dims: Sequence[Dim], column: int, rows: Array) -> Array:
    """Return how many numbers of a weight the pattern of its layer makes zero, `[P]`."""
    codes, sizes = rows[:, column], _sizes(dims, rows)
    zeros = np.zeros(len(rows), dtype=np.int64)
    for code in np.unique(codes[codes != timed_code(codes)]).tolist():
        pattern = Treatment.of_code(code).pattern
        assert pattern is not None
        zeros = np.where(codes == code, np.prod(sizes, axis=0) - pattern.nonzeros(*sizes), zeros)
    return zeros


def _sizes(dims: Sequence[Dim], rows: Array) -> tuple[Array, Array, Array]:
    """Return outputs, inputs and positions of the kernel of a weight, `[P]` each."""
    return dims[0](rows), _numel(dims[1:2], ALWAYS, 1, rows), _numel(dims[2:], ALWAYS, 1, rows)


def _treated_bytes(dims: Sequence[Dim], gate: Gate, each: int, column: int, rows: Array) -> Array:
    """Return the bytes of a weight as its treatment stores it (see `sparsity.storage`)."""
    codes, ranks, (outputs, inputs) = rows[:, column], ranks_in_use(dims, column, rows), _matrix(dims, rows)
    total = each * outputs * inputs
    for code in np.unique(codes[codes > 0]).tolist():
        treatment = Treatment.of_code(code)
        stored = partial(stored_bytes, treatment.precision, each)
        factors = stored(None, ranks, inputs) + stored(None, outputs, ranks)
        treated = np.where(ranks > 0, factors, stored(treatment.pattern, *_sizes(dims, rows)))
        total = np.where(codes == code, treated, total)
    return total * gate(rows)


def _whole_beside(whole: Callable[[Array], Array], column: int, rows: Array) -> Array:
    """Return the bytes of the whole weight where the layer that shares it is treated; zeros both of them have."""
    return np.where(timed_code(rows[:, column]) > 0, whole(rows), 0)


def _numel(dims: Sequence[Dim], gate: Gate, each: int, widths: Array) -> Array:
    total = each * gate(widths).astype(np.int64)
    for dim in dims:
        total *= dim(widths)
    return total
