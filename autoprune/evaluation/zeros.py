"""Zeros of a policy in its model: patterns of the weights, and masks that fine-tuning keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from autoprune.records import Policy
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import GraphModel, module_tensors
from autoprune.training.masked import MaskedWeights
from autoprune.treatments import Layer


def patterns_of(policy: Policy, layers: Iterable[Layer], model: nn.Module) -> dict[str, Pattern]:
    """Return the patterns of weights by their names; removed layers have none.

    Args:
        policy: of the model.
        layers: of the dense model.
        model: cut as the policy says.
    """
    tensors = module_tensors(model)
    return {
        name: treatment.pattern
        for layer in layers
        if (treatment := policy.treatments.get(layer.name)) is not None and treatment.pattern is not None
        for name in layer.weights or (layer.name,)
        if name in tensors
    }


def note_treatments(model: GraphModel, policy: Policy, layers: Iterable[Layer]) -> GraphModel:
    """Return the model of a policy after its `pruned_to` was told the treatments of whole weights, for `save`."""
    tensors, cut = module_tensors(model), model.pruned_to
    known = {
        name: str(policy.treatments[layer.name])
        for layer in layers
        if layer.name in policy.treatments and not policy.treatments[layer.name].rank
        for name in layer.weights or (layer.name,)
        if name in tensors
    }
    if cut is not None and known:
        model.pruned_to = replace(cut, treatments=known)
    return model


def masks_of(model: nn.Module, patterns: Mapping[str, Pattern]) -> dict[str, Tensor]:
    """Return where weights of a model that has its zeros are not zero, by their names."""
    tensors = module_tensors(model)
    return {name: tensors[name].detach() != 0 for name in patterns}


def mask_terms(masks: Mapping[str, Tensor], form: nn.Module) -> Sequence[MaskedWeights]:
    """Return the terms that keep the zeros of a model while it is trained in some form."""
    known = dict(form.named_parameters(remove_duplicate=False))
    held = {name: mask for name, mask in masks.items() if name in known}
    return [MaskedWeights(held)] if held else []


@torch.no_grad()
def take_trained(model: GraphModel, form: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give a model the tensors of the form in which it was trained, in place, with zeros outside of masks."""
    trained, tensors = module_tensors(form), module_tensors(model)
    for name, tensor in tensors.items():
        if form is not model and name in trained:  # constants of the graph are not
            tensor.copy_(trained[name])
    for name, mask in masks.items():
        tensors[name].masked_fill_(~mask, 0.0)
