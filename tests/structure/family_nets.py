"""A small net of every published family: the structure that is special to it, and little else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structure.attention_nets import Bert, Botnet, Encoder, Gpt, Llama, Swin, Vit


class Mixer(nn.Module):
    """Linear layers over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2 = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.LayerNorm(8)
        self.t1, self.t2 = nn.Linear(16, 10), nn.Linear(10, 16)
        self.c1, self.c2, self.head = nn.Linear(8, 14), nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.c2(F.gelu(self.c1(self.n2(x))))).mean(1))


class Se(nn.Module):
    """A squeeze-and-excite gate on a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.d(self.a(x)))
        x = x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.head(x).mean((2, 3))


class Shuffle(nn.Module):
    """Half of the channels passes, then all are shuffled; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for layer in (self.b, self.c):
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(layer(right))], 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.head(x.mean((2, 3)))


class DenseNet(nn.Module):
    """Every layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat([x, self.b(F.relu(x))], 1)
        x = torch.cat([x, self.c(F.relu(x))], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Inception(nn.Module):
    """Parallel branches of other kernels and a pooled one, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b1 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.b2, self.p, self.head = nn.Conv2d(4, 6, (3, 1), padding=(1, 0)), nn.Conv2d(6, 2, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = self.p(F.avg_pool2d(x, 3, 1, 1))
        return self.head(F.relu(torch.cat([self.a(x), self.b2(F.relu(self.b1(x))), pooled], 1))).mean((2, 3))


class GroupNormGlu(nn.Module):
    """GroupNorm, GLU halves, transposed convolutions (one grouped) and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.Conv2d(12, 16, 1)
        self.up, self.grouped = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 6, 2, groups=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.glu(self.b(F.relu(self.norm(self.a(x)))), 1))
        return self.head(F.pad(self.grouped(x), (1, 1, 1, 1), mode="reflect"))


class ConvNext(nn.Module):
    """Depthwise, channels last, layer scale, and a residual stream that widens by padding with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.d = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 14), nn.Linear(14, 8)
        self.gamma, self.wide, self.head = nn.Parameter(torch.ones(8)), nn.Conv2d(8, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.d(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        x = F.pad(x, (0, 0, 0, 0, 2, 2)) + self.wide(x)
        return self.head(x.mean((2, 3)))


class Standardised(nn.Module):
    """Convolutions whose weights are standardised, and one with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.c, self.head = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            flat = layer.weight.reshape(1, layer.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(layer.weight)
            x = torch.sigmoid(F.conv2d(x, weight, layer.bias))
        return self.head(self.c(x).mean((2, 3)))


IMAGE, TOKENS = (3, 16, 16), (7,)
FAMILIES = {
    "vit": (Vit, [IMAGE], {"patch": ("channel", 12), "blocks.0.qkv": ("head", 3), "blocks.0.up": ("channel", 20)}),
    "vit, softmax": (lambda: Vit(fused=False), [IMAGE], {"patch": ("channel", 12), "blocks.1.qkv": ("head", 3)}),
    "encoder": (Encoder, [(5, 4)], {"layer.self_attn": ("head", 3), "embed": ("channel", 12)}),
    "bert": (Bert, [TOKENS, (7,)], {"q": ("head", 3), "q#2": ("head_dim", 4), "v": ("head_dim", 4)}),
    "botnet": (Botnet, [IMAGE], {"stem": ("channel", 8), "qkv": ("head_dim", 4), "qkv#2": ("head", 3)}),
    "gpt": (Gpt, [TOKENS], {"norm": ("channel", 12), "attend": ("head", 3)}),
    "llama": (Llama, [TOKENS], {"o": ("channel", 16), "q": ("head", 2), "q#2": ("head", 2), "gate": ("channel", 20)}),
    "swin": (Swin, [IMAGE], {"qkv": ("head", 3), "patch": ("channel", 12), "reduce": ("channel", 16)}),
    "mixer": (Mixer, [IMAGE], {"patch": ("channel", 8), "t1": ("channel", 10), "c1": ("channel", 14)}),
    "se": (Se, [IMAGE], {"a": ("channel", 8), "down": ("channel", 4)}),
    "shuffle": (Shuffle, [IMAGE], {"c": ("channel", 4)}),
    "densenet": (DenseNet, [IMAGE], {"a": ("channel", 6), "b": ("channel", 4), "c": ("channel", 4)}),
    "inception": (Inception, [IMAGE], {"a": ("channel", 4), "b2": ("channel", 6), "p": ("channel", 2)}),
    "groupnorm": (GroupNormGlu, [IMAGE], {"a": ("channel", 3), "a#2": ("channel", 4), "b": ("channel", 8)}),
    "convnext": (ConvNext, [IMAGE], {"stem": ("channel", 8), "up": ("channel", 14)}),
    "standardised": (Standardised, [IMAGE], {"a": ("channel", 8), "b": ("channel", 6), "c": ("channel", 6)}),
}
"""Families by name: how to build the net, the shapes of one example, and some expected units with kind and width."""
