"""`nn.MultiheadAttention` with narrow heads, in every way in which it is called."""

import copy

import pytest
import torch
from torch import nn

from autoprune.pruning import prune
from autoprune.structure.narrow_attention import NarrowAttention

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Attending(nn.Module):
    """Attention to itself or to another sequence, between two linear layers."""

    def __init__(self, call, source=None, **options):
        super().__init__()
        self.inward, self.source = nn.Linear(8, 16), source and nn.Linear(8, source)
        widths = {"kdim": source, "vdim": source} if source else {}
        self.attention = nn.MultiheadAttention(16, 4, **options | widths)
        self.head, self.call = nn.Linear(16, 3), call

    def forward(self, x):
        stream = torch.relu(self.inward(x))
        other = stream if self.source is None else torch.relu(self.source(x))
        outputs, weights = self.call(self.attention, stream, other, x)
        return self.head(outputs) if weights is None else (self.head(outputs), weights)


def padded(x):
    return torch.arange(x.shape[1]).expand(x.shape[:2]) > 3


def causal(x):
    return torch.ones(x.shape[1], x.shape[1]).triu(1).bool()


CALLS = {
    "plain": lambda: Attending(lambda a, x, y, _: a(x, x, x, need_weights=False), batch_first=True),
    "weights": lambda: Attending(lambda a, x, y, _: a(x, x, x), batch_first=True, dropout=0.1),
    "weights of heads": lambda: Attending(lambda a, x, y, _: a(x, x, x, average_attn_weights=False), batch_first=True),
    "no bias, sequence first": lambda: Attending(
        lambda a, x, y, _: (a(*[x.transpose(0, 1)] * 3, need_weights=False)[0].transpose(0, 1), None), bias=False
    ),
    "padding": lambda: Attending(lambda a, x, y, raw: a(x, x, x, key_padding_mask=padded(raw)), batch_first=True),
    "causal": lambda: Attending(
        lambda a, x, y, raw: a(x, x, x, attn_mask=causal(raw), need_weights=False, is_causal=True), batch_first=True
    ),
    "cross": lambda: Attending(lambda a, x, y, _: a(x, y, y, need_weights=False), source=12, batch_first=True),
    "cross, same width": lambda: Attending(lambda a, x, y, _: a(x, y, y), source=16, batch_first=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_heads_and_their_channels_are_cut_in_the_own_class(name):
    torch.manual_seed(0)
    model = CALLS[name]()
    small = prune(model, X, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    attention = small.attention
    assert type(attention) is NarrowAttention
    assert isinstance(attention, nn.MultiheadAttention)
    heads = 4 if name == "weights of heads" else 2  # the weights are an output of the model, so that all heads stay
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (heads, 2, 8)
    assert type(model.attention) is nn.MultiheadAttention
    graph = prune(model, X, multiple_of=1, native=False)
    torch.testing.assert_close(small.eval()(X), graph.eval()(X))


def test_whole_heads_that_fill_the_stream_keep_the_class():
    model = CALLS["plain"]()
    small = prune(model, X, multiple_of=1, choose=lambda unit: "#" not in unit)
    assert type(small.attention) is nn.MultiheadAttention
    assert (small.attention.num_heads, small.attention.head_dim) == (2, 4)
    same = prune(model, X, keep=1.0)
    assert type(same.attention) is nn.MultiheadAttention


def test_a_transformer_runs_without_the_fast_path_that_needs_wide_heads():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 2)).eval()
    small = prune(model, X, multiple_of=1)
    assert small.pruned_to.form == "native", small.pruned_to.reason
    with torch.inference_mode():
        evaluated = small(X)
    torch.testing.assert_close(copy.deepcopy(small).train()(X), evaluated)
