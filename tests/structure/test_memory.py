from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from tests.nets import NETS, make_net


class Watched(fx.Interpreter):
    """Runs a graph node by node on one example and counts the distinct memory of all tensors it still needs."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
        self.peak = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = [value for held in [*self.env.values(), result] for value in _flat(held)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.peak = max(self.peak, sum(size for place, size in storages.items() if place not in self.weights))
        return result


def _flat(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in values if isinstance(tensor, Tensor)]


def counted(structure: Structure, policy: Policy) -> int:
    """Peak of a run of the shrunk model, which the arithmetic must give."""
    shrunk = structure.shrink(policy).eval()
    graph = shrunk.captures[False].graph
    watched = Watched(fx.GraphModule(shrunk, graph))
    with torch.no_grad():
        watched.run(*(x[:1].clone() for x in structure.example_inputs))
    return watched.peak


def policies(structure: Structure, count: int) -> list[Policy]:
    rng = np.random.default_rng(0)
    widths = [{unit.name: int(rng.integers(1, unit.width + 1)) for unit in structure.units} for _ in range(count)]
    return [structure.dense_policy(), *(Policy(space_id="", widths=chosen) for chosen in widths)]


@pytest.mark.parametrize("name", NETS)
def test_the_peak_equals_the_memory_that_a_run_needs(name: str) -> None:
    structure = analyze(*make_net(name))
    chosen = policies(structure, 6)
    peaks = structure.peak_activation_bytes(structure.widths(chosen))
    assert peaks.dtype == np.int64
    assert peaks.tolist() == [counted(structure, policy) for policy in chosen]


def test_a_residual_keeps_its_stream_alive() -> None:
    """Stream, output of the block and their sum: three maps of six channels, 8x8, in floats of four bytes."""
    structure = analyze(*make_net("residual"))
    widths = structure.widths([structure.dense_policy()])
    assert structure.peak_activation_bytes(widths).tolist() == [3 * 6 * 64 * 4]


class Aliases(nn.Module):
    """In-place operators, dropout and views between two linear layers, and an input that is needed again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 100), nn.Linear(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(self.up(x).relu_(), 0.5, self.training).unsqueeze(2).flatten(1)
        return self.down(y.view(-1, y.shape[1])) + x


def test_aliases_cost_nothing_and_inputs_count_while_they_are_needed() -> None:
    structure = analyze(Aliases().eval(), (torch.zeros(1, 4),))
    widths = structure.widths([structure.dense_policy()])
    assert structure.peak_activation_bytes(widths).tolist() == [(4 + 100 + 4) * 4]


class Bytes(nn.Module):
    """Makes floats of an image of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(100, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x.float())))


def test_a_cast_to_another_type_is_new_memory_of_that_type() -> None:
    structure = analyze(Bytes().eval(), (torch.zeros(1, 100, dtype=torch.uint8),))
    widths = structure.widths([structure.dense_policy()])
    assert structure.peak_activation_bytes(widths).tolist() == [100 + 100 * 4]


def test_half_precision_takes_half() -> None:
    net, (x,) = make_net("chain")
    full = analyze(net, (x,))
    half = analyze(net.to(torch.bfloat16), (x.to(torch.bfloat16),))
    widths = full.widths([full.dense_policy()])
    assert half.peak_activation_bytes(widths) * 2 == full.peak_activation_bytes(widths)
