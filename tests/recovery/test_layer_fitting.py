"""Layers that keep their weights make up for changes of those before them."""

import copy

import torch
from torch import nn

from autoprune.recovery.sparse import make_sparse
from autoprune.sparsity.patterns import Pattern
from autoprune.structure import GraphModel, analyze
from tests.recovery.zeros import normal
from tests.small_nets import LastOutput


def dense_graph(net: nn.Module, example: torch.Tensor) -> GraphModel:
    structure = analyze(net.eval(), example)
    return structure.shrink(structure.dense_policy(), prove=False).eval()


def test_a_layer_without_zeros_makes_up_for_an_lstm_with_zeros() -> None:
    torch.manual_seed(0)
    inputs, unseen = normal(512, 6, 8), normal(512, 6, 8, seed=1)
    dense = dense_graph(LastOutput(8, 16, 4), inputs[:1])
    made, pattern = copy.deepcopy(dense), Pattern(share=9_000)
    make_sparse(made, {"lstm.weight_ih_l0": pattern, "lstm.weight_hh_l0": pattern}, [inputs])
    plain = copy.deepcopy(dense)
    plain.load_state_dict(made.state_dict() | {n: t for n, t in dense.state_dict().items() if n.startswith("head")})
    with torch.no_grad():
        errors = [float((model(unseen) - dense(unseen)).square().mean()) for model in (made, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_layers_before_the_first_change_and_weights_used_twice_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.twice = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.last = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.middle(torch.relu(self.first(x))))
            return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))

    torch.manual_seed(0)
    dense = dense_graph(Twice(), normal(1, 8))
    made = copy.deepcopy(dense)
    make_sparse(made, {"middle.weight": Pattern(share=7_500)}, [normal(64, 8)])
    same = {name for name, tensor in dense.state_dict().items() if torch.equal(tensor, made.state_dict()[name])}
    assert same == {"first.weight", "first.bias", "twice.weight", "twice.bias"}
