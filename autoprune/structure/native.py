"""The form of a pruned model: the user's own classes at pruned sizes where these are proven, else the graph module.

A graph module loses what an export drops: backward passes of own autograd functions, backward hooks, modes of
gradients. A copy of the user's own module keeps it, but may hold dense sizes. So the copy is proven: on random
parameters and inputs its outputs and the gradients of its parameters equal those of the graph module, which is itself
proven against the dense model, in both modes and at two sizes of inputs.

Where gradients alone differ, the dense model decides which form is wrong. The graph module is wrong for all parameters
whose gradients already differ with nothing cut; for these the copy is compared with the dense model whose removed
entries are zero, where that has equal outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import StructureError
from autoprune.records import Policy
from autoprune.structure.low_rank_form import merged, with_sequences
from autoprune.structure.module import GraphModel, PrunedTo
from autoprune.structure.native_maker import Maker
from autoprune.structure.structure import Structure

_INSTEAD = "Use the graph module (native=False): it trains, exports, compiles and has the same parameter names."


@dataclass(frozen=True, kw_only=True)
class ModelForm:
    """The form that pruned models of a structure have.

    - `name`: "native" for the user's own classes, "graph" for a `GraphModel`.
    - `reason`: why it is a graph.
    - `notes`: what a user of this form should know.
    """

    name: str
    reason: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelForm:
        """Return the form that `dataclasses.asdict` wrote."""
        return cls(name=value["name"], reason=value["reason"], notes=tuple(value["notes"]))

    def __str__(self) -> str:
        """Return the form and its reason, as a part of a sentence."""
        return "own classes" if self.name == "native" else f"graph module, because {self.reason}"


def form_at_half(structure: Structure) -> tuple[ModelForm, nn.Module]:
    """Return the form of pruned models, and a model in it that keeps random halves of all units.

    Raises:
        StructureError: neither form computes the gradients of the model.
    """
    widths = {unit.name: max(1, unit.width // 2) for unit in structure.units}
    rng = np.random.default_rng(0)
    keep = {u.name: np.sort(rng.choice(u.width, widths[u.name], replace=False)) for u in structure.units}
    small = in_form(structure, structure.shrink(Policy(space_id="", widths=widths), keep, prove=False))
    about: PrunedTo = small.__dict__["pruned_to"]
    return ModelForm(name=about.form, reason=about.reason, notes=about.notes), small


def in_form(
    structure: Structure, pruned: GraphModel, native: bool | None = None, *, given: nn.Module | None = None
) -> nn.Module:
    """Return a pruned model in the form that is wanted; `pruned_to` of the result says which form it has, and why.

    Args:
        structure: of the dense model.
        pruned: made by `Structure.shrink` from it.
        native: whether the model has the user's own classes; `None` takes these where they are proven, and the graph
            module otherwise.
        given: the dense model as the user gave it, whose class own classes have (default: that of `structure.model`
            without its view).

    Raises:
        StructureError: own classes are asked for and not proven, or the graph module is needed and does not compute
            the gradients of the model.
    """
    maker = Maker(structure, _whole(structure, pruned))
    if native is not False:
        try:
            return with_sequences(structure, maker.own(given), pruned)
        except StructureError as error:
            if native:
                raise StructureError(f"{str(error).rstrip('.')}. {_INSTEAD}") from error
            reason = str(error)
    else:
        reason = "the graph module was asked for (native=False)"
    maker.require_gradients_of_graph(reason if native is None else "")
    assert pruned.pruned_to is not None
    pruned.pruned_to = replace(pruned.pruned_to, reason=reason)
    return pruned


def native(structure: Structure, pruned: GraphModel) -> nn.Module:
    """Return a copy of the dense model, in its own classes, with the parameters and sizes of `pruned`.

    Raises:
        StructureError: the copy does not run at the pruned sizes, or computes other outputs or gradients.
    """
    return in_form(structure, pruned, native=True)


def trained_form(structure: Structure, pruned: GraphModel) -> nn.Module:
    """Return the form in which a pruned model is fine-tuned: own classes on copies of its tensors, or `pruned` itself.

    For policies of a model of which `in_form` has proven another policy: outputs in evaluation mode alone are compared,
    and inputs are those of the structure's model.

    Raises:
        StructureError: the graph module is needed and does not compute the gradients of the model.
    """
    maker = Maker(structure, _whole(structure, pruned))
    try:
        return with_sequences(structure, maker.copy_with_equal_outputs(), pruned)
    except StructureError as error:
        maker.require_gradients_of_graph(str(error))
        return pruned


def _whole(structure: Structure, pruned: GraphModel) -> GraphModel:
    """Return the model without factors, in the place of which own classes get sequences of two layers."""
    return merged(structure, pruned) if pruned.pruned_to is not None and pruned.pruned_to.ranks else pruned
