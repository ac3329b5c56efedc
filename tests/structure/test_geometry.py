from __future__ import annotations

import numpy as np
import torch

from autoprune.structure import Dim, analyze
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
    assert (convolutions[1].height, convolutions[1].width) == (8, 8)
    assert convolutions[1].inputs == ("relu",)


def test_a_flattened_dimension_counts_every_position() -> None:
    net, inputs = make_net("dense")
    structure = analyze(net, inputs)
    (linear,) = (op for op in structure.operators if op.op == "linear")
    widths = structure.widths([structure.dense_policy()])
    widths[0, [u.name for u in structure.units].index("c")] = 2
    assert linear.c_in(widths).tolist() == [2 * 4 * 4]


def test_what_moves_heads_is_as_large_as_the_heads_are_many_and_wide() -> None:
    build, shapes, _ = FAMILIES["vit, softmax"]
    structure = analyze(build().eval(), [torch.rand(2, *shape) for shape in shapes])
    names = [unit.name for unit in structure.units]
    widths = structure.widths([structure.dense_policy()] * 3)
    widths[1, names.index("blocks.0.qkv")] = 1
    widths[2, names.index("blocks.0.qkv#2")] = 2
    moves = next(op for op in structure.operators if op.op == "permute")
    weights = next(op for op in structure.operators if op.op == "softmax")

    def elements(op: Operator) -> list[int]:
        return (op.c_out(widths) * op.groups(widths) * max(op.height, 1) * max(op.width, 1)).tolist()

    assert elements(moves) == [17 * 3 * 3 * 4, 17 * 3 * 1 * 4, 17 * 3 * 3 * 2]
    assert elements(weights) == [3 * 17 * 17, 17 * 17, 3 * 17 * 17]
