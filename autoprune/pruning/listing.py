"""`units` = what can be pruned in a model, as a table: what each unit is worth, what keeps its width, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from autoprune.model.acceptance import ExampleInputs
from autoprune.structure import Structure, analyze

COLUMNS = ("name", "kind", "width", "removable", "params_share", "macs_share", "members", "reason")


def units(model: nn.Module, example_inputs: ExampleInputs) -> pd.DataFrame:
    """Units of a model, in order, then the dimensions that keep their width (`kind` "fixed", with the `reason`).

    `params_share` and `macs_share` are the shares of the model's parameters and multiply-accumulates that go when a
    single channel of the unit is left; shares of different units overlap. `members` are the parameter dimensions that
    a unit cuts, `weight[dim]`, with ` xK` where each channel is K indices.
    Raises `StructureError` for a model that cannot be traced or has nothing to prune.
    """
    structure = analyze(model, example_inputs)
    rows = [*_unit_rows(structure), *_fixed_rows(structure)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shares(structure: Structure) -> dict[str, tuple[float, float]]:
    """Shares of parameters and of multiply-accumulates that go when each unit alone has a single channel."""
    full = np.array([[unit.width for unit in structure.units]])
    widths = np.repeat(full, len(structure.units), axis=0)
    np.fill_diagonal(widths, 1)
    found = [1 - cost(widths) / np.maximum(cost(full), 1) for cost in (structure.params, structure.macs)]
    return {unit.name: (float(found[0][n]), float(found[1][n])) for n, unit in enumerate(structure.units)}


def _unit_rows(structure: Structure) -> list[tuple[object, ...]]:
    found = shares(structure)
    return [
        (
            unit.name,
            unit.kind,
            unit.width,
            unit.removable,
            *found[unit.name],
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
