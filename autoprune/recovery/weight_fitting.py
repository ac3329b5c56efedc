"""Fits of the weights of one layer to the outputs that are wanted, by the moments of its inputs, whole or with zeros.

X `[rows, D]` are the inputs of a layer, Y `[rows, O]` the outputs that are wanted, S = E[x x^T] and C = E[y x^T]. Of D
inputs and N rows, S and C count for N / (N + D) only: for the rest inputs are taken to be independent, and each weight
to be right. A linear layer that reads each example once would else be fitted to the examples at hand.

Zeros of a weight come in three steps:

1. The weights w of an output are S^-1 C, as if all stayed.
2. A weight that becomes zero costs w^2 / (S^-1)_jj when the other weights of its output make up for it. The score of a
   weight is the geometric mean of this and of the square of the weight that was given: what costs little here may
   matter in the net, and training has made that large. The lowest ones go, as the pattern says, in two rounds where
   the pattern is a share: first down to the geometric mean of one and the density. The score of a block is the sum of
   the scores of its weights.
3. What is left of every output is fitted again, exactly: S_kk w_k = C_k for the places k that are left.

Source: moments of few rows, shrunk towards their diagonal, Ledoit and Wolf 2004
(https://doi.org/10.1016/S0047-259X(03)00096-4); optimal brain surgeon, Hassibi and Stork 1992
(https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html); layer by layer for
zeros, OBC, Frantar and Alistarh 2022 (https://arxiv.org/abs/2208.11580) and SparseGPT 2023
(https://arxiv.org/abs/2301.00774); norms of inputs, Wanda, Sun et al. 2023 (https://arxiv.org/abs/2306.11695).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.errors import TrialError
from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern

Fit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The signature of `whole_weight`."""

Zeros = Pattern | Tensor
"""A pattern, whose zeros are chosen by their cost, or the mask of the weights that stay, bool in the weight's shape."""

MOST_COLUMNS = 2304
"""A layer with more columns is not fitted: its inverse would take longer than a fine-tuning."""

_RIDGE = 0.03
"""Added to the diagonal of second moments, as a share of its mean."""

_MOST_NUMBERS = 1 << 23
"""Numbers of the systems of equations that are solved at once."""


def fitting_moments(weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return second moments `[G, D, D]` of the inputs of a layer and cross moments `[G, O / G, D]` with its outputs.

    Args:
        weight: `[O, I, ...]`, towards which they pull.
        x: inputs `[G, rows, D]` of G groups.
        y: wanted outputs `[rows, O]`.
    """
    groups, count, columns = x.shape
    own = weight.double().reshape(groups, -1, columns)
    seen, unseen = count / (count + columns), columns / (count + columns)
    moments = x.mT @ x / count
    wanted = y.reshape(count, groups, -1).permute(1, 2, 0) @ x / count
    alone = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    ridge = (_RIDGE * moments.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)[:, None, None]
    alone, second = unseen * alone + ridge * torch.eye(columns, dtype=alone.dtype), seen * moments
    return second + alone, seen * wanted + own @ alone


def whole_weight(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the weight without zeros that writes what is wanted; arguments: see `fitting_moments`."""
    second, cross = fitting_moments(weight, x, y)
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky(second)).mT.reshape(weight.shape).to(weight.dtype)


def fit_in_place(
    weight: Tensor, rows: Tensor, target: Tensor, fit: Fit = whole_weight, groups: int = 1, *, centred: bool
) -> Tensor:
    """Fit a weight to the outputs that are wanted, in place.

    Args:
        weight: `[O, I, ...]`.
        rows: inputs `[rows, D]` of all groups.
        target: wanted outputs `[rows, O]`.
        fit: returns the new weight.
        groups: of a convolution.
        centred: whether a bias or a batch norm takes up the means of the outputs.

    Returns:
        The bias `[O]` that takes up the means; it counts where `centred`.

    Raises:
        TrialError: rows or targets are not finite.
    """
    if not bool(torch.isfinite(rows).all() and torch.isfinite(target).all()):
        raise TrialError("activations must be finite; those of a layer that is fitted are not")
    x, y = rows.double(), target.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    if centred:
        x, y = x - x_mean, y - y_mean
    x = x.unflatten(1, (groups, -1)).transpose(0, 1)  # [G, rows, D]
    weight.copy_(fit(weight, x, y))
    by_group = weight.double().reshape(groups, -1, x.shape[2]) @ x_mean.reshape(groups, -1, 1)
    return (y_mean - by_group.flatten()).to(weight.dtype)


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
        return weight * mask_of(weight.abs() * norms, zeros)
    second, cross = fitting_moments(weight, x, y)
    system = System(second=second, cross=cross)
    kept = torch.ones_like(cross, dtype=torch.bool)
    values, gains = system.solved(kept)
    for step in rounds_of(zeros):
        scores = scores_of(weight.reshape(cross.shape), values, gains, kept)
        kept = mask_of(scores.reshape(weight.shape), step).reshape(cross.shape)
        values, gains = system.solved(kept)
    return values.reshape(weight.shape).to(weight.dtype)


def scores_of(weight: Tensor, values: Tensor, gains: Tensor, kept: Tensor) -> Tensor:
    """Return the scores of weights with these fitted `values` and diagonals of the inverse; -1 of those that went."""
    return torch.where(kept, (weight * values).abs() / gains.sqrt(), -1.0)


def mask_of(scores: Tensor, zeros: Zeros) -> Tensor:
    """Return where a weight keeps its numbers, by their scores where no mask says it."""
    return zeros if isinstance(zeros, Tensor) else pattern_mask(scores, zeros)


def rounds_of(pattern: Zeros) -> list[Zeros]:
    """Return the patterns through which a weight goes on to the last one."""
    if isinstance(pattern, Tensor) or pattern.of:
        return [pattern]
    middle = round(10_000 * (1 - pattern.density**0.5))
    return [*([Pattern(share=middle, block=pattern.block)] if 0 < middle < pattern.share else []), pattern]


@dataclass(frozen=True, kw_only=True)
class System:
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
