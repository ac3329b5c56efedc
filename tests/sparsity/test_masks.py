"""Masks of weights by scores: shares, N:M along the inputs, and blocks."""

from __future__ import annotations

import pytest
import torch

from autoprune.sparsity.masks import pattern_mask
from autoprune.sparsity.patterns import Pattern

SHAPES = ((8, 16), (8, 16, 3, 3), (6, 5), (4, 1, 3, 3), (7, 3, 3))


def _pattern(text: str) -> Pattern:
    pattern = Pattern.parse(text)
    assert pattern is not None
    return pattern


@pytest.mark.parametrize(
    "text", ["sparse:80%", "2:4", "1:4", "sparse:50%@4x1", "2:4@2x1", "sparse:75%@8x4", "sparse:99.99%"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_holds_as_many_numbers_as_its_pattern_counts(text: str, shape: tuple[int, ...]) -> None:
    pattern, scores = _pattern(text), torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    mask = pattern_mask(scores, pattern)
    kernel = scores[0, 0].numel()
    assert mask.shape == scores.shape
    assert mask.dtype == torch.bool
    most = int(pattern.nonzeros(shape[0], shape[1], kernel))
    assert int(mask.sum()) == most if pattern.divides(*shape[:2]) else 0 < int(mask.sum()) <= most


def test_an_unstructured_mask_keeps_the_highest_scores_of_the_layer() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0], [0.0, 3.0, 2.0]])
    assert pattern_mask(scores, _pattern("sparse:50%")).tolist() == [[True, False, True], [False, True, False]]


def test_n_of_m_are_kept_of_consecutive_inputs_at_each_position_of_the_kernel() -> None:
    scores = torch.rand(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    groups = pattern_mask(scores, _pattern("2:4")).unflatten(1, (2, 4))
    assert bool((groups.sum(2) == 2).all())
    highest = scores.unflatten(1, (2, 4)).topk(2, dim=2).indices
    assert bool(groups.gather(2, highest).all())


def test_blocks_are_zero_together() -> None:
    scores = torch.rand(8, 4, 2, generator=torch.Generator().manual_seed(0))
    blocks = pattern_mask(scores, _pattern("sparse:75%@4x2")).unflatten(1, (2, 2)).unflatten(0, (2, 4))
    assert bool(((blocks.sum((1, 3)) == 0) | (blocks.sum((1, 3)) == 8)).all())


def test_of_equal_scores_the_first_are_kept() -> None:
    assert pattern_mask(torch.ones(1, 8), _pattern("2:4")).tolist() == [[True, True, False, False] * 2]
    assert pattern_mask(torch.ones(2, 2), _pattern("sparse:75%")).tolist() == [[True, False], [False, False]]
