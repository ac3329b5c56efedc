import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.quantization.grid import (
    LARGEST_SATURATING_WEIGHT,
    LARGEST_WEIGHT,
    LEVELS,
    Range,
    bias_in_grid,
    nearest,
    rounded_bias,
)
from autoprune.quantization.ranges import CANDIDATES, best_range, candidate_ranges, own_errors
from autoprune.quantization.rounding import in_grid, weight_in_grid

NUMBERS = st.floats(-1e3, 1e3, width=32)


@given(low=NUMBERS, size=st.floats(0, 1e3, width=32), values=st.lists(NUMBERS, min_size=1))
def test_the_grid_of_a_range_holds_zero_and_rounds_what_is_inside_by_half_a_step(low, size, values):
    grid = Range(low=low, high=low + size)
    assert 0 <= grid.zero_point <= LEVELS
    x = torch.tensor(values)
    y = in_grid(x, grid.scale, grid.zero_point)
    steps = y / grid.scale
    assert torch.equal(in_grid(torch.zeros(1), grid.scale, grid.zero_point), torch.zeros(1))
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    inside = (x >= min(low, 0)) & (x <= max(low + size, 0))
    assert float((x - y)[inside].abs().max() if inside.any() else 0) <= 1.01 * grid.scale  # the ends may be rounded


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_has_two_finite_ends(low, high):
    with pytest.raises(ValueError, match="two finite numbers, the lower one first"):
        Range(low=low, high=high)


def test_filters_are_rounded_on_their_own_and_biases_always_fit():
    weight = np.array([[1.0, -0.5], [1e-9, 0.0], [0.0, 0.0]], np.float32)
    bias = np.array([0.3, 2.0, -1.0], np.float32)
    rounded = nearest(weight, bias, input_scale=0.01)
    np.testing.assert_allclose(rounded.values[0], weight[0], atol=0.004)
    steps, scales = rounded_bias(bias, rounded.scales, 0.01)
    np.testing.assert_allclose(steps * scales, bias, rtol=1e-4, atol=1e-4)
    assert steps.dtype == np.int32
    assert np.abs(steps.astype(np.int64)).max() <= 2**30


def test_an_outlier_is_clipped_and_small_tensors_are_not():
    values = torch.rand(20_000, generator=torch.Generator().manual_seed(0))

    def chosen(values, extremes):
        candidates = candidate_ranges(values, extremes)
        assert len(candidates) == CANDIDATES
        return best_range(candidates, own_errors(values, candidates))

    assert chosen(values, [0.0, 1.0]).high == 1
    assert chosen(values, [0.0, 3.0]).high < 2  # no number is near the end
    assert chosen(torch.zeros(5), [0.0, 0.0]).scale > 0


def test_gradients_pass_where_nothing_is_clipped():
    x = torch.tensor([-3.0, 0.2, 0.9, 7.0], requires_grad=True)
    in_grid(x, 1 / 255, 0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
    weight = torch.tensor([[1.0, 0.4], [0.1, 0.2]], requires_grad=True)
    rounded = weight_in_grid(weight, torch.tensor([0.5, 0.1]))
    assert rounded.tolist() == [pytest.approx([1, 0.5]), pytest.approx([0.1, 0.2])]
    rounded.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 1], [1, 1]]


def test_a_bias_in_the_grid_is_what_a_file_stores_and_stays_so():
    scales = np.array([0.01, 1e-4], np.float32)
    once = bias_in_grid(np.array([0.123456, -0.5], np.float32), scales, 0.05)
    steps, of_sums = rounded_bias(once, scales, 0.05)
    np.testing.assert_allclose(steps * of_sums, once, rtol=1e-6)
    np.testing.assert_allclose(bias_in_grid(once, scales, 0.05), once, rtol=1e-6)
    assert abs(once[0] - 0.123456) <= 0.00025


def test_two_products_of_weights_of_seven_bits_fit_in_16_bits():
    weight = np.array([[1.0, -0.5], [0.3, 0.1]], np.float32)
    rounded = nearest(weight, None, input_scale=0.01, largest_weight=LARGEST_SATURATING_WEIGHT)
    assert np.abs(rounded.steps).max() == LARGEST_SATURATING_WEIGHT
    assert 2 * LEVELS * LARGEST_SATURATING_WEIGHT <= np.iinfo(np.int16).max < 2 * LEVELS * LARGEST_WEIGHT
    np.testing.assert_allclose(rounded.values, weight, atol=0.5 / LARGEST_SATURATING_WEIGHT)
