"""Shares of zeros by weight: the same in all, or by what matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import UsageError
from autoprune.pruning import WEIGHT_RANKINGS, zero_shares
from autoprune.pruning.rates import lamp

SHAPES = {"small": (4, 3), "large": (16, 8), "filters": (8, 4, 3, 3)}


def drawn(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) * (n + 1) for n, (name, shape) in enumerate(SHAPES.items())}


@given(share=st.floats(0.01, 0.99), ranking=st.sampled_from(WEIGHT_RANKINGS))
def test_all_rankings_keep_the_same_number_of_weights(share: float, ranking: str) -> None:
    scores = drawn()
    shares = zero_shares(scores, share, ranking)
    total = sum(values.numel() for values in scores.values())
    zeros = sum(shares[name] * values.numel() for name, values in scores.items())
    assert all(0 <= each < 1 for each in shares.values())
    assert zeros == pytest.approx(share * total, abs=len(scores) + 1)


def test_global_takes_from_the_low_and_lamp_leaves_no_weight_empty() -> None:
    scores = {"low": torch.full((10,), 0.1), "high": torch.linspace(1, 2, 10)}
    assert zero_shares(scores, 0.5, "global") == {"low": 0.9, "high": 0.0}
    by_lamp = zero_shares(scores, 0.9, "lamp")
    assert by_lamp == {"low": 0.9, "high": 0.9}  # the largest of each weight scores 1


def test_lamp_and_zscore_do_not_depend_on_the_scale_of_a_weight() -> None:
    scores = drawn()
    scaled = scores | {"large": 1000 * scores["large"]}
    for ranking in ("lamp", "zscore"):
        assert zero_shares(scores, 0.7, ranking) == zero_shares(scaled, 0.7, ranking)
    assert zero_shares(scores, 0.7, "global") != zero_shares(scaled, 0.7, "global")


def test_lamp_by_hand() -> None:
    values = lamp(torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(values, torch.tensor([4 / 13, 1 / 14, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan")])
def test_shares_outside_of_0_and_1(share: float) -> None:
    with pytest.raises(UsageError, match="the share of zeros is above 0 and below 1"):
        zero_shares(drawn(), share)
    with pytest.raises(UsageError, match=r"unknown ranking 'globl'\. Did you mean 'global'"):
        zero_shares(drawn(), 0.5, "globl")
