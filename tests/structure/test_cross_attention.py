"""Weights that `forward` splits or slices, such as the joint projection of attention with other keys than queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import Structure, analyze


class Cross(nn.Module):
    """Attention from one sequence to another of another length."""

    def __init__(self, *, shared: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 12), nn.Linear(4, 12), nn.Linear(4, 12)
        self.attention, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)
        self.shared = shared

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        keys = self.k(memory)
        return self.head(self.attention(self.q(x), keys, keys if self.shared else self.v(memory))[0])


class Decoder(nn.Module):
    """A published decoder layer: attention to itself, to a memory, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.m, self.head = nn.Linear(3, 12), nn.Linear(4, 12), nn.Linear(12, 2)
        self.layer = nn.TransformerDecoderLayer(12, 3, 16, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.layer(self.q(x), self.m(memory)))


class Sliced(nn.Module):
    """One weight, of which `forward` takes three rows apart in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 6), nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.randn(12, 6))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        first, rest = self.weight[:4], self.weight.narrow(0, 4, 8)
        second, third = rest.tensor_split(2)
        return self.head((x @ first.T).sigmoid() * nn.functional.linear(x, second) + x @ third.T)


NETS = {"cross": Cross, "three sources": lambda: Cross(shared=False), "decoder": Decoder, "sliced": Sliced}


def _structure(name: str) -> Structure:
    torch.manual_seed(0)
    return analyze(NETS[name]().eval(), (torch.randn(2, 5, 3), torch.randn(2, 7, 4)))


@pytest.mark.parametrize("name", NETS)
def test_any_cut_is_exact(name: str) -> None:
    structure = _structure(name)
    rng = np.random.default_rng(0)
    for _ in range(3):
        keep = {u.name: rng.choice(u.width, rng.integers(1, u.width + 1), replace=False) for u in structure.units}
        structure.shrink(Policy(space_id="", widths={n: len(k) for n, k in keep.items()}), keep)


@pytest.mark.parametrize("name", ["cross", "three sources"])
def test_heads_and_their_size_are_units(name: str) -> None:
    units = {unit.name: (unit.kind, unit.width) for unit in _structure(name).units}
    assert units["attention"] == ("head", 3)
    assert units["attention#2"] == ("head_dim", 4)


def test_a_whole_transformer_is_pruned() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
            self.transformer = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            return self.head(self.transformer(self.embed(source), self.embed(target)))

    model = Translator().eval()
    inputs = torch.randint(0, 20, (2, 7)), torch.randint(0, 20, (2, 5))
    small = prune(model, inputs, keep=0.5, multiple_of=2)
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in model.parameters())


class Shared(nn.Module):
    """Attention whose heads share one key and value, with a bias of scores for each head or without."""

    def __init__(self, *, biased: bool) -> None:
        super().__init__()
        self.first, self.joint, self.out = nn.Linear(3, 6), nn.Linear(6, 24), nn.Linear(16, 2)
        self.biased = biased

    def forward(self, x: Tensor) -> Tensor:
        joint = self.joint(torch.relu(self.first(x))).unflatten(2, (6, 4)).transpose(1, 2)
        query, key, value = joint[:, :4], joint[:, 4:5], joint[:, 5:]
        scores = query @ key.transpose(2, 3)
        if self.biased:
            scores = scores + 0.5 ** torch.arange(4)[:, None, None] * torch.arange(x.shape[1])
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("biased", [False, True])
def test_heads_with_shared_keys_are_units_or_say_why_not(biased: bool) -> None:
    structure = analyze(Shared(biased=biased).eval(), torch.randn(2, 5, 3))
    kinds = {unit.kind: unit.width for unit in structure.units}
    assert kinds == {"channel": 6, "head_dim": 4} | ({} if biased else {"head": 4})
    reasons = [fixed.reason for fixed in structure.fixed if "heads stay" in fixed.reason]
    assert reasons == (
        ["its heads stay: meets a fixed operand in aten.add.Tensor, such as a number for each head"] if biased else []
    )
