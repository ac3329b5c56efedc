"""Which units are read by what: the operator decides, not the place in a weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.pruning import channel_order, score_units
from autoprune.recovery.consumers import covered_units, find_consumers
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.readers import readers_of
from autoprune.recovery.surgeon import surgeon_order
from autoprune.structure import Structure, analyze


class Upsampled(nn.Module):
    """One unit is read by a transposed and by an ordinary convolution."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.up, self.side = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups), nn.Conv2d(8, 4, 1)
        self.out, self.other = nn.Conv2d(8, 1, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        return self.out(self.up(x).relu()), self.other(self.side(x).relu())


def covered(structure: Structure) -> set[str]:
    return {structure.units[number].name for number in covered_units(structure, find_consumers(structure))}


def test_a_unit_that_a_transposed_convolution_in_one_group_reads_is_covered() -> None:
    structure = analyze(Upsampled().eval(), (torch.zeros(1, 1, 6, 6),))
    assert covered(structure) == {"first", "up", "side"}
    by_name = {structure.units[number].name: len(nodes) for number, nodes in readers_of(structure).items()}
    assert by_name == {"first": 2, "up": 1, "side": 1}


def test_a_depthwise_transposed_convolution_needs_no_repair() -> None:
    structure = analyze(Upsampled(groups=8).eval(), (torch.zeros(1, 1, 6, 6),))
    assert covered(structure) == {unit.name for unit in structure.units}


def test_the_surgeon_removes_first_what_no_group_needs() -> None:
    """Place 2 of both groups repeats place 0, and place 1 is read by no weight."""
    torch.manual_seed(0)
    model, x = Upsampled(groups=2).eval(), torch.randn(16, 1, 6, 6)
    with torch.no_grad():
        model.first.weight[2::4], model.first.bias[2::4] = (
            model.first.weight[::4].clone(),
            model.first.bias[::4].clone(),
        )
        model.up.weight[1::4], model.side.weight[:, 1::4] = 0, 0
    structure = analyze(model, (x[:1],))
    (within,) = [
        unit.name for unit in structure.units if unit.width == 4 and unit.members[0].parameter == "first.weight"
    ]
    plain = channel_order(score_units(structure, "l2"))
    order = surgeon_order(structure, collect_moments(structure, [(x,)]), plain)[within]
    assert order[-1] == 1
    assert order[-2] in (0, 2)


def test_an_embedding_is_no_reader() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    structure = analyze(model, (torch.zeros(1, 3, dtype=torch.long),))
    assert covered(structure) == {unit.name for unit in structure.units}


@pytest.mark.parametrize(("product", "repaired"), [("matmul", True), ("einsum", False)])
def test_a_product_with_a_plain_weight_is_a_reader(product: str, repaired: bool) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.side = nn.Linear(4, 6), nn.Linear(6, 3)
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            own = x @ self.weight if product == "matmul" else torch.einsum("bc,cd->bd", x, self.weight)
            return own + self.side(x)

    structure = analyze(Product().eval(), (torch.zeros(1, 4),))
    assert [unit.width for unit in structure.units] == [6]
    assert bool(covered(structure)) is repaired
