"""Weights that the exporter made out of parameters are traced back to them, and resized."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.device.connect import make_target
from autoprune.errors import LatencyError
from autoprune.onnxgraph.export import export_onnx
from autoprune.onnxgraph.origins import Origin, find_origins, made_distinct, repeats
from autoprune.onnxgraph.resizer import unnamed_weights
from autoprune.profiling.policy_timer import make_policy_timer
from autoprune.structure import analyze

TABLE = np.arange(1, 13, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        (TABLE[[2, 0, 0]], TABLE[[2, 0, 0]][:, [1, 3]]),
        (TABLE[None, 1:], TABLE[None, 1:][..., [1, 3]]),
        (TABLE[[0, 1, 2, 0]].reshape(2, 2, 4).transpose(2, 0, 1), TABLE[[0, 1, 2, 0]][:, [1, 3]].T.reshape(2, 2, 2)),
    ],
    ids=["looked up", "sliced", "permuted"],
)
def test_elements_follow_the_channels_of_their_parameter(made, kept):
    origin = find_origins({"val_3": made}, {"other": -TABLE, "table": TABLE})["val_3"]
    assert origin.parameter == "table"
    np.testing.assert_array_equal(origin.keep(made, (None, np.array([1, 3])), (3, 4)), kept)
    np.testing.assert_array_equal(origin.keep(made, (None, None), (3, 4)), made)


def test_weights_of_no_parameter_and_of_ambiguous_elements_have_no_origin():
    mask = np.array([[1.0, 99.0], [1.0, 1.0]], dtype=np.float32)
    assert find_origins({"mask": mask}, {"table": TABLE}) == {}
    assert find_origins({"ones": np.ones((3, 1), dtype=np.float32)}, {"table": TABLE}) == {}
    assert find_origins({"x": np.float32([1, 2])}, {"table": np.float32([1, 1, 2])}) == {}


def test_a_weight_that_would_keep_no_block_is_refused():
    crossed = Origin(parameter="table", positions=np.array([[0, 1], [5, 4]]))
    with pytest.raises(LatencyError, match="'table' keeps no block"):
        crossed.keep(TABLE[:2, :2], (None, np.array([0])), (3, 4))


@pytest.mark.parametrize("value", [torch.zeros(4, 5), torch.ones(6), torch.tensor([[0.5, 0.5], [-3.0, 0.0]])])
def test_equal_elements_are_made_distinct_in_their_own_range(value):
    before = value.clone()
    assert repeats(value)
    made_distinct([value])
    assert not repeats(value)
    assert value.abs().max() <= max(float(before.abs().max()), 0.02)


class Positions(nn.Module):
    """Tokens with a position each, and a layer over them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(3, 8)
        self.table = nn.Embedding(9, 8)
        self.row = nn.Parameter(torch.zeros(1, 9, 8))
        self.register_buffer("ids", torch.arange(9)[None])
        self.wide, self.narrow, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        length = x.shape[1]
        position = {
            "arange": lambda: self.table(torch.arange(length)),
            "buffer": lambda: self.table(self.ids[:, :length]),
            "slice": lambda: self.row[:, :length],
        }[self.kind]()
        x = self.embed(x) + position
        return self.head(x + self.narrow(self.wide(x).relu()))


def test_tied_weights_are_held_by_one_of_their_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 8)
            self.head.weight = self.embed.weight

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.narrow(self.wide(x).relu()) + torch.ones(6, 8).cumsum(1))

    structure = analyze(Tied().eval(), (torch.zeros(1, 6, dtype=torch.int64),))
    weights, missing = unnamed_weights(export_onnx(structure.model, structure.example_inputs), structure)
    assert [weight.shape for weight in weights.values()] == [(6, 8)]
    assert not missing


@pytest.mark.parametrize("kind", ["arange", "buffer", "slice"])
def test_positions_are_resized_without_the_exporter(kind):
    """Making the timer proves it on random widths; the rows of zeros in `slice` have no origin until they differ."""
    torch.manual_seed(0)
    structure = analyze(Positions(kind).eval(), (torch.randn(1, 6, 3),))
    assert any(m.parameter in {"table.weight", "row"} for unit in structure.units for m in unit.members)
    assert make_policy_timer(structure, make_target("ort-cpu")).notes == ()
    assert not structure.model.row.detach().any()
