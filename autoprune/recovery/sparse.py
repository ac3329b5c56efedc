"""Zeros among the weights of layers: which ones go, and what the others become so that outputs change least.

X `[rows, D]` are the input windows of a layer in the model whose earlier layers have zeros already, Y `[rows, O]` the
outputs of the same layer in the whole model at the same positions, S = E[x x^T] and C = E[x y^T].

1. The weights w are the ridge regression of Y on X, which pulls towards the layer's own weight. Of D inputs and N rows,
   S and C are seen for a share N / (N + D) only: for the rest inputs are taken to be independent, and each weight to be
   right. A linear layer that reads each example once would else be fitted to the examples at hand.
2. A weight that becomes zero costs w^2 / (S^-1)_jj when the other weights of its output make up for it. The cheapest
   ones go, as the pattern of the layer says, in two rounds where the pattern is a share: first down to the geometric
   mean of one and the density. The score of a block is the sum of the scores of its weights.
3. What is left of every output is fitted again, exactly: S_kk w_k = C_k for the places k that are left.

Layers with more columns than `_MOST_COLUMNS` lose the weights with the smallest |w_j| times the norm of input j, and
those of other kinds (LSTM) the smallest |w|; what is left of these stays as it is.

Source: optimal brain surgeon, Hassibi and Stork 1992
(https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html); layer by layer for
zeros, OBC, Frantar and Alistarh 2022 (https://arxiv.org/abs/2208.11580) and SparseGPT 2023
(https://arxiv.org/abs/2301.00774); moments of few rows, shrunk towards their diagonal, Ledoit and Wolf 2004
(https://doi.org/10.1016/S0047-259X(03)00096-4); norms of inputs, Wanda, Sun et al. 2023 (https://arxiv.org/abs/2306.11695).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.errors import TrialError
from autoprune.recovery.consumers import groups_of
from autoprune.recovery.layer_fitting import LayerFitter, OutputRecorder
from autoprune.recovery.windows import input_windows
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.low_rank import bias_names, weight_name

Zeros = Pattern | Tensor
"""A pattern, whose zeros are chosen by their cost, or the mask of the weights that stay, bool in the weight's shape."""

_RIDGE = 0.03
"""Added to the diagonal of second moments, as a share of its mean."""

_MOST_COLUMNS = 2304
"""A layer with more columns is not fitted: its inverse would take longer than a fine-tuning."""

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
    whole = OutputRecorder(copy.deepcopy(model).evaluation_graph(), fitted, len(inputs[0]))
    whole.run(*inputs)
    for name in patterns.keys() - fitted:
        tensors[name].mul_(_mask(tensors[name].abs(), patterns[name]))
    _SparseFitter(model, {name: patterns[name] for name in fitted}, whole).run(*inputs)
    return model


class _SparseFitter(LayerFitter):
    """Gives every layer its zeros before it is used; a layer that runs several times is fitted the first time."""

    def __init__(self, model: GraphModel, patterns: Mapping[str, Zeros], whole: OutputRecorder) -> None:
        super().__init__(model, patterns, whole)
        self._patterns, self._biases = patterns, bias_names(model, patterns)
        self._done = set[str]()

    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Set weights of a layer to zero and fit the others."""
        if name in self._done:
            return
        self._done.add(name)
        weight, rows, target = args[1], self._whole.sample(input_windows(node, args), args[1]), self._whole.targets
        own, added = self._biases[name], args[2] if len(args) > 2 else None
        given = 0 if own or added is None else added
        normed = any(user.target is torch.ops.aten.batch_norm.default for user in node.users)
        bias = sparse_fit(
            weight, rows, target[node.name] - given, self._patterns[name], groups_of(node, args),
            centred=bool(own) or normed,
        )  # fmt: skip
        if own and added is not None:
            added.copy_(bias)


def sparse_fit(
    weight: Tensor, rows: Tensor, target: Tensor, pattern: Zeros, groups: int = 1, *, centred: bool
) -> Tensor:
    """Set weights to zero as a pattern says, in place, and fit the others to the outputs that are wanted.

    Args:
        weight: `[O, I, ...]`.
        rows: inputs `[rows, D]` of all groups.
        target: wanted outputs `[rows, O]`.
        pattern: of the zeros, or the mask of the weights that stay, bool `[O, I, ...]`.
        groups: of a convolution.
        centred: whether a bias or a batch norm takes up the means of the outputs.

    Returns:
        The bias `[O]` that takes up the means; it counts where `centred`.

    Raises:
        TrialError: rows or targets are not finite.
    """
    if not bool(torch.isfinite(rows).all() and torch.isfinite(target).all()):
        raise TrialError("activations must be finite; those of a layer that becomes sparse are not")
    x, y = rows.double(), target.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    if centred:
        x, y = x - x_mean, y - y_mean
    x = x.unflatten(1, (groups, -1)).transpose(0, 1)  # [G, rows, D]
    if x.shape[2] > _MOST_COLUMNS:
        norms = (x**2).mean(1).sqrt().repeat_interleave(len(weight) // groups, 0).reshape(weight.shape)
        weight.mul_(_mask(weight.abs() * norms, pattern))
    else:
        weight.copy_(_fitted(weight, x, y, pattern))
    by_group = weight.double().reshape(groups, -1, x.shape[2]) @ x_mean.reshape(groups, -1, 1)
    return (y_mean - by_group.flatten()).to(weight.dtype)


def _fitted(weight: Tensor, x: Tensor, y: Tensor, pattern: Zeros) -> Tensor:
    """Return the weight with zeros, `[O, I, ...]`, for inputs `[G, rows, D]` and outputs `[rows, O]`."""
    groups, count, columns = x.shape
    own = weight.double().reshape(groups, -1, columns)
    seen, unseen = count / (count + columns), columns / (count + columns)
    moments = x.mT @ x / count
    wanted = y.reshape(count, groups, -1).permute(1, 2, 0) @ x / count
    alone = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    ridge = (_RIDGE * moments.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)[:, None, None]
    alone, second = unseen * alone + ridge * torch.eye(columns, dtype=alone.dtype), seen * moments
    system = _System(second=second + alone, cross=seen * wanted + own @ alone)
    kept = torch.ones_like(own, dtype=torch.bool)
    values, gains = system.solved(kept)
    for step in _rounds(pattern):
        scores = torch.where(kept, values**2 / gains, -1.0)
        kept = _mask(scores.reshape(weight.shape), step).reshape(own.shape)
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
