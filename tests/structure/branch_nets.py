"""Nets with residual branches of every kind, and their structures."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.structure import Structure, analyze
from autoprune.task.models import MobileNetTiny, resnet8, resnet20
from tests.nets import make_net


class Stem(nn.Module):
    """A stream of six channels between a stem and a head; `body` is what varies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class InPlace(Stem):
    """Two blocks as torchvision writes them: additions and activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c, self.d = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.relu = nn.ReLU(inplace=True)

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        out = self.bn(self.b(self.relu(self.an(self.a(x)))))
        out += x
        x = self.relu(out)
        out = self.d(self.relu(self.c(x)))
        out += x
        return self.relu(out)


class Bottleneck(Stem):
    """1x1, 3x3, 1x1 with a gate: any inner unit at 0, that of the gate included, removes the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 6, 1)
        self.down, self.up, self.norm = nn.Linear(6, 2), nn.Linear(2, 6), nn.BatchNorm2d(6)

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(self.c(F.relu(self.b(F.relu(self.a(x))))))
        gate = F.hardsigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        return x + y * gate[:, :, None, None]


class PreActivation(Stem):
    """Two branches share what normalises the stream: it goes when both are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.a, self.b, self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(5, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(x))
        return x + self.c(F.relu(self.a(y))) + self.d(F.silu(self.b(y)))


class NoShortcut(Stem):
    """Two branches without a shortcut: one must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(F.relu(self.a(x))) + self.d(F.relu(self.c(x))))


class Nested(Stem):
    """A residual branch within a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return x + self.d(y + self.c(F.relu(self.b(y))))


class StochasticDepth(Stem):
    """Branches that are dropped at random, with a write whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        for inner, outer in ((self.a, self.b), (self.c, self.d)):
            y = outer(F.relu(inner(x)))
            if self.training:
                noise = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype).bernoulli_(0.5)
                noise.div_(0.5)
                y = y * noise
            x = x + y
        return x


class Tokens(nn.Module):
    """The feed-forward part of a transformer, between layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.wide, self.narrow, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + F.dropout(self.narrow(F.gelu(self.wide(self.norm(x)))), 0.2, self.training)
        return self.head(x.mean(1))


IMAGE, TOKENS = (2, 2, 8, 8), (2, 5, 4)
NETS: dict[str, tuple[type[nn.Module], tuple[int, ...], set[str]]] = {
    "in_place": (InPlace, IMAGE, {"a", "c"}),
    "bottleneck": (Bottleneck, IMAGE, {"a", "b", "down"}),
    "pre_activation": (PreActivation, IMAGE, {"a", "b"}),
    "no_shortcut": (NoShortcut, IMAGE, {"a"}),
    "nested": (Nested, IMAGE, {"a", "b"}),
    "stochastic_depth": (StochasticDepth, IMAGE, {"a", "c"}),
    "tokens": (Tokens, TOKENS, {"wide"}),
}
BUILT_IN = {
    "resnet8": resnet8(1, 12, 4),
    "resnet20": resnet20(1, 12, 4),
    "mobilenet-tiny": MobileNetTiny(1, 12, 4),
}


@functools.cache
def analysed(name: str) -> Structure:
    torch.manual_seed(0)
    if name in NETS:
        kind, shape, _ = NETS[name]
        return analyze(kind().eval(), (torch.randn(shape),))
    if name in BUILT_IN:
        return analyze(BUILT_IN[name].eval(), (torch.randn(2, 1, 12, 12),))
    return analyze(*make_net(name))
