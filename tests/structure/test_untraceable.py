"""Models that the exporter cannot follow, where the message says what to do."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from autoprune.errors import StructureError
from autoprune.structure import analyze

WORDS = torch.randint(1, 20, (2, 6))


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.head = nn.Embedding(20, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, words, lengths):
        packed = rnn.pack_padded_sequence(self.embed(words), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(self.embed(source), self.embed(target), tgt_mask=mask))


@pytest.mark.parametrize(
    ("model", "inputs", "advice"),
    [
        (Packing(), (WORDS, torch.tensor([6, 3])), "Run the recurrent layer on the padded tensor, without pack_padded"),
        (Masking(), (WORDS, WORDS), "tgt_is_causal=True for nn.Transformer"),
    ],
)
def test_the_way_out_is_named(model, inputs, advice):
    with pytest.raises(StructureError, match=rf"test_untraceable.py, line \d+.*{advice}"):
        analyze(model.eval(), inputs)


def test_a_decorated_forward_takes_several_inputs() -> None:
    def through(forward):
        @functools.wraps(forward)
        def wrapper(self, *args, **kwargs):
            return forward(self, *args, **kwargs)

        return wrapper

    class Decorated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 2)

        @through
        def forward(self, x, gate):
            return self.down(torch.relu(self.up(x)) * gate)

    assert [unit.width for unit in analyze(Decorated(), (torch.randn(2, 4), torch.randn(2, 1))).units] == [16]
