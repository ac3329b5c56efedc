"""Parameters and bytes of a model's tensors, as functions of the widths of its units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from autoprune.structure.gates import ALWAYS, Gate
from autoprune.structure.geometry import Dim

Array = np.ndarray


def tensor_costs(
    tensors: Mapping[str, torch.Tensor],
    canonical: Mapping[str, str],
    dims: Mapping[str, Sequence[Dim]],
    gates: Mapping[str, Gate],
) -> Iterator[tuple[str, tuple[int, ...], Callable[[Array], Array]]]:
    """Yield what every tensor costs; tied ones cost once.

    Args:
        tensors: parameters, buffers and constants by name.
        canonical: first name of the tensor behind every name.
        dims: sizes of the dimensions of every tensor.
        gates: of the tensors that go with removed branches.

    Yields:
        The cost ("params" or "bytes"), the indices of the units that it depends on, and a function from widths `[P, U]`
        to its amount `[P]`.
    """
    for name, tensor in tensors.items():
        if canonical[name] != name:
            continue
        gate = gates.get(name, ALWAYS)
        units = tuple(sorted({*gate.units, *(unit for dim in dims[name] for unit in dim.units)}))
        if isinstance(tensor, nn.Parameter):
            yield "params", units, partial(_numel, dims[name], gate, 1)
        if torch.is_floating_point(tensor):
            yield "bytes", units, partial(_numel, dims[name], gate, tensor.element_size())


def _numel(dims: Sequence[Dim], gate: Gate, each: int, widths: Array) -> Array:
    total = each * gate(widths).astype(np.int64)
    for dim in dims:
        total *= dim(widths)
    return total
