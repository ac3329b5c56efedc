"""The description by which a sparse model that lost no channel is saved: every unit has its full width."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from autoprune.structure import PrunedTo, analyze


def whole_cut(model: nn.Module) -> PrunedTo | None:
    """Return the cut of a model of `sparsify` with all its channels; `None` for another model, or without data.

    Raises:
        StructureError: the model cannot be traced.
    """
    about = model.__dict__.get("sparse_to")
    if about is None or not about.example_inputs:
        return None
    structure = analyze(model, about.example_inputs, about.outputs)
    pruned_to = structure.shrink(structure.dense_policy(), prove=False).pruned_to
    assert pruned_to is not None
    return replace(pruned_to, form="native")
