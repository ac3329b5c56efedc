"""Small networks, each with one structural feature, that are not among the built-in models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Module):
    """Two convolutions with batch norm, pooled, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c2, self.b2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = torch.sigmoid(self.b2(self.c2(x)))
        return self.fc(x.mean((2, 3)))


class Residual(Chain):
    """An identity shortcut ties the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.c2, self.b2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c3 = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b1(self.c1(x)))
        x = x + self.c3(F.relu(self.b2(self.c2(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Concatenations of outputs with different fates."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.pad(a, (0, 0, 0, 0))))
        x = F.avg_pool2d(F.relu(self.c(torch.cat([a, b], 1))), 2)
        return self.fc(F.dropout(x.view(x.size(0), -1), 0.3, self.training))


class Grouped(nn.Module):
    """A grouped convolution between ordinary ones: whole groups, or channels of every group, may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.z = nn.Conv2d(2, 12, 1), nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(F.relu(self.g(F.relu(self.a(x))))).mean((2, 3))


class Depthwise(nn.Module):
    """A depthwise convolution with channel multiplier 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.z = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(F.hardswish(self.d(F.relu6(self.a(x))))).mean((2, 3))


class Gated(nn.Module):
    """Halves of one convolution gate each other, and a slice of another goes its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Conv2d(2, 12, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, dim=1)
        x = self.b(left * torch.sigmoid(right))
        x = torch.cat([F.relu(x[:, :3]), x[:, 3:]], 1)
        return self.z(x).mean((2, 3))


class Viewed(nn.Module):
    """Explicit sizes in `view`, two outputs in a dictionary, two inputs, a tied linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(2, 6, 1), nn.Linear(6 * 8 * 8, 5)
        self.shared, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        x = self.a(x + y).view(-1, 6 * 8 * 8)
        x = self.shared(F.relu(self.shared(F.relu(self.fc(x)))))
        return {"scores": self.head(x), "sum": self.head(x).sum(1)}


NETS: dict[str, tuple[type[nn.Module], int]] = {
    "chain": (Chain, 1),
    "residual": (Residual, 1),
    "dense": (Dense, 1),
    "grouped": (Grouped, 1),
    "depthwise": (Depthwise, 1),
    "gated": (Gated, 1),
    "viewed": (Viewed, 2),
}


def make_net(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A seeded network in evaluation mode with random batch-norm statistics, and its example inputs (8x8 images)."""
    kind, inputs = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = kind()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        return net.eval(), tuple(torch.randn(2, 2, 8, 8) for _ in range(inputs))


def zero_removed(net: nn.Module, kept: Mapping[str, Sequence[np.ndarray | None]]) -> None:
    """Set every index of every parameter to zero that is not `kept`; `None` stands for all of a dimension."""
    state = net.state_dict()
    for name, dims in kept.items():
        for dim, indices in enumerate(dims):
            if indices is not None:
                gone = np.setdiff1d(np.arange(state[name].shape[dim]), indices)
                state[name].index_fill_(dim, torch.from_numpy(gone), 0)
