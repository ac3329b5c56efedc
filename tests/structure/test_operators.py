"""Operators that move no channels between two convolutions: any cut of the channels is exact, in both modes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.structure.families import POOLS
from autoprune.structure.rules import pointwise, pool, rule_for

aten = torch.ops.aten


class Between(nn.Module):
    """Two convolutions with an operator on the 8 channels between them."""

    def __init__(self, dims: int, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        convolution = getattr(nn, f"Conv{dims}d")
        self.a, self.b = convolution(2, 8, 1), nn.Linear(8, 3)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(F.relu(self.a(x) + 0.3))
        return self.b(x.mean(tuple(range(2, x.dim()))))


def _unpooled(dims: int) -> Callable[[Tensor], Tensor]:
    pooled, unpool = getattr(F, f"max_pool{dims}d"), getattr(F, f"max_unpool{dims}d")
    return lambda x: unpool(*pooled(x, 2, return_indices=True), 2)


def _warped(x: Tensor) -> Tensor:
    return F.grid_sample(x, torch.zeros(x.shape[0], *[4] * (x.dim() - 2), x.dim() - 2), align_corners=False)


def _shifted(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    return y


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:2], -1, 2))).flatten(2)


def _added_by_index(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(2, torch.arange(x.shape[2]), x)


def _scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_add(2, torch.zeros_like(x, dtype=torch.int64), x)


def _resized(mode: str) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, scale_factor=2.0, mode=mode)


OPERATORS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "trilinear": (3, _resized("trilinear")),
    "nearest 3d": (3, _resized("nearest")),
    **{f"nearest-exact {dims}d": (dims, _resized("nearest-exact")) for dims in (1, 2, 3)},
    "adaptive max 1d": (1, lambda x: F.adaptive_max_pool1d(x, 2)),
    "adaptive max 3d": (3, lambda x: F.adaptive_max_pool3d(x, 2)),
    "adaptive average 1d": (1, lambda x: F.adaptive_avg_pool1d(x, 2)),
    "unpool 1d": (1, _unpooled(1)),
    "unpool 2d": (2, _unpooled(2)),
    "unpool 3d": (3, _unpooled(3)),
    "warp 2d": (2, _warped),
    "warp 3d": (3, _warped),
    "local response norm 1d": (1, lambda x: F.local_response_norm(x, 3, alpha=1.0)),
    "local response norm 2d": (2, lambda x: F.local_response_norm(x, 4, alpha=1.0)),
    "local response norm 3d": (3, lambda x: F.local_response_norm(x, 5, alpha=1.0)),
    "fourier": (2, lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real),
    "real fourier": (1, lambda x: torch.fft.rfft(x).abs()),
    "complex pairs": (1, _complex),
    "fill": (2, lambda x: x * torch.empty_like(x).fill_(2.0)),
    "fill with a tensor": (2, lambda x: x * torch.empty_like(x).fill_(x.new_tensor(2.0))),
    "noise": (2, lambda x: x + torch.randn_like(x)),
    "noise of a shape": (2, lambda x: x + torch.randn(x.shape)),
    "noise in place": (2, lambda x: x + torch.empty_like(x).exponential_()),
    "aliases": (2, lambda x: torch.divide(x, 2).multiply(3).arctan().absolute()),
    "in place": (2, lambda x: x.mul(1).abs_().add_(1).log_().clamp_(max=3).subtract_(1)),
    "shift": (2, _shifted),
    "lower triangle": (2, lambda x: x.tril()),
    "diagonal": (2, lambda x: x * x.diagonal(dim1=2, dim2=3)[..., None]),
    "quarter turn": (2, lambda x: x.rot90(1, (2, 3))),
    "running maximum": (2, lambda x: x.cummax(2)[0]),
    "median": (2, lambda x: x.median(2)[0][:, :, None]),
    "channel maximum": (2, lambda x: x * x.amax(1, keepdim=True)),
    "cosine similarity": (2, lambda x: x * F.cosine_similarity(x.sigmoid(), x.flip(2), 1)[:, None]),
    "distances": (2, lambda x: x * torch.cdist(x.sigmoid().flatten(2).mT, x.flatten(2).mT).mean()),
    "added by index": (2, _added_by_index),
    "scattered": (2, _scattered),
    "an empty part": (2, lambda x: torch.cat([x[:, : x.shape[1]].sigmoid(), x[:, x.shape[1] :]], 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_channels_pass(name: str) -> None:
    torch.manual_seed(0)
    dims, operator = OPERATORS[name]
    structure = analyze(Between(dims, operator), torch.rand(2, 2, *[6] * dims))
    assert not structure.unsupported
    assert [(unit.name, unit.width) for unit in structure.units] == [("a", 8)]
    for kept in ([1, 2, 5], [7], [0, 2, 3, 4, 5, 6]):
        structure.shrink(Policy(space_id="", widths={"a": len(kept)}), {"a": np.array(kept)})


def test_bilinear_layers_are_cut_in_all_three_dimensions() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pairs, self.head = (
                nn.Linear(3, 8),
                nn.Linear(3, 6),
                nn.Bilinear(8, 6, 5),
                nn.Linear(5, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.pairs(self.a(x).sigmoid(), self.b(x).sigmoid())))

    structure = analyze(Pairs(), torch.randn(2, 3))
    assert structure.full_widths == {"a": 8, "b": 6, "pairs": 5}
    structure.shrink(Policy(space_id="", widths={"a": 3, "b": 2, "pairs": 4}))


def test_every_pool_and_every_resizing_has_the_rule_of_pools() -> None:
    packets = [name for name in dir(aten) if name.startswith(("upsample_", "_upsample_", "adaptive_", "max_pool"))]
    packets = [n for n in packets if "backward" not in n and not n.endswith("_out")]
    assert {getattr(aten, name) for name in packets} <= POOLS
    for packet in POOLS:
        assert all(rule_for(getattr(packet, o)) is pool for o in packet.overloads() if not o.endswith("out"))


def test_every_elementwise_operator_and_its_version_in_place_has_a_rule() -> None:
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            target = getattr(packet, overload)
            if torch.Tag.pointwise not in target.tags:
                continue
            assert rule_for(target) is not None, target
            twin = getattr(aten, f"{name}_", None)
            if twin is not None and overload in twin.overloads():
                assert rule_for(getattr(twin, overload)) is not None, twin
    assert rule_for(aten.arctan2_.default) is pointwise


class Bags(nn.Module):
    """Bags of tokens beside a dense feature."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.dense, self.head = nn.EmbeddingBag(20, 8, mode=mode), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.dense(x)) + self.bag(tokens))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_width_of_an_embedding_bag_is_a_unit(mode: str) -> None:
    structure = analyze(Bags(mode), (torch.randn(2, 3), torch.randint(0, 20, (2, 4))))
    assert structure.full_widths == {"dense": 8}
    assert "bag.weight" in {member.parameter for member in structure.units[0].members}
    structure.shrink(Policy(space_id="", widths={"dense": 3}), {"dense": np.array([1, 4, 7])})
