"""Models with factors in the user's own classes: `nn.Sequential` of two layers in the place of a module."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.model.adapters import adapted, view_keywords
from autoprune.records import Policy
from autoprune.structure.capture import module_tensors
from autoprune.structure.low_rank import Factors, bias_names, factor_names, own_bias
from autoprune.structure.module import GraphModel
from autoprune.structure.native_proof import Form, same_outputs
from autoprune.structure.proof import LARGE_BATCH, TOLERANCE, random_like
from autoprune.structure.structure import Structure

_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d)


def merged(structure: Structure, factored: GraphModel) -> GraphModel:
    """Return the pruned model whose weights are the products of a model's factors."""
    cut = factored.pruned_to
    assert cut is not None
    keep = {name: np.asarray(kept) for name, kept in cut.kept.items()} or None
    whole = structure.shrink(Policy(space_id="", widths=cut.widths), keep, prove=False)
    tensors, biases = module_tensors(factored), bias_names(whole, cut.ranks)
    second_biases = {old: own_bias(layer)[1] for layer, old in biases.items() if old}
    with torch.no_grad():
        for name, tensor in module_tensors(whole).items():
            if name in cut.ranks:
                first, second = (tensors[factor] for factor in factor_names(name))
                tensor.copy_(Factors(first=first, second=second).product)
            else:
                tensor.copy_(tensors[second_biases.get(name, name)])
    return whole.train(factored.training)


def with_sequences(structure: Structure, form: nn.Module, factored: GraphModel) -> nn.Module:
    """Return a model in own classes, changed in place: modules whose weights are factors become sequences of two.

    Args:
        structure: of the dense model.
        form: in the classes of the dense model, with the weights of `merged`.
        factored: the model with factors; without any, `form` is returned as it is.

    Raises:
        StructureError: a weight is not that of a plain linear layer or convolution, which is called as a module.
    """
    cut = factored.pruned_to
    if cut is None or not cut.ranks:
        return form
    tensors = module_tensors(factored)
    for name in cut.ranks:
        owner, _, leaf = name.rpartition(".")
        module = form.get_submodule(owner)
        if type(module) not in _CLASSES or leaf != "weight" or not owner:
            raise StructureError(
                f"{name!r} is two factors, and its module is no plain linear layer or convolution that "
                f"nn.Sequential could replace, but {type(module).__name__}"
            )
        parent, _, child = owner.rpartition(".")
        form.get_submodule(parent)._modules[child] = _sequence(module, name, tensors).train(form.training)
    _require_equal(structure, form, factored)
    if "pruned_to" in form.__dict__:
        form.__dict__["pruned_to"] = replace(form.__dict__["pruned_to"], ranks=cut.ranks, treatments=cut.treatments)
    return form


def _sequence(module: nn.Module, name: str, tensors: dict[str, torch.Tensor]) -> nn.Sequential:
    """Return the two layers of a module with copies of their tensors."""
    first, second = (tensors[factor] for factor in factor_names(name))
    bias = tensors.get(own_bias(name)[1])
    rank, outputs = len(first), len(second)
    if isinstance(module, nn.Linear):
        layers = [nn.Linear(module.in_features, rank, bias=False), nn.Linear(rank, outputs, bias=bias is not None)]
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        kind = type(module)
        reduced = kind(
            module.in_channels, rank, module.kernel_size, module.stride, module.padding, module.dilation,  # type: ignore[arg-type]
            bias=False, padding_mode=module.padding_mode,
        )  # fmt: skip
        layers = [reduced, kind(rank, outputs, 1, bias=bias is not None)]
    for layer, value in zip(layers, (first, second), strict=True):
        layer.weight = _copied(value)
    if bias is not None:
        layers[1].bias = _copied(bias)
    return nn.Sequential(*layers)


def _copied(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)


def _require_equal(structure: Structure, form: nn.Module, factored: GraphModel) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [random_like(x, LARGE_BATCH, generator) for x in structure.example_inputs]
    state = {name: tensor.double() for name, tensor in module_tensors(factored).items() if tensor.is_floating_point()}
    in_order = adapted(form, view_keywords(structure.model))
    try:
        passes = [Form(model).run(state, inputs, training=False, gradients=False) for model in (factored, in_order)]
        difference = same_outputs(*passes)
    except Exception as error:  # a user's forward may raise anything
        raise StructureError(f"the model's own forward does not run with layers of two factors ({error})") from error
    if not difference <= TOLERANCE:
        raise StructureError(
            f"the model's own forward does not call the layers of two factors as modules (relative difference "
            f"{difference:.2g}, allowed {TOLERANCE:g})"
        )
