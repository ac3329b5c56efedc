import numpy as np
import pytest
import torch
from torch import nn

from autoprune.onnxgraph.outputs import finite_inputs, holds_nan, relative_difference, torch_outputs


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


DRAWN, EXAMPLES = [torch.tensor([[-1.0, 2.0]])], [torch.tensor([[4.0, 0.5]])]


def chosen(function, drawn=DRAWN, examples=EXAMPLES):
    return finite_inputs(Applied(function), drawn, examples, torch.Generator().manual_seed(0))


def test_random_inputs_stay_where_outputs_are_finite():
    assert chosen(torch.exp) is DRAWN


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, lambda x: (1 / (x - 2), x)])
def test_noisy_examples_take_the_place_of_inputs_without_finite_outputs(function):
    (inputs,) = chosen(function)
    assert not torch.equal(inputs, EXAMPLES[0])
    assert torch.allclose(inputs, EXAMPLES[0], rtol=0.05)


def test_examples_themselves_are_taken_where_noise_is_too_much():
    assert chosen(lambda x: torch.log(2 * (x == 4).sum(1) - 1)) is EXAMPLES


def test_whole_numbers_have_no_noise():
    inputs = chosen(
        lambda x, y: torch.log(x) + y, [*DRAWN, torch.tensor([[3, 4]])], [*EXAMPLES, torch.tensor([[5, 6]])]
    )
    assert torch.equal(inputs[1], torch.tensor([[5, 6]]))


def test_outputs_that_are_always_infinite_do_not_change_the_inputs():
    assert chosen(lambda x: x.masked_fill(torch.tensor([True, False]), -float("inf"))) is DRAWN


def test_infinite_outputs_are_better_than_no_numbers():
    assert chosen(lambda x: torch.log(x) * float("inf")) is not DRAWN
    assert chosen(lambda x: x * float("nan")) is DRAWN


def test_a_model_is_evaluated_and_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    before = model[0].running_mean.clone()
    (output,) = torch_outputs(model, [torch.ones(3, 2)])
    np.testing.assert_allclose(output, 1, rtol=1e-4)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[0].running_mean, before)


def test_parameters_are_outputs_like_others():
    layer = nn.Linear(2, 3)
    outputs = torch_outputs(Applied(lambda x: {"y": layer(x), "w": (layer.weight, None)}), [torch.ones(1, 2)])
    assert [value.shape for value in outputs] == [(1, 3), (3, 2)]


def test_no_number_differs_from_everything():
    values = [np.array([1.0, np.inf, 2.0])]
    assert relative_difference(values, values) == 0
    assert relative_difference(values, [np.array([1.0, np.inf, 2.2])]) == pytest.approx(0.1)
    for wrong in ([1.0, 3.0, 2.0], [1.0, np.inf, np.nan], [1.0]):
        assert relative_difference(values, [np.array(wrong)]) == np.inf
    no_number = [np.array([np.nan])]
    assert holds_nan(no_number)
    assert not holds_nan([*values, np.array([True]), np.array([3])])
    assert relative_difference(no_number, no_number) == np.inf
