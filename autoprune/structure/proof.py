"""The built-in proof: a shrunk model computes what the dense model computes with the removed entries zeroed.

It runs on randomised parameters (zero-initialised layers would make 0 == 0), with another batch size than the capture,
with dropout off, in float64, on the evaluation graph and, where it does anything else then, on the training graph. A
removed branch adds zeros. Statistics of the dense model (`references`) are taken over what lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from torch.utils import _pytree as pytree

from autoprune.structure.module import GraphModel
from autoprune.structure.references import Reference, steps
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
        compared = _Comparison(dense, shrunk, masks, canonical, example_inputs)
        modes = absent.keys() if compared.modes_differ() or absent[False] != absent[True] else {False}
        return max(compared.difference(training, absent[training]) for training in modes)
    except (RuntimeError, LookupError, TypeError, ValueError):  # sizes that do not fit, or a parameter that is gone
        return float("inf")


class _Comparison:
    """Both models on the same random inputs and parameters, with removed entries zeroed and without them."""

    def __init__(
        self,
        dense: GraphModel,
        shrunk: GraphModel,
        masks: Mapping[Site, np.ndarray],
        canonical: Mapping[str, str],
        example_inputs: Sequence[torch.Tensor],
    ) -> None:
        self._dense, self._shrunk = dense, shrunk
        self._masks, self._canonical = masks, canonical
        generator = torch.Generator().manual_seed(0)
        large = any(x.dim() and x[0].numel() > _LARGE for x in example_inputs)
        self._inputs = [random_like(x, LARGE_BATCH if large else PROOF_BATCH, generator) for x in example_inputs]
        self._zeroed: dict[str, torch.Tensor] = {}
        self._sliced: dict[str, torch.Tensor] = {}
        cut = _tensors(shrunk)
        for name, tensor in _tensors(dense).items():
            first = canonical[name]
            if first not in self._zeroed:
                if tensor.is_floating_point():
                    # Drawn and cut in float32, which is faster, and kept in float64.
                    drawn = randomize(torch.empty(tensor.shape), generator)
                    both = tuple(each.double() for each in _cut_both_ways(drawn, first, masks))
                else:
                    both = tensor.detach(), cut.get(name, tensor).detach()
                self._zeroed[first], self._sliced[first] = both

    def modes_differ(self) -> bool:
        """Whether the training graphs compute anything else than the evaluation graphs, or are cut otherwise."""
        cuts = {
            mode: {site[1:]: mask.tobytes() for site, mask in self._masks.items() if site[0] == mode}
            for mode in ("eval", "train")
        }
        graphs = [model.captures for model in (self._dense, self._shrunk)]
        return cuts["eval"] != cuts["train"] or any(
            steps(found[False].graph) != steps(found[True].graph) for found in graphs
        )

    def difference(self, training: bool, absent: AbstractSet[str]) -> float:
        """The largest one of a mode."""
        zeroed, sliced = self._fresh(self._zeroed), self._fresh(self._sliced)
        found, small = self._dense.captures[training], self._shrunk.captures[training]
        with torch.no_grad():
            reference = Reference(found, zeroed, small.graph, self._masks, self._canonical, absent)
            expected = reference.outputs(*self._inputs)
            return output_difference(expected, Reference(small, sliced).outputs(*self._inputs))

    def _fresh(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By every name of theirs; buffers are copies, because training changes them."""
        buffers = {self._canonical[name] for name, _ in self._dense.named_buffers(remove_duplicate=False)}
        own = {name: tensor.clone() if name in buffers else tensor for name, tensor in tensors.items()}
        return {name: own[self._canonical[name]] for name in _tensors(self._dense)}


def _tensors(model: GraphModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def random_like(x: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """A random input of `batch` items in float64; integers repeat the first item."""
    if not x.is_floating_point() or not x.dim():
        return x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x
    return torch.randn((batch, *x.shape[1:]), generator=generator, dtype=torch.float64)


def random_parameter(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random tensor of the same shape in float64, drawn in float32, which is faster."""
    return randomize(torch.empty(tensor.shape), generator).double()


def randomize(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Overwrite a parameter or buffer and return it.

    Matrices and kernels: normal, scaled by fan-in. Vectors (biases, norms, variances): uniform in 0.5 to 1.5.
    """
    if tensor.dim() < 2:
        return tensor.uniform_(0.5, 1.5, generator=generator)
    fan_in = max(tensor[0].numel(), 1)
    return tensor.normal_(generator=generator).div_(fan_in**0.5)


def _cut_both_ways(
    tensor: torch.Tensor, name: str, masks: Mapping[Site, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor with removed entries zeroed (in place), and without them."""
    sliced = tensor
    for dim in range(tensor.dim()):
        mask = masks.get(("parameter", name, dim))
        if mask is not None:
            kept = torch.from_numpy(mask)
            sliced = sliced.index_select(dim, kept.nonzero().flatten())
            tensor.index_fill_(dim, (~kept).nonzero().flatten(), 0.0)
    return tensor, sliced


def output_difference(expected: object, found: object) -> float:
    """Largest one of nested outputs, relative to each one's largest; infinite where one value alone is not finite."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
            differ = a != b  # not where both are the same infinity, as of masked scores
            a, b = a[differ], b[differ]
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                return float("inf")
            worst = max(worst, float((a - b).abs().max()) / (scale or 1.0)) if a.numel() else worst
    return worst
