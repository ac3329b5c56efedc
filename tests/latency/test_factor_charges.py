"""Charges and sizes of models whose layers have factors: those of the same model with two layers each."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.latency.geometries import PricedOperators
from autoprune.records import Policy
from autoprune.structure import analyze, in_form
from autoprune.structure.low_rank import ranks_of, with_ranks
from autoprune.treatments import Treatment


class Net(nn.Module):
    """A residual block of convolutions, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.first = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 1)
        self.fc = nn.Linear(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(torch.relu(self.fc(x.mean((2, 3)))))


LAYERS = ("stem.weight", "first.weight", "second.weight", "fc.weight")


@pytest.fixture(scope="module")
def structure():
    torch.manual_seed(0)
    return analyze(Net().eval(), torch.randn(2, 3, 8, 8))


def policies(structure):
    rng, full = np.random.default_rng(0), structure.full_widths
    ranks = {"stem.weight": (3, 9), "first.weight": (3, 8), "second.weight": (2, 6), "fc.weight": (4, 9)}
    for _ in range(3):
        widths = {name: int(rng.integers(width // 2, width + 1)) for name, width in full.items()}
        yield Policy(
            space_id="", widths=widths, treatments={n: Treatment(rank=int(rng.choice(r))) for n, r in ranks.items()}
        )


def test_a_model_with_factors_is_charged_as_one_with_two_layers_each(structure):
    priced, split = PricedOperators.of(structure, LAYERS), 0
    for policy in policies(structure):
        row = structure.rows([policy], LAYERS)
        charged = sorted(str(key) for operator in priced.all for key in operator.geometries(row))
        small = structure.shrink(policy, prove=False).eval()
        ranks = ranks_of(policy.treatments, structure.layers, dict(small.named_parameters()))
        split += len(ranks)
        two = analyze(in_form(structure, with_ranks(small, ranks)), structure.example_inputs)
        widths = two.widths([two.dense_policy()])
        assert charged == sorted(str(k) for op in PricedOperators.of(two).all for k in op.geometries(widths))
        for cost in ("params", "bytes", "macs"):
            assert getattr(structure, cost)(row, LAYERS)[0] == getattr(two, cost)(widths)[0], cost
    assert 3 < split < 12  # a narrow layer is whole in spite of its rank


def test_factors_have_the_precision_of_their_layer(structure):
    layers, dense = ("fc.weight",), structure.dense_policy()
    treatments = {"fc.weight": Treatment(precision="int8", rank=8)}
    row = structure.rows([Policy(space_id="", widths=dense.widths, treatments=treatments)], layers)
    charged = [str(key) for op in PricedOperators.of(structure, layers).all for key in op.geometries(row)]
    assert [key for key in charged if "linear" in key] == ["int8 linear 8->24", "int8 linear 16->8", "linear 24->4"]
    whole = structure.bytes(row[:, :-1])[0] - structure.bytes(row, layers)[0]
    assert whole == 4 * 16 * 24 - (8 * (16 + 24) + 4 * (8 + 24))  # a byte for each number, a scale for each output
