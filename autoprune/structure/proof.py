"""The built-in proof: a shrunk model computes what the dense model computes with the removed entries zeroed.

It runs on randomised parameters (zero-initialised layers would make 0 == 0), with another batch size than the capture,
with dropout off, on the evaluation graph and on the training graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx
from torch.func import functional_call
from torch.utils import _pytree as pytree

from autoprune.structure.capture import Capture
from autoprune.structure.module import GraphModel
from autoprune.structure.units import Site

aten = torch.ops.aten
PROOF_BATCH = 2
TOLERANCE = 1e-4
"""Largest difference relative to the largest output; float32 rounding stays two orders below it."""


def largest_difference(
    dense: GraphModel,
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    example_inputs: Sequence[torch.Tensor],
) -> float:
    """Largest relative output difference of both modes (0: equal; `inf`: shapes differ or the shrunk model fails)."""
    generator = torch.Generator().manual_seed(0)
    inputs = [_random_like(x, generator) for x in example_inputs]
    state = {n: _random_parameter(t, generator) for n, t in _tensors(dense).items() if canonical[n] == n}
    zeroed, sliced = {}, {}
    for name in _tensors(dense):
        first = canonical[name]
        zeroed[name], sliced[name] = _cut_both_ways(state[first], first, masks)
    worst = 0.0
    for training in (False, True):
        try:
            with torch.no_grad():
                expected = functional_call(_without_dropout(dense, training), zeroed, tuple(x.clone() for x in inputs))
                found = functional_call(_without_dropout(shrunk, training), sliced, tuple(x.clone() for x in inputs))
        except RuntimeError:
            return float("inf")
        worst = max(worst, _difference(expected, found))
    return worst


def _tensors(model: GraphModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _random_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not x.is_floating_point() or not x.dim():
        return x[:1].expand(PROOF_BATCH, *x.shape[1:]).clone() if x.dim() else x
    return torch.randn((PROOF_BATCH, *x.shape[1:]), generator=generator, dtype=x.dtype)


def _random_parameter(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Matrices and kernels: normal, scaled by fan-in. Vectors (biases, norms, variances): uniform in 0.5 to 1.5."""
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    if tensor.dim() < 2:
        return 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    fan_in = max(tensor[0].numel(), 1)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / fan_in**0.5


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


def _without_dropout(model: GraphModel, training: bool) -> GraphModel:
    found = model._captures[training]
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in found.graph.nodes:
        new[node] = graph.node_copy(node, lambda n: new[n])
        if node.target in (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default):
            new[node].args = (*new[node].args[:2], False)
    capture = Capture(graph=graph, out_spec=found.out_spec, training=training)
    return GraphModel({training: capture}, _tensors(model), set()).train(training)


def _difference(expected: object, found: object) -> float:
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            scale = float(a.abs().max()) or 1.0
            worst = max(worst, float((a - b).abs().max()) / scale)
    return worst if np.isfinite(worst) else float("inf")
