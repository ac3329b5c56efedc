"""Masks of weights: where a pattern leaves numbers, by scores or at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.sparsity.patterns import Pattern


def pattern_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Return where a weight keeps its numbers: where the scores are highest that the pattern allows.

    The score of a block is the sum of its numbers' scores. Of equal scores the first ones are kept.

    Args:
        scores: of the numbers of a weight, `[O, I, ...]`, in the order of their importance; infinities count as large
            numbers.
        pattern: of the weight.

    Returns:
        Mask, bool `[O, I, ...]`, that holds `pattern.blocks_left` blocks.

    Example:
        >>> pattern_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), Pattern.parse("2:4"))
        tensor([[False,  True,  True, False]])
    """
    blocks = block_sums(scores, pattern)
    flat = blocks if pattern.of else blocks.flatten()[None, :, None]
    kept = _highest_of_groups(flat, pattern) if pattern.of else _highest(flat, _left(scores, pattern))
    return _spread(kept.reshape(blocks.shape), scores, pattern)


def block_sums(scores: Tensor, pattern: Pattern) -> Tensor:
    """Return the scores of the blocks of a weight, `[O / rows, I / columns, K]`; smaller blocks at its ends, too."""
    whole = scores.reshape(*_shape(scores))
    rows, columns = pattern.block
    if pattern.block == (1, 1):
        return whole
    padded = functional.pad(whole, (0, 0, 0, -whole.shape[1] % columns, 0, -whole.shape[0] % rows))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3))


def _left(scores: Tensor, pattern: Pattern) -> int:
    return int(pattern.blocks_left(*_shape(scores)))


def _shape(weight: Tensor) -> tuple[int, int, int]:
    """Return outputs, inputs and positions of the kernel of a weight."""
    inputs = weight.shape[1] if weight.dim() > 1 else 1
    return len(weight), inputs, weight[0].numel() // max(inputs, 1) if len(weight) else 1


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of so many highest scores along the second dimension of `[A, S, B]`."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _highest_of_groups(blocks: Tensor, pattern: Pattern) -> Tensor:
    """Return the mask `[A, S, B]` of the highest scores of every group along the second dimension."""
    size = blocks.shape[1]
    padded = functional.pad(blocks, (0, 0, 0, -size % pattern.of), value=-torch.inf)
    groups = padded.transpose(1, 2).reshape(-1, pattern.of, 1)
    kept = _highest(groups, pattern.kept).reshape(len(blocks), blocks.shape[2], -1).transpose(1, 2)
    return kept[:, :size]


def _spread(blocks: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:
    """Return a mask of blocks as one of the numbers of a weight."""
    rows, columns = pattern.block
    outputs, inputs, _ = _shape(weight)
    each = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return each[:outputs, :inputs].reshape(weight.shape)
