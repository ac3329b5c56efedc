"""The proof: a shrunk model computes what the dense model computes with the removed entries zeroed.

Cutting hidden feature 3 of `linear2(relu(linear1(x)))` must equal setting row 3 of `linear1.weight`, entry 3 of
`linear1.bias` and column 3 of `linear2.weight` to zero. Both models run on the same random inputs and parameters, and
their outputs are compared. A wrong rule, a forgotten size or a wrong slice shows as a difference or as an error.

- Parameters are random, because zero-initialised layers would compare 0 with 0.
- The batch size differs from that of the capture, so that a size which was written down shows; where other sizes of
  the inputs are free, the proof is run at a second size, too (`input_sizes`), and for large inputs there alone.
- Everything is in float64 with dropout off, so that a difference is no rounding and no chance.
- The training graph is compared, too, unless it computes the same as the evaluation graph.
- A removed branch adds zeros, and statistics of the dense model are over living entries (`references`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.structure.capture import Capture
from autoprune.structure.module import GraphModel
from autoprune.structure.references import Reference, steps
from autoprune.structure.units import Site

PROOF_BATCH, LARGE_BATCH = 5, 2
_LARGE = 50_000
"""Elements of an example above which the batch is `LARGE_BATCH`: the proof would take longer than all other stages."""
TOLERANCE = 1e-6
"""Largest allowed difference relative to the largest output: far above float64 rounding, also of batch norms."""


def largest_difference(
    captures: Mapping[bool, Capture],
    tensors: Mapping[str, torch.Tensor],
    shrunk: GraphModel,
    masks: Mapping[Site, np.ndarray],
    canonical: Mapping[str, str],
    example_inputs: Sequence[torch.Tensor],
    absent: Mapping[bool, AbstractSet[str]],
) -> float:
    """Return the largest relative difference of outputs over both modes.

    Args:
        captures: of the dense model, training (True) and evaluation (False).
        tensors: all that the dense model holds, by name; their values do not matter.
        shrunk: the model that was cut by `masks`.
        masks: which indices live, bool `[size]` for every labelled dimension.
        canonical: first name of every tensor.
        example_inputs: of the model; random inputs of their shapes are drawn.
        absent: for training (True) and evaluation (False), the nodes whose values count as zeros in additions.

    Returns:
        0 for equal outputs; `inf` when shapes differ or a model fails.
    """
    try:
        compared = _Comparison(captures, tensors, shrunk, masks, canonical, example_inputs)
        modes = absent.keys() if compared.modes_differ() or absent[False] != absent[True] else {False}
        return max(compared.difference(training, absent[training]) for training in modes)
    except (RuntimeError, LookupError, TypeError, ValueError):  # sizes do not fit, or a parameter is missing
        return float("inf")


class _Comparison:
    """Both models on the same random inputs and parameters: entries are zeroed in one and cut from the other."""

    def __init__(
        self,
        captures: Mapping[bool, Capture],
        tensors: Mapping[str, torch.Tensor],
        shrunk: GraphModel,
        masks: Mapping[Site, np.ndarray],
        canonical: Mapping[str, str],
        example_inputs: Sequence[torch.Tensor],
    ) -> None:
        self._captures, self._tensors, self._shrunk = captures, tensors, shrunk
        self._masks, self._canonical = masks, canonical
        generator = torch.Generator().manual_seed(0)
        batch = LARGE_BATCH if is_large(example_inputs) else PROOF_BATCH
        self._inputs = [random_like(x, batch, generator) for x in example_inputs]
        self._zeroed: dict[str, torch.Tensor] = {}
        self._sliced: dict[str, torch.Tensor] = {}
        cut = _tensors(shrunk)
        for name, tensor in tensors.items():
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
        """Return whether training graphs and evaluation graphs compute or are cut differently."""
        cuts = {
            mode: {site[1:]: mask.tobytes() for site, mask in self._masks.items() if site[0] == mode}
            for mode in ("eval", "train")
        }
        return cuts["eval"] != cuts["train"] or any(
            steps(captures[False].graph) != steps(captures[True].graph)
            for captures in (self._captures, self._shrunk.captures)
        )

    def difference(self, training: bool, absent: AbstractSet[str]) -> float:
        """Return the largest relative difference of outputs in one mode."""
        zeroed, sliced = self._fresh(self._zeroed), self._fresh(self._sliced)
        dense, small = self._captures[training], self._shrunk.captures[training]
        with torch.no_grad():
            reference = Reference(dense, zeroed, small.graph, self._masks, self._canonical, absent)
            expected = reference.outputs(*self._inputs)
            outputs = Reference(small, sliced).outputs(*self._inputs)
            whole = [number for number in range(len(expected)) if number not in dense.narrow]
            return output_difference([expected[n] for n in whole], [outputs[n] for n in whole])

    def _fresh(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors by all their names; buffers are copied, because training changes them."""
        buffers = {self._canonical[n] for n, tensor in self._tensors.items() if not isinstance(tensor, nn.Parameter)}
        own = {name: tensor.clone() if name in buffers else tensor for name, tensor in tensors.items()}
        return {name: own[self._canonical[name]] for name in self._tensors}


def _tensors(model: GraphModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def is_large(example_inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether a proof on these inputs takes long."""
    return any(x.dim() and x[0].numel() > _LARGE for x in example_inputs)


def random_like(x: torch.Tensor, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Return a random input of `batch` examples in float64; of integers, the first example is repeated."""
    if not x.is_floating_point() or not x.dim():
        return x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x
    return torch.randn((batch, *x.shape[1:]), generator=generator, dtype=torch.float64)


def randomize(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Overwrite a parameter or buffer by random numbers and return it.

    Matrices and kernels are normal, scaled by fan-in; vectors (biases, norms, variances) are uniform in 0.5 to 1.5.
    """
    if tensor.dim() < 2:
        return tensor.uniform_(0.5, 1.5, generator=generator)
    fan_in = max(tensor[0].numel(), 1)
    return tensor.normal_(generator=generator).div_(fan_in**0.5)


def _cut_both_ways(
    tensor: torch.Tensor, name: str, masks: Mapping[Site, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tensor with removed entries zeroed (in place), and a tensor without these entries."""
    sliced = tensor
    for dim in range(tensor.dim()):
        mask = masks.get(("parameter", name, dim))
        if mask is not None:
            kept = torch.from_numpy(mask)
            sliced = sliced.index_select(dim, kept.nonzero().flatten())
            tensor.index_fill_(dim, (~kept).nonzero().flatten(), 0.0)
    return tensor, sliced


def output_difference(expected: object, outputs: object) -> float:
    """Return the largest difference of nested outputs, relative to the largest entry of each expected tensor.

    `inf` when shapes differ, or an entry is not finite in one side alone; equal infinities do not count.
    """
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(outputs), strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
            differ = a != b  # equal infinities, such as masked scores, are no difference
            a, b = a[differ], b[differ]
            if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
                return float("inf")
            worst = max(worst, float((a - b).abs().max()) / (scale or 1.0)) if a.numel() else worst
    return worst
