from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.structure import Dim, Structure, analyze
from autoprune.structure.geometry import Operator
from autoprune.structure.units import Channels
from tests.nets import make_net
from tests.structure.family_nets import FAMILIES


def test_a_dimension_is_a_polynomial_of_widths() -> None:
    dim = Dim(3, ((2, (0,)), (1, (0, 2))))
    widths = np.array([[4, 9, 5], [1, 9, 1]])
    assert dim(widths).tolist() == [3 + 8 + 20, 3 + 2 + 1]
    assert dim.units == (0, 2)


def test_dimensions_come_from_channels() -> None:
    of_unit = {0: np.array([0, 0, 1, 1, -1]), 1: np.array([0, 1, 0, 1, -1])}
    assert Dim.of(Channels(5, of_unit), np.array([2, 2])) == Dim(1, ((1, (0, 1)),))


def test_operators_of_a_net_with_groups_and_pooling() -> None:
    net, inputs = make_net("grouped")
    structure = analyze(net, inputs)
    widths = structure.widths([structure.dense_policy()])
    convolutions = [op for op in structure.operators if op.op == "conv2d"]
    assert [int(op.groups(widths)[0]) for op in convolutions] == [1, 4, 1]
    assert [(int(op.c_in(widths)[0]), int(op.c_out(widths)[0])) for op in convolutions] == [(2, 12), (12, 8), (8, 3)]
    assert convolutions[1].kernel == (3, 3)
    assert convolutions[1].stride == (1, 1)
    assert (convolutions[1].out_rows, convolutions[1].out_columns) == (8, 8)
    assert convolutions[1].inputs == ("relu",)


def test_a_flattened_dimension_counts_every_position() -> None:
    net, inputs = make_net("dense")
    structure = analyze(net, inputs)
    (linear,) = (op for op in structure.operators if op.op == "linear")
    widths = structure.widths([structure.dense_policy()])
    widths[0, [u.name for u in structure.units].index("c")] = 2
    assert linear.c_in(widths).tolist() == [2 * 4 * 4]


def test_sizes_of_operators_that_move_heads_follow_their_number_and_width() -> None:
    build, shapes, _ = FAMILIES["vit, softmax"]
    structure = analyze(build().eval(), [torch.rand(2, *shape) for shape in shapes])
    names = [unit.name for unit in structure.units]
    widths = structure.widths([structure.dense_policy()] * 3)
    widths[1, names.index("blocks.0.qkv")] = 1
    widths[2, names.index("blocks.0.qkv#2")] = 2
    moves = next(op for op in structure.operators if op.op == "permute")
    weights = next(op for op in structure.operators if op.op == "softmax")

    def elements(op: Operator) -> list[int]:
        return (op.c_out(widths) * op.groups(widths) * max(op.out_rows, 1) * max(op.out_columns, 1)).tolist()

    assert elements(moves) == [17 * 3 * 3 * 4, 17 * 3 * 1 * 4, 17 * 3 * 3 * 2]
    assert elements(weights) == [3 * 17 * 17, 17 * 17, 3 * 17 * 17]


class Convolved(nn.Module):
    """Nets with the same parameters that compute something else."""

    def __init__(self, *, pooled: bool = False, dilation: int = 1) -> None:
        super().__init__()
        self.pooled, self.dilation = pooled, dilation
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooled:
            x = F.avg_pool2d(x, 3, 1, 1)
        x = F.relu(self.a(x))
        x = F.conv2d(x, self.b.weight, self.b.bias, padding=self.dilation, dilation=self.dilation)
        return self.head(F.relu(x).mean((2, 3)))


def convolved(size: int = 8, **options: Any) -> Structure:
    return analyze(Convolved(**options).eval(), (torch.zeros(1, 3, size, size),))


def test_models_with_other_costs_have_other_digests() -> None:
    same, again = convolved(), convolved()
    others = [convolved(pooled=True), convolved(dilation=2), convolved(size=16)]
    assert same.digest() == again.digest()
    assert len({structure.digest() for structure in (same, *others)}) == 4


def test_dilation_is_part_of_a_geometry() -> None:
    (conv,) = (
        op for op in convolved(dilation=3).operators if op.op == "conv2d" and op.kernel == (3, 3) and op.dilation
    )
    assert conv.dilation == (3, 3)
    pool = analyze(
        nn.Sequential(nn.Conv1d(1, 4, 1), nn.MaxPool1d(2, dilation=2), nn.Conv1d(4, 1, 1)).eval(),
        (torch.zeros(1, 1, 9),),
    )
    assert [op.dilation for op in pool.operators if op.op.startswith("max_pool")] == [(2,)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 0), (3, 1, 0), (5, 3, 0)])
def test_transposed_convolutions_multiply_at_every_place_of_their_input(kernel: int, stride: int, padding: int) -> None:
    up = nn.ConvTranspose2d(8, 6, kernel, stride=stride, padding=padding)
    structure = analyze(nn.Sequential(nn.Conv2d(1, 8, 1), up, nn.Conv2d(6, 1, 1)).eval(), (torch.zeros(1, 1, 4, 5),))
    assert macs_of(structure, "conv_transpose2d") == 4 * 5 * 8 * 6 * kernel**2


def test_convolutions_in_three_dimensions_count() -> None:
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 2, 1)).eval()
    assert macs_of(analyze(net, (torch.zeros(1, 1, 4, 5, 6),)), "conv3d") == 4 * 5 * 6 * (8 * 27 + 8 * 2)


class Mixed(nn.Module):
    """A linear layer and attention scores, both by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(12, 4)
        self.w = nn.Parameter(torch.randn(12, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("...c,oc->...o", self.a(x).relu(), self.w)
        scores = torch.einsum("btc,bsc->bts", h, h).softmax(-1)
        return self.b(scores @ h)


def test_an_einsum_multiplies_everything_that_it_names() -> None:
    structure = analyze(Mixed().eval(), (torch.zeros(1, 6, 8),))
    assert macs_of(structure, "einsum") == 6 * 16 * 12 + 6 * 6 * 12


def macs_of(structure: Structure, op: str) -> int:
    widths = structure.widths([structure.dense_policy()])
    return sum(int(operator.macs(widths)[0]) for operator in structure.operators if operator.op == op)
