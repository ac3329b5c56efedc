"""The proof of a cut model: run at the example's size and at a second one, and blamed on the units that break it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoprune.records import Policy
from autoprune.structure.input_sizes import at_second
from autoprune.structure.module import GraphModel
from autoprune.structure.proof import TOLERANCE, is_large, largest_difference
from autoprune.structure.units import Site

if TYPE_CHECKING:
    from autoprune.structure.structure import Structure

Array = np.ndarray


def proven_difference(
    structure: Structure, masks: Mapping[Site, Array], removed: AbstractSet[int], shrunk: GraphModel
) -> float:
    """Return the difference of the proof; sizes of inputs at which it fails alone become fixed in `shrunk`."""
    other = at_second(structure.sizes, structure.example_inputs)
    if other is None:
        return difference(structure, masks, removed, shrunk)
    largest = difference(structure, masks, removed, shrunk, other)
    if largest <= TOLERANCE and is_large(structure.example_inputs):
        return largest  # a size that was written down would show at the second size, and each proof takes long
    if largest > TOLERANCE:
        why = "the cut model computes something else at another size"
        shrunk.fix_sizes(structure.sizes.with_fixed(set(structure.sizes.symbols()), why))
    return difference(structure, masks, removed, shrunk)


def difference(
    structure: Structure,
    masks: Mapping[Site, Array],
    removed: AbstractSet[int],
    shrunk: GraphModel,
    inputs: Sequence[torch.Tensor] | None = None,
) -> float:
    """Return the largest relative difference between a cut model and the dense one with the channels zeroed."""
    absent = {training: structure.branches.absent(c.mode, removed) for training, c in structure.captures.items()}
    inputs = inputs or structure.example_inputs
    captures, tensors = structure.captures, structure.tensors
    return largest_difference(captures, tensors, shrunk, masks, structure.canonical, inputs, absent)


def culprits(structure: Structure, policy: Policy, keep: Mapping[str, Array] | None) -> list[str]:
    """Return the units that break the proof when cut alone; all units that are cut, when none does."""
    narrow = [unit.name for unit in structure.units if policy.widths[unit.name] < unit.width]
    guilty = []
    for name in narrow:
        alone = Policy(space_id=policy.space_id, widths=structure.full_widths | {name: policy.widths[name]})
        masks = structure.masks(alone, {name: keep[name]} if keep and name in keep else None)
        removed = structure.removed(alone)
        if difference(structure, masks, removed, structure.cut(masks, removed)) > TOLERANCE:
            guilty.append(name)
    return guilty or narrow
