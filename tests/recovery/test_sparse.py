"""Zeros in the layers of a model."""

import copy

import torch
from torch import nn

from autoprune.recovery.sparse import make_sparse
from autoprune.sparsity.masks import pattern_mask
from autoprune.structure import analyze
from tests.recovery.zeros import normal, pattern_of


def test_layers_of_a_model_make_up_for_those_before_them():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    inputs = normal(64, 3, 6, 6).cumsum(-1)
    structure = analyze(net.eval(), inputs[:1])
    dense = structure.shrink(structure.dense_policy()).eval()
    pattern = pattern_of("sparse:60%")
    patterns = dict.fromkeys(("0.weight", "3.weight", "6.weight"), pattern)
    made, smallest = copy.deepcopy(dense), copy.deepcopy(dense)
    make_sparse(made, patterns, [inputs])
    for name in patterns:
        weight = smallest.get_parameter(name)
        weight.data *= pattern_mask(weight.abs(), pattern)
        assert int((made.get_parameter(name) != 0).sum()) == int((weight != 0).sum())
    with torch.no_grad():
        lost = [float((model(inputs) - dense(inputs)).square().mean()) for model in (made, smallest)]
    assert lost[0] < 0.5 * lost[1]
