"""Steps of several batches, and the average of the weights."""

import pytest
import torch
from torch import nn

from autoprune.errors import UsageError
from autoprune.task.recipe import Recipe
from autoprune.training.objective import LossTerm
from autoprune.training.update import Updates

X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [2.0, 2.0]])


def trained(batches, **recipe):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    updates = Updates(model, torch.optim.SGD(model.parameters(), lr=0.1), Recipe(clip_norm=0, **recipe))
    states = []
    for batch in batches:
        updates.take([LossTerm(weight=1.0, value=model(batch).square().mean())], 0.1)
        states.append(model.weight.detach().clone())
    updates.finish(0.1)
    return model, states


def test_two_batches_in_one_step_are_one_of_twice_the_size():
    halves, states = trained(X.split(2), accumulate=2)
    whole, _ = trained([X])
    torch.testing.assert_close(halves.weight, whole.weight)
    assert torch.equal(states[0], trained([])[0].weight)


def test_batches_that_are_left_over_make_a_step():
    assert not torch.equal(trained([X], accumulate=2)[0].weight, trained([])[0].weight)


def test_the_average_follows_the_weights():
    model, states = trained([X] * 30, ema=0.5)
    expected = states[0]
    for step, state in enumerate(states[1:], 2):
        expected = torch.lerp(expected, state, 1 - min(0.5, step / (step + 9)))
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("values", [{"accumulate": 0}, {"ema": 1.0}])
def test_ranges(values):
    with pytest.raises(UsageError, match="must lie in"):
        Recipe(**values)
