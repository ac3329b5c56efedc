"""The built-in proof: a shrunk model computes what the dense model computes with the removed entries zeroed.

It runs on randomised parameters (zero-initialised layers would make 0 == 0), with another batch size than the capture,
with dropout off, in float64, on the evaluation graph and on the training graph. A removed branch adds zeros. Statistics
of the dense model (`references`) are taken over what lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from torch.utils import _pytree as pytree

from autoprune.structure.module import GraphModel
from autoprune.structure.references import Reference
from autoprune.structure.units import Site

PROOF_BATCH, LARGE_BATCH = 5, 2
_LARGE = 50_000
"""Examples with more elements are proven with `LARGE_BATCH`: the proof would take longer than all the rest."""
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
        generator = torch.Generator().manual_seed(0)
        large = any(x.dim() and x[0].numel() > _LARGE for x in example_inputs)
        inputs = [random_like(x, LARGE_BATCH if large else PROOF_BATCH, generator) for x in example_inputs]
        tensors = _randomised(dense, shrunk, masks, canonical, generator)
        return max(_of_mode(dense, shrunk, masks, canonical, inputs, tensors, mode, absent[mode]) for mode in absent)
    except (RuntimeError, LookupError, TypeError, ValueError):  # sizes that do not fit, or a parameter that is gone
        return float("inf")


def _randomised(
    dense: GraphModel,
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    generator: torch.Generator,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random parameters and buffers by canonical name, with removed entries zeroed and without them."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    cut = _tensors(shrunk)
    for name, tensor in _tensors(dense).items():
        first = canonical[name]
        if first not in found:
            if tensor.is_floating_point():
                found[first] = _cut_both_ways(random_parameter(tensor, generator), first, masks)
            else:
                found[first] = tensor.detach(), cut.get(name, tensor).detach()
    return found


def _of_mode(
    dense: GraphModel,
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    inputs: Sequence[torch.Tensor],
    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    training: bool,
    absent: AbstractSet[str],
) -> float:
    buffers = {canonical[name] for name, _ in dense.named_buffers(remove_duplicate=False)}
    own = {  # training changes buffers
        name: (zeroed.clone(), sliced.clone()) if name in buffers else (zeroed, sliced)
        for name, (zeroed, sliced) in tensors.items()
    }
    zeroed = {name: own[canonical[name]][0] for name in _tensors(dense)}
    sliced = {name: own[canonical[name]][1] for name in _tensors(dense)}
    found, small = dense.captures[training], shrunk.captures[training]
    with torch.no_grad():
        reference = Reference(found, zeroed, small.graph, masks, canonical, absent)
        return _difference(reference.outputs(*inputs), Reference(small, sliced).outputs(*inputs))


def _tensors(model: GraphModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def random_like(x: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """A random input of `batch` items in float64; integers repeat the first item."""
    if not x.is_floating_point() or not x.dim():
        return x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x
    return torch.randn((batch, *x.shape[1:]), generator=generator, dtype=torch.float64)


def random_parameter(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Matrices and kernels: normal, scaled by fan-in. Vectors (biases, norms, variances): uniform in 0.5 to 1.5.

    Drawn in float32, which is three times as fast, and kept in float64.
    """
    if tensor.dim() < 2:
        return 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    fan_in = max(tensor[0].numel(), 1)
    return torch.randn(tensor.shape, generator=generator).div_(fan_in**0.5).double()


def _cut_both_ways(
    tensor: torch.Tensor, name: str, masks: Mapping[Site, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor with removed entries zeroed, and without them."""
    zeroed, sliced = tensor, tensor
    for dim in range(tensor.dim()):
        mask = masks.get(("parameter", name, dim))
        if mask is not None:
            kept = torch.from_numpy(mask)
            shape = [1] * tensor.dim()
            shape[dim] = -1
            zeroed = zeroed * kept.reshape(shape).to(zeroed.dtype)
            sliced = sliced.index_select(dim, kept.nonzero().flatten())
    return zeroed, sliced


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
