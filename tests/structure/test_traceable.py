"""Python and PyTorch as models meet them while they are captured."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import StructureError
from autoprune.records import Policy
from autoprune.structure import analyze


class Composed(nn.Module):
    """Operators that PyTorch composes of others, changes of shape in place, and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.take_along_dim(x, x.sum(-1, keepdim=True).argsort(1), 1)
        x = torch.tile(x, (1, 2, 1)).diff(dim=1).index_fill(1, torch.tensor([0]), 0.5)
        y = torch.inner(x, torch.ones(4, 6)).unsqueeze_(0).squeeze_(0)
        x = torch.hstack([self.b(F.relu(x)), y]) * torch.bucketize(y.mean(), torch.tensor([0.0, 1.0]))
        x = F.layer_norm(x, x.shape[2:])
        return self.head(torch.quantile(x, 0.5, 1).repeat(1, 6).reshape(len(x), -1))


def test_composed_operators_are_cut_and_the_batch_stays_free() -> None:
    torch.manual_seed(0)
    model, x = Composed().eval(), torch.randn(2, 5, 3)
    structure = analyze(model, x)
    assert not structure.unsupported
    assert structure.full_widths == {"a": 6, "b": 4}
    torch.testing.assert_close(structure.shrink(structure.dense_policy())(x), model(x))
    rng = np.random.default_rng(0)
    keep = {unit.name: rng.choice(unit.width, 3, replace=False) for unit in structure.units}
    small = structure.shrink(Policy(space_id="", widths={"a": 3, "b": 3}), keep)
    assert small(torch.randn(7, 5, 3)).shape == (7, 2)
    assert len is builtins.len
    assert "len" not in globals()


def test_what_fixes_the_batch_is_named() -> None:
    class Kronecker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.kron(self.a(x), torch.ones(1, 2)))

    with pytest.raises(StructureError, match=r"fixes the batch size .*\(test_traceable.py line \d+\)"):
        analyze(Kronecker(), torch.randn(2, 3))


def test_what_nothing_reads_is_no_unit() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.idle, self.b = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            self.idle(x)
            return self.b(x)

    structure = analyze(Idle(), torch.randn(2, 3))
    assert structure.full_widths == {"a": 4}
    assert {fixed.reason for fixed in structure.fixed if fixed.parameter == "idle.weight"} == {"is not used in forward"}


def test_channels_that_meet_all_others_are_fixed_with_the_operator() -> None:
    class Rolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(F.relu(self.a(x)))
            return self.c(F.relu(x + torch.roll(x, 1, 1)))

    structure = analyze(Rolled(), torch.randn(2, 3))
    assert structure.full_widths == {"a": 4}
    (reason,) = {fixed.reason for fixed in structure.fixed if fixed.size == 6}
    assert "meet each other in aten.add" in reason
