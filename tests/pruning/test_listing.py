import numpy as np
import torch
from torch import nn

import autoprune


def test_units_with_their_shares_and_fixed_dimensions():
    model = nn.Sequential(nn.Linear(4, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    table = autoprune.units(model, torch.zeros(1, 4))
    unit = table.iloc[0]
    assert (unit["name"], unit["kind"], unit["width"], unit["removable"]) == ("0", "channel", 10, False)
    assert unit["members"] == "0.weight[0], 2.weight[1]"
    assert np.isclose(unit["params_share"], 0.9)
    assert np.isclose(unit["macs_share"], 0.9)
    fixed = table[table["kind"] == "fixed"].set_index("members")
    assert fixed.loc["0.weight[1]", "reason"] == "reads a fixed input"
    assert fixed.loc["2.weight[0]", "width"] == 3
