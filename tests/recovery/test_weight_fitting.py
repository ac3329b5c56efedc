"""Weights of one layer, fitted whole or with zeros: chosen and made up for by the inputs that a layer sees."""

from functools import partial

import pytest
import torch

from autoprune.errors import TrialError
from autoprune.quantization.grid import rounded_blocks, weight_scales
from autoprune.recovery import weight_fitting
from autoprune.recovery.moments import Moments
from autoprune.recovery.optimal_rounding import InputMoments, on_block_grids, rounded_by_moments
from autoprune.recovery.weight_fitting import fit_in_place, sparse_weight
from autoprune.sparsity.masks import pattern_mask
from tests.recovery.zeros import correlated, normal, pattern_of


def sparse_fit(weight, rows, target, pattern, groups=1, *, centred):
    return fit_in_place(weight, rows, target, partial(sparse_weight, zeros=pattern), groups, centred=centred)


@pytest.mark.parametrize("text", ["sparse:50%", "sparse:80%", "2:4", "1:4", "sparse:50%@4x1", "2:4@2x1"])
@pytest.mark.parametrize("most_columns", [2304, 10])
def test_outputs_change_less_than_by_the_smallest_weights(text, most_columns, monkeypatch):
    monkeypatch.setattr(weight_fitting, "MOST_COLUMNS", most_columns)
    weight, rows, pattern = normal(8, 16, seed=2), correlated(400, 16) * torch.linspace(0.1, 3, 16), pattern_of(text)
    smallest, fitted = weight * pattern_mask(weight.abs(), pattern), weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT, pattern, centred=False)
    assert int((fitted != 0).sum()) == pattern.nonzeros(8, 16)
    lost = [float((rows @ (weight - other).mT).square().mean()) for other in (fitted, smallest)]
    assert lost[0] < (0.5 if most_columns == 2304 else 1.0) * lost[1]


def test_few_rows_do_not_overrule_the_weights():
    """With fewer rows than inputs a plain fit is right on the rows it saw, and worse than no fit on others."""
    rows, unseen, weight = normal(24, 96, seed=1), normal(4000, 96, seed=2), normal(8, 96, seed=3)
    noise = 0.5 * normal(24, 8, seed=4)  # of the inputs, which earlier layers changed
    smallest, fitted = weight * pattern_mask(weight.abs(), pattern_of("sparse:50%")), weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT + noise, pattern_of("sparse:50%"), centred=False)
    error, of_smallest = (((unseen @ (each - weight).mT) ** 2).mean() for each in (fitted, smallest))
    assert error < 1.25 * of_smallest


def test_groups_of_a_convolution_and_a_bias_are_fitted():
    weight, rows, shift = normal(6, 3, 3, seed=2), normal(300, 18), torch.arange(6.0)
    by_group = [rows[:, 9 * g : 9 * g + 9] @ weight[3 * g : 3 * g + 3].flatten(1).mT for g in (0, 1)]
    fitted = weight.clone()
    bias = sparse_fit(fitted, rows, torch.cat(by_group, 1) + shift, pattern_of("sparse:0.01%"), 2, centred=True)
    torch.testing.assert_close(fitted, weight, atol=0.05, rtol=0.05)
    torch.testing.assert_close(bias, shift, atol=0.05, rtol=0.05)


def test_a_large_weight_that_others_could_replace_outlasts_a_small_one():
    """The second and third input are the same, so that either costs less than the first weight when it goes."""
    rows = normal(256, 2)[:, [0, 1, 1]]
    weight = torch.tensor([[0.35, 1.0, 1.0]])
    fitted = weight.clone()
    sparse_fit(fitted, rows, rows @ weight.mT, pattern_of("sparse:34%"), centred=False)
    assert (fitted != 0).tolist() == [[False, True, True]]


def test_inputs_that_are_not_finite_are_an_error():
    with pytest.raises(TrialError, match="activations must be finite"):
        sparse_fit(normal(2, 4), normal(8, 4) / 0, normal(8, 2), pattern_of("2:4"), centred=False)


def test_rounding_keeps_zeros():
    rows, weight = correlated(256, 64), normal(8, 64, seed=2)
    weight *= pattern_mask(weight.abs(), pattern_of("2:4"))
    moments = Moments(mean=rows.mean(0)[None].double(), raw=(rows.mT @ rows / 256)[None].double())
    both, numbers = InputMoments(fitted=moments, held_out=moments), weight.numpy()
    steps = rounded_by_moments(numbers, 4 * weight_scales(numbers, None, 1.0), both, centred=False)
    assert (steps[numbers == 0] == 0).all()
    assert (on_block_grids(numbers, 4, both)[numbers == 0] == 0).all()
    assert (rounded_blocks(numbers, 4).values[numbers == 0] == 0).all()
