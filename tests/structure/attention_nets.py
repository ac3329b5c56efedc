"""Small nets with attention, in the manner of every published family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VitBlock(nn.Module):
    """Pre-norm attention with one fused `qkv`, and an MLP; softmax written out and normed again unless `fused`."""

    def __init__(self, width: int = 12, heads: int = 3, *, fused: bool = True) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            a = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
            y = (a / a.sum(-1, keepdim=True)) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Vit(nn.Module):
    """Patches, a class token, position embeddings, two blocks, and layer-scale-free heads."""

    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.randn(1, 17, 12))
        self.blocks = nn.Sequential(VitBlock(fused=fused), VitBlock(fused=fused))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """PyTorch's own encoder layer, with its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Bert(nn.Module):
    """Post-norm, separate projections, a padding mask, heads merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(30, 12), nn.Embedding(8, 12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.up, self.down, self.last = nn.Linear(12, 20), nn.Linear(20, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        b, n = tokens.shape
        x = self.norm(self.words(tokens) + self.places(torch.arange(n)))

        def split(y: Tensor) -> Tensor:
            return y.view(b, n, 3, 4).transpose(1, 2).reshape(b * 3, n, 4)

        scores = torch.bmm(split(self.q(x)), split(self.k(x)).transpose(1, 2)) / 2
        scores = scores.view(b, 3, n, n) + (1 - mask[:, None, None]) * -1e4
        y = torch.bmm(scores.softmax(-1).view(b * 3, n, n), split(self.v(x)))
        x = x + self.o(y.view(b, 3, n, 4).transpose(1, 2).reshape(b, n, 12))
        return self.head(self.last(x + self.down(F.gelu(self.up(x))))[:, 0])


class Botnet(nn.Module):
    """Attention over a map: heads merged with the batch while the number of positions is left to be inferred."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 3 * 12, 1, bias=False)
        self.places = nn.Parameter(torch.randn(7, 4))
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b * 3, 4, -1) for part in self.qkv(x).split(12, 1))
        q = q.transpose(1, 2)
        places = (q.reshape(b * 3, h, w, -1) @ self.places.T).amax(-1).reshape(b * 3, h * w, 1)
        y = (q @ k + places * q.sum(-1, keepdim=True)).softmax(-1) @ v.transpose(1, 2)
        return self.head(self.norm(y.transpose(1, 2).reshape(b, 12, h, w)).mean((2, 3)))


class Gpt(nn.Module):
    """Matrices stored as `[in, out]`, a causal mask in a buffer, and a projection that is split in three."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(30, 12), nn.LayerNorm(12)
        self.attend, self.shift = nn.Parameter(torch.randn(12, 36)), nn.Parameter(torch.zeros(36))
        self.project = nn.Parameter(torch.randn(12, 12))
        self.head = nn.Linear(12, 30)
        self.register_buffer("causal", torch.tril(torch.ones(7, 7, dtype=torch.bool)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        b, n, c = x.shape
        rows = torch.addmm(self.shift, self.norm(x).view(-1, c), self.attend).view(b, n, 36)
        q, k, v = (y.view(b, n, 3, 4).transpose(1, 2) for y in rows.split(12, dim=2))
        scores = (q @ k.transpose(-1, -2)).masked_fill(~self.causal[:n, :n], float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.head(x + y @ self.project)


class Llama(nn.Module):
    """Grouped queries, rotary positions, RMSNorm and a gated MLP."""

    def __init__(self, width: int = 16, heads: int = 4, kv: int = 2, size: int = 6) -> None:
        super().__init__()
        self.words, self.gain = nn.Embedding(30, width), nn.Parameter(torch.ones(width))
        self.q, self.o = nn.Linear(width, heads * size, bias=False), nn.Linear(heads * size, width, bias=False)
        self.k, self.v = nn.Linear(width, kv * size, bias=False), nn.Linear(width, kv * size, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 20), nn.Linear(width, 20), nn.Linear(20, width)
        self.head, self.heads, self.kv, self.size = nn.Linear(width, 30), heads, kv, size
        self.register_buffer("frequency", 1 / 10 ** (torch.arange(0, size, 2) / size))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        b, n, _ = x.shape
        y = self._norm(x)
        q = self._rotate(self.q(y).view(b, n, self.heads, self.size).transpose(1, 2))
        k = self._rotate(self.k(y).view(b, n, self.kv, self.size).transpose(1, 2))
        v = self.v(y).view(b, n, self.kv, self.size).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self._repeat(k), self._repeat(v), is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        y = self._norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain

    def _rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2]).float()[:, None] * self.frequency
        angles = torch.cat([angles, angles], -1)
        left, right = x[..., : self.size // 2], x[..., self.size // 2 :]
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def _repeat(self, x: Tensor) -> Tensor:
        b, kv, n, size = x.shape
        return x[:, :, None].expand(b, kv, self.heads // kv, n, size).reshape(b, self.heads, n, size)


class Swin(nn.Module):
    """Shifted windows, a relative position bias and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 12, 2, 2), nn.LayerNorm(12)
        self.qkv, self.proj, self.table = nn.Linear(12, 36), nn.Linear(12, 12), nn.Parameter(torch.randn(49, 3))
        self.merged, self.reduce, self.head = nn.LayerNorm(48), nn.Linear(48, 16, bias=False), nn.Linear(16, 4)
        self.register_buffer("index", torch.randint(0, 49, (16, 16), generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, 3).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c)
        y = self.proj(y).view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.reduce(self.merged(x)).mean((1, 2)))
