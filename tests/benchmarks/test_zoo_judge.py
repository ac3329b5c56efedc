from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import zoo_judge
from torch import nn
from torch.nn import functional as F
from zoo_judge import exactness, kept_indices, trains, with_distinct_weights, zeroed


class Net(nn.Module):
    """A grouped convolution, a normalisation of groups and one over channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 32, 3), nn.Conv2d(32, width, 3, groups=4)
        self.groups, self.channels, self.head = nn.GroupNorm(4, width), nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.groups(self.grouped(F.relu(self.first(x)))))
        return self.head(self.channels(x.mean((2, 3))))


X = (torch.randn(2, 3, 8, 8),)


@pytest.fixture
def dense() -> nn.Module:
    return with_distinct_weights(Net())


def cut_to(dense: nn.Module, kept: torch.Tensor) -> Net:
    """The net with some channels of its grouped convolution."""
    cut, state = Net(int(kept.sum())), dense.state_dict()
    for name in state.keys() - {"first.weight", "first.bias", "head.bias"}:
        state[name] = state[name][:, kept] if name == "head.weight" else state[name][kept]
    cut.load_state_dict(state)
    return cut.eval()


HALF_OF_EACH_GROUP = torch.arange(32) % 8 < 4


def test_a_right_cut_is_exact_and_trains(dense: nn.Module) -> None:
    cut = cut_to(dense, HALF_OF_EACH_GROUP)
    assert exactness(dense, cut, X) == "exact"
    assert trains(copy.deepcopy(cut), copy.deepcopy(dense), X)
    cut.first.weight.requires_grad_(False)
    assert not trains(cut, copy.deepcopy(dense), X)


def test_channels_in_other_groups_compute_something_else(dense: nn.Module) -> None:
    assert exactness(dense, cut_to(dense, torch.arange(32) < 16), X) == "different"


def test_values_that_are_not_those_of_the_dense_model_are_unjudged(dense: nn.Module) -> None:
    cut = cut_to(dense, HALF_OF_EACH_GROUP)
    with torch.no_grad():
        cut.head.weight.add_(1)
    assert exactness(dense, cut, X).startswith("unjudged")


def test_kept_indices_are_read_from_the_values() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5, 3))
    rows, columns = [1, 2, 5], [0, 4]
    kept = kept_indices(values, values[np.ix_(rows, columns, range(3))])
    assert [i.tolist() for i in kept] == [rows, columns, [0, 1, 2]]


def test_each_group_may_keep_inputs_of_its_own() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2))
    cut = np.stack([values[0, [0, 2]], values[3, [1, 2]]])
    left = zeroed({"weight": values}, {"weight": cut})["weight"] != 0
    assert left.any(2).tolist() == [[True, False, True], [False] * 3, [False] * 3, [False, True, True]]
    with pytest.raises(zoo_judge.Unjudged, match="not among"):
        zeroed({}, {"weight": cut})
