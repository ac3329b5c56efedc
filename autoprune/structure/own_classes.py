"""A copy of the user's module with pruned tensors: sizes of its layers follow, and removed branches become zeros."""

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
from autoprune.model.copying import copy_of
from autoprune.structure.capture import module_tensors, quiet
from autoprune.structure.module import GraphModel

_GROUPS = {"group_norm": 1} | {f"conv{kind}{n}d": 6 for n in (1, 2, 3) for kind in ("", "_transpose")}
"""Position of the argument that holds an operator's number of groups."""


class Removed(nn.Module):
    """The place of a removed module: outputs nest as those of the module did, and are zeros that broadcast.

    `ranks` nests as the module's outputs: the number of dimensions of every tensor, and `None` for anything else.
    """

    def __init__(self, ranks: Any) -> None:
        super().__init__()
        self.ranks = ranks

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return zeros of shape `[batch, 1, ..., 1]`."""
        first = next(x for x in pytree.tree_leaves((inputs, named)) if isinstance(x, Tensor))
        return pytree.tree_map(lambda rank: None if rank is None else _zeros(first, rank), self.ranks)


def _zeros(x: Tensor, rank: int) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return x.new_zeros((*x.shape[:1], *[1] * (rank - 1))[:rank], dtype=dtype)


def rebuilt(
    model: nn.Module,
    pruned: GraphModel,
    inputs: Sequence[Tensor],
    level: int = 0,
    groups: Mapping[str, int] | None = None,
) -> nn.Module:
    """Return a copy of a dense model with the tensors of `pruned`, and zeros in the places of removed modules.

    A tensor is replaced wherever the model holds it: in attributes, lists and partial functions, too.

    Args:
        model: the dense model, which is left as it was.
        pruned: made from it by `Structure.shrink`.
        inputs: of the model; a pass shows what the removed modules return.
        level: how far below the largest removed modules the replaced ones are.
        groups: of `groups_of(pruned)`, where it is known already.

    Raises:
        StructureError: the model cannot be copied, or `removed_modules` are not clear.
    """
    state, dense = module_tensors(pruned), module_tensors(model)
    groups = groups_of(pruned) if groups is None else groups
    copies = {id(tensor): copy.deepcopy(tensor) for tensor in state.values()}  # tied tensors stay tied
    replaced: dict[int, Any] = {id(t): copies[id(state[name])] for name, t in dense.items() if name in state}
    replaced |= {id(t): copies[id(state[name])] for name, t in _constants(model, state).items()}
    replaced |= _zeros_of(model, removed_modules(model, state, level), inputs)
    copied = copy_of(model, replaced)
    _replace_left({name: copies[id(tensor)] for name, tensor in state.items()}, copied)
    for name, module in copied.named_modules():
        resize(module, groups.get(f"{name}.weight" if name else "weight"))
    return copied


def _replace_left(tensors: Mapping[str, Tensor], copied: nn.Module) -> None:
    """Set the tensors of modules whose own `__deepcopy__` took the dense ones, because it passes on no memo."""
    for path, module in copied.named_modules():
        for held in (module._parameters, module._buffers):
            for name in held:
                tensor = tensors.get(f"{path}.{name}" if path else name)
                if tensor is not None and held[name] is not tensor:
                    held[name] = cast("Any", tensor)


def _constants(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in attributes of modules that are cut, by the name that `state` has for them.

    The capture names the constant `scale` of the module `block.0` "constant_eval_block_0_scale".
    """
    constants = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor):
                full = f"{path}.{attribute}" if path else attribute
                for mode in ("eval", "train"):
                    name = f"constant_{mode}_{full.replace('.', '_')}"
                    if name in state and state[name].shape != value.shape:
                        constants[name] = value
    return constants


def _zeros_of(model: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]) -> dict[int, Removed]:
    """Return a `Removed` for each named module of a dense model, by the module's `id`."""
    if not names:
        return {}
    returned: dict[str, Any] = {}
    dense = copy_of(model).eval()
    for name in names:
        dense.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: returned.update({name: out}))
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        dense(*(x.clone() for x in inputs))
    zeros = {}
    for name in names:
        ranks = pytree.tree_map(lambda x: x.dim() if isinstance(x, Tensor) else None, returned.get(name))
        module = model.get_submodule(name)
        zeros[id(module)] = Removed(ranks).train(module.training)
    return zeros


def removed_modules(model: nn.Module, state: Mapping[str, Tensor], level: int) -> list[str]:
    """Return the names of modules whose tensors are all absent from `state`, `level` floors below the largest such.

    Raises:
        StructureError: some absent tensor is in no such module.
    """
    absent = [name for name in module_tensors(model) if name not in state]
    living = {n for name in module_tensors(model) if name in state for n in _prefixes(name)}
    modules = dict(model.named_modules())
    chosen = dict[str, None]()
    for name in absent:
        dead = [prefix for prefix in _prefixes(name) if prefix and prefix not in living]
        if not dead:
            raise StructureError(
                f"the policy removes a residual branch, of which the model itself holds {name}: its own forward would "
                "still read it"
            )
        chosen[dead[min(level, len(dead) - 1)]] = None
    names = set(chosen)
    return [name for name in modules if name in names and not any(p in names for p in _prefixes(name))]


def _prefixes(name: str) -> list[str]:
    """Return the names of the modules around a tensor or module, outermost first; "" is the model."""
    parts = name.split(".")[:-1]
    return ["", *(".".join(parts[: k + 1]) for k in range(len(parts)))]


def groups_of(pruned: GraphModel) -> dict[str, int]:
    """Return the groups of the convolutions and group norms in the evaluation graph, by the name of their weight."""
    groups: dict[str, int] = {}
    for node in pruned.captures[False].graph.nodes:
        position = _GROUPS.get(str(node.target).removeprefix("aten.").partition(".")[0])
        if node.op == "call_function" and position is not None and len(node.args) > position:
            value = node.args[position]
            for source in node.all_input_nodes:
                if source.op == "get_attr" and isinstance(value, int):
                    groups.setdefault(str(source.target), value)
    return groups


def resize(module: nn.Module, groups: int | None) -> None:
    """Let the size attributes of a layer follow its weight."""
    if isinstance(module, nn.RNNBase):
        layer = cast("Any", module)
        layer.input_size, layer.hidden_size = layer.weight_ih_l0.shape[1], layer.weight_ih_l0.shape[0] // _gates(module)
        if layer.proj_size:
            layer.proj_size = layer.weight_hr_l0.shape[0]
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
        return
    if isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
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
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = shape
    elif isinstance(module, _NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = shape
    elif isinstance(module, nn.GroupNorm):
        module.num_channels, module.num_groups = shape[0], groups or module.num_groups
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]


def _gates(module: nn.RNNBase) -> int:
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
