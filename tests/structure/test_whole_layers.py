"""Tests of `autoprune.structure.whole_layers`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from autoprune.structure.capture import export
from autoprune.structure.nodes import shape_of
from autoprune.structure.whole_layers import STAND_INS, whole_layers

_STEPS = 7
_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "lstm with projections": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=3, **options),
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "relu rnn": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


class _Outputs(nn.Module):
    """The sequence and the final states of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> list[Tensor]:
        sequence, states = self.layer(x)
        return [sequence, *states] if isinstance(states, tuple) else [sequence, states]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", _LAYERS)
def test_the_graph_has_the_operator_with_its_shapes(kind: str, batch_first: bool) -> None:
    """Stand-ins give the shapes that the operators give."""
    model = _Outputs(_LAYERS[kind](4, 5, num_layers=2, bidirectional=True, batch_first=batch_first))
    x = torch.randn(3, _STEPS, 4)  # the exporter repeats the first example, or step
    graph = export(model, (x,), training=False).graph
    (layer,) = (node for node in graph.nodes if node.target in STAND_INS.values())
    outputs = [node for node in graph.nodes if node in layer.users]
    assert [shape_of(node) for node in outputs] == [tuple(y.shape) for y in model(x[:1].repeat(3, 1, 1))]


def test_layers_in_blocks_without_gradients_are_operators_too() -> None:
    """The exporter puts such blocks into graphs of their own."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                sequence, _ = self.layer(x)
            return self.head(sequence)

    targets = [node.target for node in export(Frozen(), (torch.randn(1, _STEPS, 4),), training=True).graph.nodes]
    assert torch.ops.aten.gru.input in targets
    assert not STAND_INS.keys() & set(targets)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "relu rnn"])
def test_packed_sequences_are_left_as_they_are(kind: str) -> None:
    """Their second argument is the sizes of the steps."""
    torch.manual_seed(0)
    layer, x = _LAYERS[kind](4, 5, batch_first=True), torch.randn(2, _STEPS, 4)
    packed = pack_padded_sequence(x, torch.tensor([_STEPS, 3]), batch_first=True)
    expected, _ = pad_packed_sequence(layer(packed)[0], batch_first=True)
    with whole_layers():
        sequence, _ = pad_packed_sequence(layer(packed)[0], batch_first=True)
    assert torch.equal(sequence, expected)


def test_modules_call_the_operators_again_afterwards() -> None:
    """Also when the exporter raised an error."""
    layer, x = nn.LSTM(4, 5), torch.randn(_STEPS, 2, 4)
    with pytest.raises(ValueError, match="of the exporter"), whole_layers():
        raise ValueError("of the exporter")
    assert layer(x)[0].shape == (_STEPS, 2, 5)
    assert not vars(torch._VF).keys() & {"lstm", "gru", "rnn_tanh", "rnn_relu"}
