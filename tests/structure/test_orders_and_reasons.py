"""Constant orders of channels, and reasons and refusals that name what a user can change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune import export_onnx
from autoprune.errors import StructureError
from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import analyze


def test_channels_that_meet_each_other_are_fixed_with_the_operator_that_pairs_them() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 6), nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(F.relu(self.first(x)))
            return self.head(torch.einsum("bi,bj->bij", x, x).flatten(1))

    structure = analyze(Pairs(), (torch.randn(2, 3),))
    assert structure.full_widths == {"first": 5}
    (reason,) = {f.reason for f in structure.fixed if f.parameter == "second.weight"}
    assert "aten.einsum" in reason
    assert "head.weight" in reason


class Ordered(nn.Module):
    """Channels in another, constant order."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.head, self.kind = nn.Conv2d(2, 6, 1), nn.Linear(6, 3), kind
        self.register_buffer("order", torch.tensor([3, 1, 5, 0, 2, 4]))
        self.shift = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.kind == "list":
            x = x[:, [3, 1, 5, 0, 2, 4]]
        elif self.kind == "select":
            x = x.index_select(1, self.order)
        else:
            x = x[:, self.order]
        return self.head((x * self.shift).mean((2, 3)))


@pytest.mark.parametrize("kind", ["list", "select", "buffer"])
def test_channels_in_a_constant_order_are_cut(kind: str, tmp_path) -> None:
    model, x = Ordered(kind), torch.randn(2, 2, 4, 4)
    structure = analyze(model, (x,))
    assert structure.full_widths == {"first": 6}
    torch.testing.assert_close(structure.shrink(structure.dense_policy())(x), model(x))
    for kept in ([0, 4, 5], [2], [1, 2, 3, 4, 5]):
        small = structure.shrink(Policy(space_id="", widths={"first": len(kept)}), {"first": np.array(kept)})
    assert export_onnx(small.eval(), x, tmp_path / "ordered.onnx").exists()
    if kind != "list":
        assert len(small.state_dict()["order"]) == 5
        assert isinstance(prune(model, (x,), keep=0.5, multiple_of=1, native=True), Ordered)


class Moved(nn.Module):
    """Layers whose channels are moved between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.widen, self.last = nn.Linear(4, 8), nn.Linear(12, 2)
        self.register_buffer("order", torch.tensor([7, 1, 3, 5]))

    def forward(self, x: Tensor) -> Tensor:
        roll, step, rest, negative, twice, again = self.layers
        x = torch.roll(roll(x), 3, 1)
        x = F.relu(self.widen(step(x)[:, 1::2]))
        x = F.relu(rest(x)) + torch.cat([x[:, ::2], x[:, 1::2]], 1)
        x = negative(x)[:, [-1, -3, 2, 0, 1, 3, 4, 6]]
        x = again(twice(F.relu(x))[:, torch.arange(7, -1, -1)]).sigmoid()
        return self.last(torch.cat([x[:, self.order], x.flip(1)[:, self.order], x[:, [0, 0, 5, 5]]], 1))


def test_layers_between_moved_channels_are_cut(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = Moved(), torch.randn(2, 8)
    structure = analyze(model, x)
    cut = {member.parameter for unit in structure.units for member in unit.members if member.dim == 0}
    assert {f"layers.{n}.weight" for n in range(6)} <= cut
    torch.testing.assert_close(structure.shrink(structure.dense_policy())(x), model(x))
    rng = np.random.default_rng(0)
    for _ in range(4):
        keep = {u.name: rng.choice(u.width, rng.integers(1, u.width + 1), replace=False) for u in structure.units}
        small = structure.shrink(Policy(space_id="", widths={n: len(k) for n, k in keep.items()}), keep)
        assert export_onnx(small.eval(), x, tmp_path / "moved.onnx").exists()


def test_packed_sequences_and_compared_masks_are_refused_with_a_way_out() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.lstm(packed)[1][0][-1])

    with pytest.raises(StructureError, match=r"padded tensor, without pack_padded_sequence"):
        analyze(Packed(), (torch.randn(2, 5, 3), torch.tensor([5, 3])))

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))

    with pytest.raises(StructureError, match="is_causal"):
        analyze(Causal(), (torch.randn(2, 5, 8),))
