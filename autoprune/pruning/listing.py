"""`units`: a table of everything that can be pruned in a model, and of all dimensions that cannot, with the reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from autoprune.model.acceptance import ExampleInputs
from autoprune.model.outputs import Selector
from autoprune.structure import Structure, analyze

COLUMNS = ("name", "kind", "width", "removable", "params_share", "macs_share", "members", "reason")


def units(model: nn.Module, example_inputs: ExampleInputs, *, outputs: Selector = None) -> pd.DataFrame:
    """List the units of a model, in order, and then the dimensions that keep their width.

    Args:
        model: any module that `torch.export` can trace; it is not changed.
        example_inputs: tensors with the batch dimension first, in the order of `forward` or by its keywords.
        outputs: the part of the model's outputs that counts, as in `prune`.

    Returns:
        One row for each unit or fixed dimension. `params_share` and `macs_share` are the shares (0 to 1) of the model's
        parameters and multiply-accumulates that go when the unit has a single channel; shares of different units
        overlap. `members` are the parameter dimensions that the unit cuts, `weight[dim]`, with ` xK` where each channel
        has K indices. A fixed dimension has the `kind` "fixed" and a `reason`; so has a dimension of an input that must
        have the example's size, with the `kind` "input size".

    Raises:
        StructureError: the model cannot be traced or has nothing to prune.

    Example:
        >>> import autoprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> table = autoprune.units(model, torch.randn(1, 4))
        >>> table["members"].tolist()
        ['0.weight[0], 0.bias[0], 2.weight[1]', '0.weight[1]', '2.weight[0]', 'input[1]']
        >>> table["reason"].tolist()
        ['', 'reads a fixed input', 'an output of the model', 'a weight fixes it']
    """
    structure = analyze(model, example_inputs, outputs)
    rows = [*_unit_rows(structure), *_fixed_rows(structure), *_size_rows(structure)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shares(structure: Structure) -> dict[str, tuple[float, float]]:
    """Return the shares of parameters and of multiply-accumulates that go when each unit alone has a single channel."""
    full = np.array([[unit.width for unit in structure.units]])
    widths = np.repeat(full, len(structure.units), axis=0)
    np.fill_diagonal(widths, 1)
    params, macs = [1 - cost(widths) / np.maximum(cost(full), 1) for cost in (structure.params, structure.macs)]
    return {unit.name: (float(params[n]), float(macs[n])) for n, unit in enumerate(structure.units)}


def _unit_rows(structure: Structure) -> list[tuple[object, ...]]:
    of_units = shares(structure)
    return [
        (
            unit.name,
            unit.kind,
            unit.width,
            unit.removable,
            *of_units[unit.name],
            ", ".join(
                f"{m.parameter}[{m.dim}]" + (f" x{m.per_channel}" if m.per_channel > 1 else "") for m in unit.members
            ),
            "",
        )
        for unit in structure.units
    ]


def _fixed_rows(structure: Structure) -> list[tuple[object, ...]]:
    return [
        (fixed.parameter, "fixed", fixed.size, False, np.nan, np.nan, f"{fixed.parameter}[{fixed.dim}]", fixed.reason)
        for fixed in structure.fixed
    ]


def _size_rows(structure: Structure) -> list[tuple[object, ...]]:
    return [
        (fixed.input, "input size", fixed.size, False, np.nan, np.nan, f"{fixed.input}[{fixed.dim}]", fixed.reason)
        for fixed in structure.fixed_sizes
    ]
