"""Zeros among the weights of layers: which ones go, and what the others become so that outputs change least.

Layer after layer, with the moments S and C of `layer_fitting`:

1. The weights w of an output are S^-1 C, as if all stayed.
2. A weight that becomes zero costs w^2 / (S^-1)_jj when the other weights of its output make up for it. The cheapest
   ones go, as the pattern of the layer says, in two rounds where the pattern is a share: first down to the geometric
   mean of one and the density. The score of a block is the sum of the scores of its weights.
3. What is left of every output is fitted again, exactly: S_kk w_k = C_k for the places k that are left.

Layers with more columns than `MOST_COLUMNS` lose the weights with the smallest |w_j| times the norm of input j, and
those of other kinds (recurrent ones, convolutions of three dimensions) the smallest |w|; what is left of these stays
as it is.

Source: optimal brain surgeon, Hassibi and Stork 1992
(https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html); layer by layer for
zeros, OBC, Frantar and Alistarh 2022 (https://arxiv.org/abs/2208.11580) and SparseGPT 2023
(https://arxiv.org/abs/2301.00774); norms of inputs, Wanda, Sun et al. 2023 (https://arxiv.org/abs/2306.11695).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.recovery.layer_fitting import (
    MOST_COLUMNS,
    LayerFitter,
    OutputRecorder,
    fitted_layers,
    fitting_moments,
)
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.low_rank import weight_name

Zeros = Pattern | Tensor
"""A pattern, whose zeros are chosen by their cost, or the mask of the weights that stay, bool in the weight's shape."""

_MOST_NUMBERS = 1 << 23
"""Numbers of the systems of equations that are solved at once."""


@torch.no_grad()
def make_sparse(model: GraphModel, patterns: Mapping[str, Zeros], inputs: Sequence[Tensor]) -> GraphModel:
    """Return the model after weights of layers became zero as their patterns say, in place, and others were fitted.

    Args:
        model: trained or repaired, in evaluation mode.
        patterns: by the names of weights; a mask in the place of a pattern says itself which weights stay.
        inputs: of the model, tensors `[N, ...]` of some N = 256 training examples.

    Raises:
        TrialError: activations are not finite.
    """
    if not patterns:
        return model
    tensors = module_tensors(model)
    fitted = patterns.keys() & {weight_name(node) for node in model.captures[False].graph.nodes}
    layers = fitted_layers(model.evaluation_graph().graph, fitted)
    whole = OutputRecorder(copy.deepcopy(model).evaluation_graph(), layers, len(inputs[0]))
    whole.run(*inputs)
    for name in patterns.keys() - fitted:
        tensors[name].mul_(_mask(tensors[name].abs(), patterns[name]))
    _SparseFitter(model, patterns, whole).run(*inputs)
    return model


class _SparseFitter(LayerFitter):
    """Gives every layer its zeros before it is used; a layer that runs several times is fitted the first time."""

    def __init__(self, model: GraphModel, patterns: Mapping[str, Zeros], whole: OutputRecorder) -> None:
        super().__init__(model, patterns, whole)
        self._patterns = patterns
        self._done = set[str]()

    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Set weights of a layer to zero and fit the others."""
        if name not in self._done:
            self._done.add(name)
            self.fit_outputs(name, node, args, partial(sparse_weight, zeros=self._patterns[name]))


def sparse_weight(weight: Tensor, x: Tensor, y: Tensor, zeros: Zeros) -> Tensor:
    """Return a weight with zeros, whose other numbers are fitted to the outputs that are wanted.

    Args:
        weight: `[O, I, ...]`.
        x: inputs `[G, rows, D]` of G groups.
        y: wanted outputs `[rows, O]`.
        zeros: pattern, or the mask of the weights that stay, bool `[O, I, ...]`.
    """
    groups, _, columns = x.shape
    if columns > MOST_COLUMNS:
        norms = (x**2).mean(1).sqrt().repeat_interleave(len(weight) // groups, 0).reshape(weight.shape)
        return weight * _mask(weight.abs() * norms, zeros)
    second, cross = fitting_moments(weight, x, y)
    system = _System(second=second, cross=cross)
    kept = torch.ones_like(cross, dtype=torch.bool)
    values, gains = system.solved(kept)
    for step in _rounds(zeros):
        scores = torch.where(kept, values**2 / gains, -1.0)
        kept = _mask(scores.reshape(weight.shape), step).reshape(cross.shape)
        values, gains = system.solved(kept)
    return values.reshape(weight.shape).to(weight.dtype)


def _mask(scores: Tensor, zeros: Zeros) -> Tensor:
    """Return where a weight keeps its numbers, by their scores where no mask says it."""
    return zeros if isinstance(zeros, Tensor) else pattern_mask(scores, zeros)


def _rounds(pattern: Zeros) -> list[Zeros]:
    """Return the patterns through which a weight goes on to the last one."""
    if isinstance(pattern, Tensor) or pattern.of:
        return [pattern]
    middle = round(10_000 * (1 - pattern.density**0.5))
    return [*([Pattern(share=middle, block=pattern.block)] if 0 < middle < pattern.share else []), pattern]


@dataclass(frozen=True, kw_only=True)
class _System:
    """Equations of the least squares of every output: second moments `[G, D, D]`, cross moments `[G, O / G, D]`."""

    second: Tensor
    cross: Tensor

    def solved(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights that are 0 where not `kept` (bool `[G, O / G, D]`), and diagonals of the inverses."""
        if bool(kept.all()):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.second))
            return self.cross @ inverse, inverse.diagonal(dim1=1, dim2=2)[:, None].expand_as(self.cross)
        values, gains = torch.zeros_like(self.cross), torch.ones_like(self.cross)
        most = int(kept.sum(2).max())
        size = max(1, _MOST_NUMBERS // max(most, 1) ** 2)
        for group in range(len(kept)):
            for begin in range(0, kept.shape[1], size):
                part = slice(begin, begin + size)
                values[group, part], gains[group, part] = self._part(group, kept[group, part], part)
        return values, gains

    def _part(self, group: int, kept: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return weights and diagonals `[O, D]` of some outputs of a group; shorter ones are filled up."""
        most = max(int(kept.sum(1).max()), 1)
        places = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        real = kept.gather(1, places)
        systems = self.second[group][places[:, :, None], places[:, None, :]]
        systems = torch.where(real[:, :, None] & real[:, None, :], systems, torch.eye(most, dtype=systems.dtype))
        root = torch.linalg.cholesky(systems)
        wanted = torch.where(real, self.cross[group, part].gather(1, places), 0.0)
        solution = torch.cholesky_solve(wanted[:, :, None], root)[:, :, 0]
        inverse = torch.cholesky_inverse(root).diagonal(dim1=1, dim2=2)
        zeros, ones = torch.zeros_like(kept, dtype=systems.dtype), torch.ones_like(kept, dtype=systems.dtype)
        return zeros.scatter(1, places, solution), ones.scatter(1, places, inverse)
