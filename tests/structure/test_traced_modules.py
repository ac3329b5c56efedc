"""Modules that hold dense sizes in their own forward compute a part of the graph; all around them stays the user's."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import autoprune
from autoprune.errors import StructureError, UsageError
from autoprune.pruning import prune
from autoprune.records import Policy
from autoprune.structure import analyze
from autoprune.structure.native_maker import Maker
from autoprune.structure.traced_modules import Traced

G = torch.Generator().manual_seed(0)
TOKENS, IMAGES = torch.randn(2, 6, 8, generator=G), torch.randn(2, 3, 8, 8, generator=G)


class Attention(nn.Module):
    """Heads are as wide as the stream divided by their number, so that they cannot be cut alone."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(0.1)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, mask=None, turn=None):
        b, n, c = x.shape
        x = x if turn is None else x * turn
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        return self.proj(self.drop(scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Paired(Attention):
    """Returns a tuple with a part that is not there."""

    def forward(self, x, mask=None, turn=None):
        return super().forward(x, mask, turn), None


class Transformer(nn.Module):
    def __init__(self, kind=Attention, call=lambda attention, x, net: attention(x)):
        super().__init__()
        self.inward, self.norm, self.attention = nn.Linear(8, 12), nn.LayerNorm(12), kind()
        self.mlp, self.head = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)), nn.Linear(12, 3)
        self.turn, self.call = nn.Parameter(torch.rand(6, 1)), call
        self.calls = 0

    def forward(self, x):
        self.calls += 1  # only the own code counts
        x = self.inward(x)
        y = self.call(self.attention, self.norm(x), self)
        x = x + (y[0] if isinstance(y, tuple) else y)
        return self.head(x + self.mlp(x))


class Halves(nn.Module):
    """Mixes the channels of two halves, one of which passes by, as a ShuffleNet does."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat((left, torch.relu(self.norm(self.conv(right)))), 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Sequential(Halves(), Halves())
        self.last, self.pool = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU()), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1))


def masked(attention, x, net):
    return attention(x, mask=torch.ones(x.shape[1], x.shape[1]).triu(1).bool())


NETS = {
    "heads": lambda: (Transformer(), TOKENS),
    "mask by name": lambda: (Transformer(call=masked), TOKENS),
    "parameter as argument": lambda: (Transformer(call=lambda a, x, net: a(x, None, net.turn)), TOKENS),
    "tuple": lambda: (Transformer(Paired), TOKENS),
    "shuffle": lambda: (Shuffled(), IMAGES),
}


def halved(name):
    torch.manual_seed(0)
    model, x = NETS[name]()
    small = prune(model, x, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    return model, small, x


@pytest.mark.parametrize("name", NETS)
def test_only_modules_that_hold_sizes_become_graphs(name):
    model, small, x = halved(name)
    traced = {path: module for path, module in small.named_modules() if isinstance(module, Traced)}
    kind = Halves if name == "shuffle" else Attention
    assert traced
    assert type(small) is type(model)
    assert all(isinstance(module, kind) for module in traced.values())
    assert any(kind.__name__ in note or "Paired" in note for note in small.pruned_to.notes)
    assert small.state_dict().keys() == model.state_dict().keys()
    if name == "shuffle":
        graph, larger = prune(model, x, multiple_of=1, native=False), torch.randn(5, 3, 12, 10)
        torch.testing.assert_close(small.eval()(larger), graph.eval()(larger))
        assert small.train()(x).isfinite().all()
        assert small.blocks[0].norm.num_batches_tracked == 1
    else:
        small(x)
        assert small.calls > 0


def test_traced_modules_train_copy_convert_and_load(tmp_path):
    _, small, x = halved("heads")
    copied = copy.deepcopy(small).double().train()
    copied(x.double()).sum().backward()
    assert all(p.grad is not None for n, p in copied.named_parameters() if n != "turn")
    assert small.attention.qkv.weight.dtype == torch.float32
    with torch.no_grad():
        small.attention.proj.weight.mul_(2)
    autoprune.save(small, tmp_path / "small.pt")
    loaded = autoprune.load(Transformer, tmp_path / "small.pt")
    assert isinstance(loaded.attention, Traced)
    torch.testing.assert_close(loaded.eval()(x), small.eval()(x))


def test_calls_with_other_arguments_are_refused():
    _, small, _ = halved("heads")
    x = torch.randn(2, 6, small.attention.qkv.in_features)
    assert small.attention(x).shape == x.shape
    with pytest.raises(UsageError, match=r"forward of this Attention is a traced graph.*; mask is another one"):
        small.attention(x, mask=torch.ones(2))
    with pytest.raises(UsageError, match=r"; past_key_values is another one. Call generate with use_cache=False"):
        small.attention(x, past_key_values=[])
    with pytest.raises(UsageError, match=r"autoprune.save\(model, path\).*autoprune.load"):
        pickle.dumps(small)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (Attention, lambda attention, x, net: attention(attention(x))),
        (lambda: nn.ModuleList([Attention(), Attention()]), lambda both, x, net: both[0].forward(x)),
    ],
    ids=["called twice", "not called as a module"],
)
def test_modules_without_a_place_in_the_graph_stay_in_the_graph_module(kind, call):
    torch.manual_seed(0)
    small = prune(Transformer(kind, call), TOKENS, multiple_of=1)
    assert small.pruned_to.form == "graph"
    assert "dense sizes are written in it" in small.pruned_to.reason


def test_a_model_that_would_be_almost_one_graph_is_a_graph():
    torch.manual_seed(0)
    small = prune(nn.Sequential(Attention(8, 2)), TOKENS, multiple_of=1)
    assert small.pruned_to.form == "graph"


class InFloat32(Attention):
    calls = 0

    def forward(self, x, mask=None, turn=None):
        type(self).calls += 1
        if x.dtype == torch.float64:
            raise TypeError("no kernel for float64")
        return super().forward(x, mask, turn)


def maker_of_half(kind, **settings):
    torch.manual_seed(0)
    structure = analyze(Transformer(kind).eval(), (TOKENS,))
    half = Policy(space_id="", widths={unit.name: max(1, unit.width // 2) for unit in structure.units})
    return structure, Maker(structure, structure.shrink(half, prove=False), **settings)


def test_past_a_limit_of_processor_time_the_graph_is_taken():
    ticks = itertools.count(step=25)
    structure, maker = maker_of_half(Attention, clock=lambda: next(ticks))
    with pytest.raises(StructureError, match="took more than 60 s of processor time"):
        maker.own(None)
    assert not structure.boundaries


def test_why_modules_have_no_place_is_found_once():
    structure, maker = maker_of_half(InFloat32)
    reasons, calls = [], []
    for _ in range(2):
        before = InFloat32.calls
        with pytest.raises(StructureError, match="no kernel for float64") as caught:
            maker.own(None)
        reasons.append(str(caught.value))
        calls.append(InFloat32.calls - before)
    assert reasons[0] == reasons[1]
    assert calls[1] < calls[0]
    assert structure.boundaries.keys() == {False}
