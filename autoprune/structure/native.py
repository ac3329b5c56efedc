"""The user's own classes at pruned sizes: a copy of the model gets the pruned tensors and must pass a check."""

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
"""Position of the argument that holds an operator's number of groups."""


def native(model: nn.Module, pruned: GraphModel, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy of the dense model, in its own classes, with the parameters and sizes of `pruned`.

    Parameters and buffers are replaced, and the size attributes of convolutions, linear and recurrent layers, norms and
    embeddings follow. The copy is checked on random parameters and inputs.

    Args:
        model: the dense model, which is left as it was.
        pruned: made by `Structure.shrink` from that model.
        example_inputs: of the dense model.

    Raises:
        StructureError: in evaluation the copy does not give the outputs of `pruned`, or it does not run in training;
            its own forward then holds sizes, or runs a branch that was removed.
    """
    copied = copy.deepcopy(accepted(model))
    _replace_tensors(copied, module_tensors(pruned))
    for name, module in copied.named_modules():
        _resize(module, _groups_of(pruned, f"{name}.weight" if name else "weight"))
    _require_equal(copied, pruned, example_inputs)
    copied = own_class(copied)
    copied.__dict__["pruned_to"] = pruned.pruned_to  # for `save`
    return copied.train(pruned.training)


def _replace_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Replace all parameters and buffers of a model by copies of those in `state`."""
    missing = [n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n not in state]
    if missing:
        raise StructureError(
            f"the policy removes a residual branch or an unused layer ({', '.join(missing[:3])}), and the model's own "
            f"forward would still run it. {_INSTEAD}"
        )
    copies = {id(tensor): copy.deepcopy(tensor) for tensor in state.values()}  # tied tensors stay tied
    for name, module in model.named_modules():
        for own in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
            for leaf, tensor in own.items():
                if tensor is not None:
                    own[leaf] = copies[id(state[f"{name}.{leaf}" if name else leaf])]


def _groups_of(pruned: GraphModel, weight: str) -> int | None:
    """Return the groups of the convolution or group norm that reads a weight in the evaluation graph."""
    graph = pruned.evaluation_graph().graph
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == weight:
            for user in node.users:
                position = _GROUPS.get(str(user.target).removeprefix("aten.").partition(".")[0])
                groups = user.args[position] if position is not None and len(user.args) > position else None
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


def _require_equal(native_model: nn.Module, pruned: GraphModel, example_inputs: ExampleInputs) -> None:
    """Raise `StructureError` unless both models give equal outputs and the native model also runs in training."""
    generator = torch.Generator().manual_seed(0)
    # The user's model takes keywords where the examples are given by keyword; the graph module takes them in order.
    own = adapted(copy.deepcopy(native_model), keywords_of(example_inputs)).double().eval()
    graph = copy.deepcopy(pruned).double().eval()
    random = {name: random_parameter(t, generator) for name, t in own.state_dict().items()}
    own.load_state_dict(random)
    graph.load_state_dict(random)
    inputs = [random_like(x, PROOF_BATCH, generator) for x in as_inputs(example_inputs)]
    try:
        with torch.no_grad(), InFloat64():
            difference = _difference(graph(*inputs), own(*inputs))
            with torch.random.fork_rng(devices=[]):
                own.train()(*inputs)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StructureError(
            f"the model's own forward does not run at the pruned sizes ({type(error).__name__}: {reason}): dense sizes "
            f"are written in it. {_INSTEAD}"
        ) from error
    if not difference <= TOLERANCE:
        raise StructureError(
            f"the model's own forward computes something else at the pruned sizes (relative difference "
            f"{difference:.2g}, allowed {TOLERANCE:g}): dense sizes are written in it. {_INSTEAD}"
        )


def _difference(expected: Any, outputs: Any) -> float:
    """Return the largest relative difference of outputs; infinite where shapes or nesting differ."""
    expected_tensors, tensors = _tensors_of(expected), _tensors_of(outputs)
    if not expected_tensors or [t.shape for t in expected_tensors] != [t.shape for t in tensors]:
        return float("inf")
    return output_difference(expected_tensors, tensors)


def _tensors_of(outputs: Any) -> Sequence[Tensor]:
    return [leaf.double() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
