"""Recurrent cells in a loop: hidden units go with all gates, exactly, and cells compute what PyTorch's compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune import export_onnx
from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import analyze

HIDDEN, FEATURES = 6, 5
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
}


class Loop(nn.Module):
    """A cell that reads a sequence step by step."""

    def __init__(self, name: str, *, bias: bool = True) -> None:
        super().__init__()
        self.cell = CELLS[name](FEATURES, HIDDEN, bias=bias)
        self.first, self.last = nn.Linear(3, FEATURES), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        state = hidden = x.new_zeros(x.shape[0], HIDDEN)
        for step in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                hidden, state = self.cell(x[:, step], (hidden, state))
            else:
                hidden = self.cell(x[:, step], hidden)
        return self.last(hidden)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_hidden_units_of_cells_are_cut_with_all_gates(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    model, x = Loop(name, bias=bias), torch.randn(2, 3, 3)
    structure = analyze(model, x)
    assert {u.name: (u.kind, u.width) for u in structure.units} == {
        "first": ("channel", FEATURES),
        "cell": ("hidden", HIDDEN),
    }
    torch.testing.assert_close(structure.shrink(structure.dense_policy())(x), model(x))
    structure.shrink(Policy(space_id="", widths={"first": 2, "cell": 3}), {"cell": np.array([0, 3, 5])})


@pytest.mark.parametrize("name", CELLS)
def test_pruned_cells_are_exported(name: str, tmp_path) -> None:
    x = torch.randn(2, 3, 3)
    small = prune(Loop(name), x, keep=0.5, multiple_of=1).eval()
    path = tmp_path / "loop.onnx"
    export_onnx(small, x, path)
    assert path.stat().st_size > 0
