"""The built-in proof: a shrunk model computes what the dense model computes with the removed entries zeroed.

It runs on randomised parameters (zero-initialised layers would make 0 == 0), with another batch size than the capture,
with dropout off, in float64, on the evaluation graph and on the training graph. A removed branch adds zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from autoprune.structure.branches import ADDITIONS
from autoprune.structure.capture import Capture
from autoprune.structure.module import GraphModel
from autoprune.structure.recurrent_layers import CREATORS
from autoprune.structure.units import Site

aten = torch.ops.aten
_DROPOUTS = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default,
}  # fmt: skip
PROOF_BATCH = 5
TOLERANCE = 1e-6
"""Largest difference relative to the largest output: far above float64 rounding, also through training batch norms."""


def largest_difference(
    dense: GraphModel,
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    example_inputs: Sequence[torch.Tensor],
    absent: Mapping[bool, AbstractSet[str]],
) -> float:
    """Largest relative output difference of both modes (0: equal; `inf`: shapes differ or the shrunk model fails).

    `absent` names, for each mode, the nodes whose values the dense model must not add to anything.
    """
    try:
        return max(_of_mode(dense, shrunk, masks, canonical, example_inputs, mode, absent[mode]) for mode in absent)
    except (RuntimeError, AttributeError):  # sizes that do not fit each other, or a parameter that is needed but gone
        return float("inf")


def _of_mode(
    dense: GraphModel,
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    example_inputs: Sequence[torch.Tensor],
    training: bool,
    absent: AbstractSet[str],
) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = [_random_like(x, generator) for x in example_inputs]
    zeroed: dict[str, torch.Tensor] = {}
    sliced: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(dense).items():
        first = canonical[name]
        if first not in zeroed:
            zeroed[first], sliced[first] = _cut_both_ways(_random_parameter(tensor, generator), first, masks)
        zeroed[name], sliced[name] = zeroed[first], sliced[first]
    sliced = {name: sliced[name] for name in _tensors(shrunk)}
    return _difference(_run(dense, zeroed, inputs, training, absent), _run(shrunk, sliced, inputs, training))


def _run(
    model: GraphModel,
    state: Mapping[str, torch.Tensor],
    inputs: Sequence[torch.Tensor],
    training: bool,
    absent: AbstractSet[str] = frozenset(),
) -> object:
    """Outputs with other parameters and dropout off; every other random node draws the same numbers in any graph.

    Additions of an `absent` and another value add zeros instead.
    """
    found = model._captures[training]
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in found.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            graph.call_function(torch.manual_seed, (zlib.crc32(node.name.encode()),))
        new[node] = graph.node_copy(node, lambda n: new[n])
        if node.target in _DROPOUTS:
            new[node].args = (*new[node].args[:2], False)
        _in_double(node, new[node])
        if node.target in ADDITIONS:
            _add_zeros(node, new[node], absent)
    capture = Capture(graph=graph, out_spec=found.out_spec, training=training)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphModel({training: capture}, state, set()).train(training)(*(x.clone() for x in inputs))


def _in_double(old: fx.Node, new: fx.Node) -> None:
    """Let what asks for float32, or creates it by default, take float64 like everything else."""
    new.args, new.kwargs = map_aggregate((new.args, new.kwargs), lambda a: torch.float64 if a is torch.float32 else a)  # type: ignore[assignment]
    if old.target in CREATORS and old.meta["val"].dtype is torch.float32:
        new.kwargs = {**new.kwargs, "dtype": torch.float64}


def _add_zeros(old: fx.Node, new: fx.Node, absent: AbstractSet[str]) -> None:
    """Let an addition whose one operand is absent add zeros in its place."""
    gone = [n.name in absent for n in old.all_input_nodes]
    if len(gone) == 2 and any(gone) and not all(gone):
        branch = new.args[gone.index(True)]
        assert isinstance(branch, fx.Node)
        with new.graph.inserting_before(new):
            new.replace_input_with(branch, new.graph.call_function(torch.zeros_like, (branch,)))


def _tensors(model: GraphModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _random_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not x.is_floating_point() or not x.dim():
        return x[:1].expand(PROOF_BATCH, *x.shape[1:]).clone() if x.dim() else x
    return torch.randn((PROOF_BATCH, *x.shape[1:]), generator=generator, dtype=torch.float64)


def _random_parameter(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Matrices and kernels: normal, scaled by fan-in. Vectors (biases, norms, variances): uniform in 0.5 to 1.5."""
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    if tensor.dim() < 2:
        return 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    fan_in = max(tensor[0].numel(), 1)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan_in**0.5


def _cut_both_ways(
    tensor: torch.Tensor, name: str, masks: Mapping[Site, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor with removed entries zeroed, and without them."""
    zeroed, sliced = tensor.clone(), tensor
    for dim in range(tensor.dim()):
        mask = masks.get(("parameter", name, dim))
        if mask is not None:
            kept = torch.from_numpy(mask)
            shape = [1] * tensor.dim()
            shape[dim] = -1
            zeroed = zeroed * kept.reshape(shape).to(zeroed.dtype)
            sliced = sliced.index_select(dim, kept.nonzero().flatten())
    return zeroed, sliced.clone()


def _difference(expected: object, found: object) -> float:
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                return float("inf")
            worst = max(worst, float((a - b).abs().max()) / (float(a.abs().max()) or 1.0))
    return worst
