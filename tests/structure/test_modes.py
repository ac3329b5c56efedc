"""Tests of `autoprune.structure.modes`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.structure import modes
from autoprune.structure.module import compiled


class _Net(nn.Module):
    """Two convolutions; `between` runs between them."""

    def __init__(self, between: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.plain = nn.BatchNorm2d(8, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(8, track_running_stats=True)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self, self.first(x)))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _stochastic_depth(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As published: a branch of an example is dropped, or divided by the share of branches that stay."""
    branch = net.norm(x)
    if net.training:
        branch = branch * branch.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)
    return x + branch


def _attend(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = x.flatten(2).transpose(1, 2)
    rows = F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.5 if net.training else 0.0)
    return rows.transpose(1, 2).reshape(x.shape)


def _mask_unless_exporting(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As transformers do: a shortcut that a trace cannot take."""
    return net.norm(x) if torch.compiler.is_exporting() else net.norm(x) + 0.0


def _clamp_in_evaluation(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x if net.training else x.clamp(max=1e6)  # no example reaches the limit


def _skip_in_evaluation(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.norm(x) if net.training else x


_IMAGE, _ROWS = torch.randn(1, 3, 6, 6), torch.randn(1, 5, 6)
_SWITCHED = {
    "batch norm": (_Net(lambda net, x: net.norm(x)), _IMAGE),
    "batch norm without running statistics": (_Net(lambda net, x: net.plain(x)), _IMAGE),
    "instance norm": (_Net(lambda net, x: net.instance(x)), _IMAGE),
    "dropout": (_Net(lambda net, x: net.dropout(x)), _IMAGE),
    "constant": (_Net(lambda net, x: x * torch.tensor([0.5])), _IMAGE),
    "stochastic depth": (_Net(_stochastic_depth), _IMAGE),
    "attention": (_Net(_attend), _IMAGE),
    "asks whether it is exported": (_Net(_mask_unless_exporting), _IMAGE),
    "recurrent": (_Recurrent(), _ROWS),
    "transformer": (_Attention(), torch.randn(1, 5, 8)),
}
_EXPORTED_TWICE = {
    "clamp in evaluation": (_Net(_clamp_in_evaluation), _IMAGE),
    "skip in evaluation": (_Net(_skip_in_evaluation), _IMAGE),
    "noise in both modes": (_Net(lambda net, x: F.dropout(x, 0.5, training=True)), _IMAGE),
}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The modes that were exported."""
    seen = list[bool]()
    original = modes.export

    def noted(*args: object, training: bool) -> modes.Capture:
        seen.append(training)
        return original(*args, training=training)  # type: ignore[arg-type]

    monkeypatch.setattr(modes, "export", noted)
    return seen


@pytest.mark.parametrize("case", _SWITCHED)
def test_evaluation_is_switched_from_training(case: str, exported: list[bool]) -> None:
    """A switched graph runs the operators of an export in evaluation mode."""
    model, x = _SWITCHED[case]
    captures = modes.capture_both(model, (x,))
    assert exported == [True]
    expected = modes.simplified(modes.export(model, (x,), training=False), dict(model.named_buffers()))
    own = captures[False]
    assert [n.target for n in own.graph.nodes if n.op == "call_function"] == [
        n.target for n in expected.graph.nodes if n.op == "call_function"
    ]
    assert not torch.compiler.is_exporting()
    with torch.no_grad():
        assert own.out_spec == expected.out_spec
        for name, constant in own.constants.items():
            model.register_buffer(name, constant)
        torch.testing.assert_close(compiled(own.graph)(model, x)[0], model.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", _EXPORTED_TWICE)
def test_a_model_that_does_something_else_in_evaluation_is_exported_twice(case: str, exported: list[bool]) -> None:
    """Also where no output of the examples shows it."""
    model, x = _EXPORTED_TWICE[case]
    modes.capture_both(model, (x,))
    assert exported == [True, False]


def test_training_mode_is_not_switched(exported: list[bool]) -> None:
    """The switched graph is a copy: in training mode statistics of the batch are used and dropout drops."""
    model, x = _Net(lambda net, x: net.dropout(net.norm(x))), _IMAGE
    flags = {
        training: [n.args[5] for n in capture.graph.nodes if n.target is torch.ops.aten.batch_norm.default]
        for training, capture in modes.capture_both(model, (x,)).items()
    }
    assert flags == {False: [False], True: [True]}


def test_the_model_is_left_as_it_was(exported: list[bool]) -> None:
    """Its parameters, buffers, mode, the switch of fused attention and the random numbers that follow."""
    model = _Attention().train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes.capture_both(model, (torch.zeros(1, 5, 8),))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
