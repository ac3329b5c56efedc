"""Cut nets of operators with rules of their own, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune import export_onnx
from autoprune.records import Policy
from autoprune.structure import analyze


class Net(nn.Module):
    """Operators between layers that are cut."""

    def __init__(self, middle: Callable[[nn.ModuleDict, Tensor], Tensor], head: int, **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.middle, self.head = nn.ModuleDict(layers), middle, nn.Linear(head, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.layers, x))


def images(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.local_response_norm(F.relu(net["a"](x)), 3)
    x = F.interpolate(x, scale_factor=2, mode="nearest-exact")
    x = F.grid_sample(x, torch.zeros(x.shape[0], 4, 4, 2), align_corners=False) + F.adaptive_avg_pool2d(x, 4)
    x = x * x.amax(1, keepdim=True).sigmoid() + x[:, torch.tensor([5, 1, 0, 2, 4, 3])]
    return net["b"](F.unfold(x, 2)).amax(2)


def volumes(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = F.relu(net["a"](x.unsqueeze(2).repeat(1, 1, 4, 1, 1)))
    x = F.interpolate(F.max_pool3d(x, 2), scale_factor=2, mode="trilinear")
    x = F.adaptive_avg_pool3d(net["b"](x), 1).flatten(2)
    return F.interpolate(x, scale_factor=3, mode="linear").mean(2)


def moved(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = torch.roll(net["a"](x).flatten(2).transpose(1, 2), 2, 2)
    x = net["b"](x[..., 1::2]).index_fill(1, torch.tensor([0, 2]), 0.5)
    x = torch.hstack([x, torch.tile(x, (1, 2, 1))]).diff(dim=1)
    x = torch.take_along_dim(x, x.sum(2, keepdim=True).argsort(1), 1)
    return net["c"](x.flip(2)).sum(1)


def cells(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = x.flatten(2)
    first = second = x.new_zeros(x.shape[0], 6)
    third = x.new_zeros(x.shape[0], 8)
    for step in range(2):
        first, second = net["a"](x[..., step], (first, second))
        third = net["b"](first, third)
    return net["c"](third) + third


def products(net: nn.ModuleDict, x: Tensor) -> Tensor:
    x = net["a"](x.flatten(2).transpose(1, 2)[:, :5])
    near = F.cosine_similarity(x, x.flip(1), -1)[..., None]
    x = net["b"](x * near, torch.relu(x))
    x = torch.baddbmm(x, torch.einsum("bic,bjc->bij", x, x), x) + x.new_zeros(1).fill_(0.5)
    x = net["c"](x, x, x, need_weights=False)[0]
    return torch.addmm(x[:, 0], x[:, 1], net["d"].weight)


NETS: dict[str, Callable[[], Net]] = {
    "images": lambda: Net(images, 8, a=nn.Conv2d(3, 6, 1), b=nn.Conv1d(24, 8, 1)),
    "volumes": lambda: Net(volumes, 4, a=nn.Conv3d(3, 6, 1), b=nn.ConvTranspose3d(6, 4, 1)),
    "moved": lambda: Net(moved, 6, a=nn.Conv2d(3, 8, 1), b=nn.Linear(4, 6), c=nn.Linear(6, 6)),
    "cells": lambda: Net(cells, 8, a=nn.LSTMCell(3, 6), b=nn.GRUCell(6, 8), c=nn.RNNCell(8, 8)),
    "products": lambda: Net(
        products, 8, a=nn.Linear(3, 6), b=nn.Bilinear(6, 6, 8), d=nn.Linear(8, 8),
        c=nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_cut_nets_compute_the_same_in_onnx_runtime(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model, x = NETS[name]().eval(), torch.rand(2, 3, 6, 6)
    structure = analyze(model, x)
    assert not structure.unsupported
    rng = np.random.default_rng(0)
    keep = {u.name: np.sort(rng.choice(u.width, max(1, u.width // 2), replace=False)) for u in structure.units}
    small = structure.shrink(Policy(space_id="", widths={name: len(kept) for name, kept in keep.items()}), keep).eval()
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    assert export_onnx(small, x, tmp_path / "net.onnx").exists()
