"""Parameters, bytes and multiplications of a model, as functions of widths and of the treatments of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.sparsity.patterns import Pattern
from autoprune.sparsity.storage import stored_bytes
from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.geometry import Dim, Operator
from autoprune.treatments import Layer, Treatment, rank_of_code, replaces, timed_code

Array = np.ndarray

TensorCost = tuple[str, tuple[int, ...], Callable[[Array], Array]]
"""The name of a cost, the columns of rows that it depends on, and a function from rows `[P, U + L]` to it `[P]`."""


@dataclass(frozen=True, kw_only=True)
class TreatedWeight:
    """A weight of a treated layer, and the column of rows that holds the layer's treatment."""

    name: str
    layer: Layer
    column: int

    def pattern(self, code: int) -> Pattern | None:
        """Return the pattern of the weight's zeros where the layer's treatment has a code."""
        return self.layer.pattern_of(self.name, Treatment.of_code(code).pattern)


def tensor_costs(
    tensors: Mapping[str, torch.Tensor],
    canonical: Mapping[str, str],
    dims: Mapping[str, Sequence[Dim]],
    gates: Mapping[str, Gate],
    treated: Mapping[str, TreatedWeight],
    operators: Sequence[Operator],
) -> Iterator[TensorCost]:
    """Yield what every tensor costs; tied ones cost once.

    A weight that an embedding reads, too, stays whole beside the treated one.

    Args:
        tensors: parameters, buffers and constants by name.
        canonical: first name of the tensor behind every name.
        dims: sizes of the dimensions of every tensor.
        gates: of the tensors that go with removed branches.
        treated: weights of treated layers by name.
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
        each, weight = tensor.element_size(), treated.get(name)
        columns = units if weight is None else (*units, weight.column)
        if isinstance(tensor, nn.Parameter):
            count = partial(_numel, dims[name], gate, 1)
            yield "params", columns, count if weight is None else partial(_numbers, dims[name], gate, weight)
        if torch.is_floating_point(tensor):
            whole = partial(_numel, dims[name], gate, each)
            yield "bytes", columns, whole if weight is None else partial(_treated_bytes, dims[name], gate, each, weight)
            if weight is not None and len(readers.get(name, ())) > 1:
                yield "bytes", columns, partial(_whole_beside, whole, weight.column)


def mac_costs(
    operators: Sequence[Operator],
    canonical: Mapping[str, str],
    dims: Mapping[str, Sequence[Dim]],
    treated: Mapping[str, TreatedWeight],
) -> Iterator[TensorCost]:
    """Yield "macs", columns and multiply-accumulates for one example of every operator (see `tensor_costs`)."""
    for operator in operators:
        weights = [treated[canonical[name]] for name in operator.parameters if canonical[name] in treated]
        if not weights:
            yield "macs", operator.units, operator.macs
        else:
            units = {*operator.units, *(unit for each in weights for dim in dims[each.name] for unit in dim.units)}
            macs = partial(_treated_macs, operator, [(each, dims[each.name]) for each in weights])
            yield "macs", (*sorted(units), weights[0].column), macs


def ranks_in_use(dims: Sequence[Dim], column: int, rows: Array) -> Array:
    """Return the rank of a layer, `[P]`; 0 where its weight is whole (see `treatments.replaces`)."""
    ranks, (outputs, inputs) = rank_of_code(rows[:, column]), _matrix(dims, rows)
    return np.where(replaces(ranks, outputs, inputs), ranks, 0)


def _matrix(dims: Sequence[Dim], rows: Array) -> tuple[Array, Array]:
    """Return the rows and columns, `[P]` each, of a weight as a matrix."""
    return dims[0](rows), _numel(dims[1:], ALWAYS, 1, rows)


def _treated_macs(operator: Operator, weights: Sequence[tuple[TreatedWeight, Sequence[Dim]]], rows: Array) -> Array:
    (first, dims), whole = weights[0], operator.macs(rows)
    ranks, (outputs, inputs) = ranks_in_use(dims, first.column, rows), _matrix(dims, rows)
    numbers = sum(np.prod(_matrix(each, rows), axis=0) for _, each in weights)
    of_each = whole // np.maximum(numbers, 1)
    of_factors = of_each * ranks * (outputs + inputs)
    return np.where(ranks > 0, of_factors, whole) - of_each * sum(
        _zeros(each, weight, rows) for weight, each in weights
    )


def _numbers(dims: Sequence[Dim], gate: Gate, weight: TreatedWeight, rows: Array) -> Array:
    """Return how many numbers a weight has that are not zero, or the factors that replace it."""
    ranks, (outputs, inputs) = ranks_in_use(dims, weight.column, rows), _matrix(dims, rows)
    whole = outputs * inputs - _zeros(dims, weight, rows)
    return np.where(ranks > 0, ranks * (outputs + inputs), whole) * gate(rows)


def _zeros(dims: Sequence[Dim], weight: TreatedWeight, rows: Array) -> Array:
    """Return how many numbers of a weight the pattern of its layer makes zero, `[P]`."""
    codes, sizes = rows[:, weight.column], _sizes(dims, rows)
    zeros = np.zeros(len(rows), dtype=np.int64)
    for code in np.unique(codes[codes != timed_code(codes)]).tolist():
        pattern = weight.pattern(code)
        assert pattern is not None
        zeros = np.where(codes == code, np.prod(sizes, axis=0) - pattern.nonzeros(*sizes), zeros)
    return zeros


def _sizes(dims: Sequence[Dim], rows: Array) -> tuple[Array, Array, Array]:
    """Return outputs, inputs and positions of the kernel of a weight, `[P]` each."""
    return dims[0](rows), _numel(dims[1:2], ALWAYS, 1, rows), _numel(dims[2:], ALWAYS, 1, rows)


def _treated_bytes(dims: Sequence[Dim], gate: Gate, each: int, weight: TreatedWeight, rows: Array) -> Array:
    """Return the bytes of a weight as its treatment stores it (see `sparsity.storage`)."""
    column, (outputs, inputs) = weight.column, _matrix(dims, rows)
    codes, ranks = rows[:, column], ranks_in_use(dims, column, rows)
    total = each * outputs * inputs
    for code in np.unique(codes[codes > 0]).tolist():
        stored = partial(stored_bytes, Treatment.of_code(code).precision, each)
        factors = stored(None, ranks, inputs) + stored(None, outputs, ranks)
        treated = np.where(ranks > 0, factors, stored(weight.pattern(code), *_sizes(dims, rows)))
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
