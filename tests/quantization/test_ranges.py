"""Ranges follow from what the outputs of layers lose, not from the errors of the tensor itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.quantization.calibration import calibrated
from autoprune.quantization.grid import Range
from autoprune.recovery.optimal_rounding import MomentRounding
from autoprune.structure import analyze


def range_of_the_input(weights_of_outlier: list[float]) -> Range:
    """The range of the tensor that the second layer reads; one of its eight channels is 100 times as large."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight[:] = torch.eye(8)
        net[0].weight[0, 0] = 100.0
        net[2].weight[:, 0] = torch.tensor(weights_of_outlier)
    x = torch.rand(64, 8)
    structure = analyze(net.eval(), (x[:1],))
    model = structure.shrink(structure.dense_policy(), prove=False).eval()
    placement = structure.placement_in(model.captures[False].graph)
    numbers = calibrated(model, placement, ["2.weight"], (x,), rounding=MomentRounding())
    return numbers.ranges["2.weight.input"]


@pytest.mark.parametrize(("weights", "clipped"), [([0.0] * 4, True), ([0.5, -0.5, 1.0, 0.1], False)])
def test_outliers_are_clipped_where_the_layer_does_not_need_them(weights: list[float], clipped: bool) -> None:
    assert (range_of_the_input(weights).high < 15) == clipped
