"""The user's own classes at pruned sizes: their modules changed in place, where that provably computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from autoprune.errors import StructureError
from autoprune.model.acceptance import ExampleInputs, accepted, as_inputs
from autoprune.model.adapters import adapted, keywords_of, own_class
from autoprune.structure.capture import module_tensors
from autoprune.structure.module import GraphModel
from autoprune.structure.proof import PROOF_BATCH, TOLERANCE, output_difference, random_like, random_parameter
from autoprune.structure.references import InFloat64

_INSTEAD = "Use the graph module (native=False): it trains, exports, compiles and has the same parameter names."
_GROUPS = {"group_norm": 1} | {f"conv{kind}{n}d": 6 for n in (1, 2, 3) for kind in ("", "_transpose")}
"""Where an operator has its number of groups."""


def native(model: nn.Module, pruned: GraphModel, example_inputs: ExampleInputs) -> nn.Module:
    """A copy of the dense `model`, in its own classes, with the parameters of `pruned` and their sizes.

    Parameters and buffers are replaced, and the size attributes of convolutions, linear and recurrent layers, norms and
    embeddings.
    On random parameters and inputs it must then give what the graph module gives, in evaluation, and run in training;
    otherwise `StructureError` says why not.
    """
    found = copy.deepcopy(accepted(model))
    _replace_tensors(found, module_tensors(pruned))
    for name, module in found.named_modules():
        _resize(module, _groups_of(pruned, f"{name}.weight" if name else "weight"))
    _require_equal(found, pruned, example_inputs)
    found = own_class(found)
    found.__dict__["pruned_to"] = pruned.pruned_to  # for `save`
    return found.train(pruned.training)


def _replace_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    gone = [n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n not in state]
    if gone:
        raise StructureError(
            f"the policy removes a residual branch or something unused ({', '.join(gone[:3])}), and the model's own "
            f"forward would still run it. {_INSTEAD}"
        )
    copies = {id(tensor): copy.deepcopy(tensor) for tensor in state.values()}  # tied ones stay tied
    for name, module in model.named_modules():
        for own in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
            for leaf, tensor in own.items():
                if tensor is not None:
                    own[leaf] = copies[id(state[f"{name}.{leaf}" if name else leaf])]


def _groups_of(pruned: GraphModel, weight: str) -> int | None:
    """Groups of the convolution or group norm that reads a weight in the evaluation graph."""
    graph = pruned.evaluation_graph().graph
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == weight:
            for user in node.users:
                place = _GROUPS.get(str(user.target).removeprefix("aten.").partition(".")[0])
                groups = user.args[place] if place is not None and len(user.args) > place else None
                if isinstance(groups, int):
                    return groups
    return None


def _resize(module: nn.Module, groups: int | None) -> None:
    """Let the size attributes of a leaf module follow its weight."""
    if isinstance(module, nn.RNNBase):
        layer = cast("Any", module)
        layer.input_size, layer.hidden_size = layer.weight_ih_l0.shape[1], layer.weight_ih_l0.shape[0] // _gates(module)
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
        return
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    shape = tuple(weight.shape)
    if isinstance(module, _ConvNd):
        module.groups = groups or 1
        first, second = shape[0], shape[1] * module.groups
        if isinstance(module, _ConvTransposeNd):
            first, second = shape[1] * module.groups, shape[0]
        module.out_channels, module.in_channels = first, second
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = shape
    elif isinstance(module, nn.GroupNorm):
        module.num_channels, module.num_groups = shape[0], groups or module.num_groups
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]


def _gates(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def _require_equal(found: nn.Module, pruned: GraphModel, example_inputs: ExampleInputs) -> None:
    generator = torch.Generator().manual_seed(0)
    # The user's model takes keywords where the examples are given by keyword; the graph module has their order.
    ours = adapted(copy.deepcopy(found), keywords_of(example_inputs)).double().eval()
    theirs = copy.deepcopy(pruned).double().eval()
    random = {name: random_parameter(t, generator) for name, t in ours.state_dict().items()}
    ours.load_state_dict(random)
    theirs.load_state_dict(random)
    inputs = [random_like(x, PROOF_BATCH, generator) for x in as_inputs(example_inputs)]
    try:
        with torch.no_grad(), InFloat64():
            difference = _largest(theirs(*inputs), ours(*inputs))
            with torch.random.fork_rng(devices=[]):
                ours.train()(*inputs)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"the model's own forward does not run at the pruned sizes ({type(error).__name__}: {reason}): it holds "
            f"sizes of its own. {_INSTEAD}"
        ) from error
    if not difference <= TOLERANCE:
        raise StructureError(
            f"the model's own forward computes something else at the pruned sizes (relative difference "
            f"{difference:.2g}): it holds sizes of its own. {_INSTEAD}"
        )


def _largest(wanted: Any, got: Any) -> float:
    """Largest relative difference of outputs; infinite where shapes or nesting differ."""
    ours, theirs = _tensors_of(wanted), _tensors_of(got)
    if not ours or [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    return output_difference(ours, theirs)


def _tensors_of(outputs: Any) -> Sequence[Tensor]:
    return [leaf.double() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
