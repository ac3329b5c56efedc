"""Layers of two factors: which can be, their names, and their forms."""

from pathlib import Path

import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import PolicyError, StructureError
from autoprune.records import Policy
from autoprune.recovery.low_rank import factorized
from autoprune.structure import GraphModel, analyze, in_form, trained_form
from autoprune.structure.low_rank import ranks_of, with_ranks
from autoprune.treatments import Treatment

RANKS = {"body.conv.weight": 3, "fc.weight": 4}


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 12, 3, padding=1)
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.depthwise(torch.relu(self.conv(x))))


class Net(nn.Module):
    """A convolution and a linear layer that can be factors, and layers that cannot: depthwise, tied, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.fc = nn.Linear(12, 16)
        self.twice = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied_too = nn.Linear(16, 16)
        self.tied_too.weight = self.tied.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc(self.body(x).mean(2)))
        return self.tied_too(torch.relu(self.tied(self.twice(torch.relu(self.twice(x))))))


class Functional(Net):
    """Reads the weight of a module instead of calling it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.body(x).mean(2), self.fc.weight, self.fc.bias)


def structure_and_factored(net):
    torch.manual_seed(0)
    structure = analyze(net().eval(), normal(2, 4, 6))
    widths = {unit.name: max(1, unit.width - 1) for unit in structure.units}
    small = structure.shrink(Policy(space_id="", widths=widths), prove=False).eval()
    return structure, factorized(small, RANKS, (normal(32, 4, 6),))


@pytest.fixture(scope="module")
def factored():
    return structure_and_factored(Net)


def test_layers_that_run_once_with_a_weight_of_their_own_can_have_ranks(factored):
    matrices = {layer.name: layer.matrix for layer in factored[0].layers}
    assert {name: matrix for name, matrix in matrices.items() if any(matrix)} == {
        "body.conv.weight": (12, 12), "fc.weight": (16, 12)
    }  # fmt: skip


def test_ranks_worth_measuring_are_multiples_of_8_that_make_the_layer_smaller():
    layers = analyze(nn.Sequential(nn.Linear(384, 1536), nn.ReLU(), nn.Linear(1536, 24)), normal(2, 384)).layers
    assert [layer.ranks for layer in layers] == [(40, 80, 152, 232), (8, 16)]
    assert layers[1].allows(Treatment(rank=23))
    assert not layers[1].allows(Treatment(rank=24))


def test_a_layer_that_is_too_narrow_for_its_rank_stays_whole(factored):
    structure, rank = factored[0], Treatment(rank=4, precision="int8")
    tensors = {"fc.weight": torch.zeros(16, 12), "body.conv.weight": torch.zeros(6, 4, 3)}
    treatments = {"fc.weight": rank, "body.conv.weight": rank}
    assert ranks_of(treatments, structure.layers, tensors) == {"fc.weight": 4}
    assert ranks_of(treatments, structure.layers, {}) == {}  # their branches are removed


@pytest.mark.parametrize(
    ("layer", "rank", "message"),
    [
        ("fc.weight", 13, r"below its full rank, 12; got 13"),
        ("twice.weight", 4, r"runs once and shares no weight; 'twice.weight' is none"),
        ("nowhere", 4, r"'nowhere' is none"),
    ],
)
def test_wrong_ranks_are_refused(factored, layer, rank, message):
    with pytest.raises(PolicyError, match=message):
        ranks_of({layer: Treatment(rank=rank)}, factored[0].layers, {})


def test_own_classes_hold_a_sequence_of_two_layers(factored):
    structure, model = factored
    own, x = in_form(structure, model), normal(5, 4, 6)
    assert isinstance(own, Net)
    assert [type(layer) for layer in (*own.body.conv.children(), *own.fc.children())] == [
        nn.Conv1d, nn.Conv1d, nn.Linear, nn.Linear
    ]  # fmt: skip
    assert own.pruned_to.ranks == RANKS  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(own(x), model(x))
    assert set(trained_form(structure, model).state_dict()) == set(model.state_dict()) == set(own.state_dict())


def test_a_forward_that_reads_the_weight_is_a_graph_module():
    structure, model = structure_and_factored(Functional)
    graph = in_form(structure, model)
    assert isinstance(graph, GraphModel)
    assert graph.pruned_to is not None
    assert "does not run with layers of two factors" in graph.pruned_to.reason
    with pytest.raises(StructureError, match="Use the graph module"):
        in_form(structure, model, native=True)


@pytest.mark.parametrize("native", [None, False])
def test_models_of_factors_are_saved_and_loaded(factored, native, tmp_path: Path):
    structure, model = factored
    path, x = autoprune.save(in_form(structure, model, native), tmp_path / "model.safetensors"), normal(5, 4, 6)
    loaded = autoprune.load(Net, path, native=native)
    assert isinstance(loaded, GraphModel) == (native is False)
    assert loaded.pruned_to.ranks == RANKS  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(loaded(x), model(x))


def test_factors_of_unknown_weights_are_refused(factored):
    with pytest.raises(PolicyError, match=r"multiplies with 'head\.weight'"):
        with_ranks(factored[1], {"head.weight": 2})
