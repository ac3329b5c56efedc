"""Mixed precision: around a pruned model, and in blocks that its forward opens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import autoprune


class _Mixed(nn.Module):
    """The second convolution and a product run in bfloat16; an inner block is in float32 again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.relu(self.second(x)).mean((2, 3))
            y = self.out(self.norm(x) + torch.softmax(x, 1))
            y = y + self.out(x)
            with torch.autocast("cpu", enabled=False):
                return y.float() + nn.functional.linear(x.float(), self.out.weight)


class _Whole(_Mixed):
    @torch.autocast("cpu", torch.bfloat16)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))).float()


class _Converting(_Mixed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))).float().mean((2, 3)))


@pytest.mark.parametrize("build", [_Mixed, _Whole])
def test_blocks_of_autocast_compute_what_the_dense_model_computes(build):
    model, x = build().eval(), torch.randn(4, 3, 12, 12)
    same = autoprune.prune(model, x[:1], keep=1.0, native=False).eval()
    assert torch.equal(same(x), model(x))
    small = autoprune.prune(model, x[:1], keep=0.5, native=False).train()
    small(x).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for n, p in small.named_parameters() if "norm" not in n)


@pytest.mark.parametrize("build", [_Converting, _Whole])
def test_a_pruned_model_runs_and_trains_under_autocast(build):
    model, x = build(), torch.randn(4, 3, 12, 12)
    same = autoprune.prune(model, x[:1], keep=1.0, native=False)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = same.train()(x)
        assert outputs.dtype == model(x).dtype
        assert torch.equal(outputs, model(x))
    outputs.sum().backward()
