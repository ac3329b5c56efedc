"""Layers that read along dimension 0 of their weight: products with a matrix, and transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.records import Policy
from autoprune.recovery.consumers import find_consumers
from autoprune.recovery.recover import recover
from autoprune.recovery.windows import input_windows, output_positions, position_dims
from autoprune.structure import analyze

aten = torch.ops.aten


class Matrix(nn.Module):
    """A linear layer whose weight is `[inputs, outputs]`."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def _flat(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "addmm": _flat,
    "matmul": lambda x, weight, bias: x @ weight + bias,
}


def _error(layers: nn.Module, data: list[Tensor]) -> float:
    (unit,) = analyze(layers.eval(), data[0][:1]).full_widths
    small = recover(layers, {unit: 24}, data[1:]).eval()
    with torch.no_grad():
        wanted = layers(data[0])
        return float((small(data[0]) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", ["addmm", "matmul"])
def test_a_product_with_a_matrix_is_repaired_like_a_linear_layer(name: str) -> None:
    torch.manual_seed(0)
    mix = torch.randn(6, 16)
    data = [torch.randn(64, 5, 6) @ mix for _ in range(6)]
    torch.manual_seed(1)
    first, last = Matrix(PRODUCTS[name], 16, 64), Matrix(PRODUCTS[name], 64, 8)
    plain = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))
    with torch.no_grad():
        for linear, matrix in ((plain[0], first), (plain[2], last)):
            linear.weight.copy_(matrix.weight.T)
            linear.bias.zero_()
    error = _error(nn.Sequential(first, nn.GELU(), last), data)
    assert error < 1.5 * _error(plain, data) + 1e-3
    assert error < 0.3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (9,)),
        (nn.ConvTranspose2d(4, 3, (3, 2), stride=(1, 3), padding=(2, 1), dilation=(2, 1)), (6, 5)),
        (nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False), (4, 4)),
        (nn.ConvTranspose3d(4, 3, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1)), (3, 4, 5)),
        (nn.Conv3d(4, 3, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), (4, 3, 5)),
    ],
)
def test_windows_and_matrix_of_a_convolution_give_its_outputs(layer: nn.Module, shape: tuple) -> None:
    model = nn.Sequential(getattr(nn, f"Conv{len(shape)}d")(2, 4, 1), nn.ReLU(), layer).eval()
    structure = analyze(model, torch.randn(2, 2, *shape))
    (consumer,) = [c for c in find_consumers(structure) if c.weight == "2.weight"]
    node = next(n for n in structure.captures[False].graph.nodes if n.name == consumer.nodes[0])
    x = torch.randn(2, 4, *shape)
    windows = input_windows(node, (x, layer.weight, layer.bias, *node.args[3:]))
    windows = windows.flatten(1 + position_dims(windows))
    wanted = output_positions(node, layer(x))
    with torch.no_grad():
        torch.testing.assert_close(F.linear(windows, consumer.matrix(layer.weight), layer.bias), wanted)
        before = layer.weight.clone()
        consumer.add(layer.weight, consumer.matrix(before))
        torch.testing.assert_close(layer.weight, 2 * before)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d])
def test_a_convolution_makes_up_for_removed_channels(layer: type[nn.Module], groups: int) -> None:
    """Half of the channels (of each group) repeat the other half, so that a perfect repair exists."""
    torch.manual_seed(0)
    first, shape = (nn.Conv3d, (2, 5, 5, 5)) if layer is nn.Conv3d else (nn.Conv2d, (2, 6, 6))
    model = nn.Sequential(first(2, 8, 3, padding=1), nn.ReLU(), layer(8, 4, 3, stride=2, groups=groups)).eval()
    each = 8 // groups
    with torch.no_grad():
        for tensor in (model[0].weight.unflatten(0, (groups, each)), model[0].bias.unflatten(0, (groups, each))):
            tensor[:, each // 2 :] = tensor[:, : each // 2].clone()
    model, x = model.double(), torch.randn(64, *shape, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    widths = analyze(model, x[:1]).full_widths
    (within,) = [name for name, width in widths.items() if width == each]
    small = recover(model, {within: each // 2}, [x])
    with torch.no_grad():
        assert (small(x) - model(x)).norm() < 0.05 * model(x).norm()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Loop(nn.Module):
    """A layer, or a cell, that runs three times."""

    def __init__(self, cell: type[nn.Module] | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.up, self.down = (nn.Linear(12, 16), nn.Linear(16, 12)) if cell is None else (cell(12, 12), None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        hidden = state = x[:, 0] if self.down else x.new_zeros(x.shape[0], 12)
        for step in range(3):
            if self.down is not None:
                hidden = hidden + self.down(F.gelu(self.up(hidden)))
            elif isinstance(self.up, nn.LSTMCell):
                hidden, state = self.up(x[:, step], (hidden, state))
            else:
                hidden = self.up(x[:, step], hidden)
        return self.last(hidden)


@pytest.mark.parametrize("cell", [None, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_layer_that_runs_several_times_is_repaired(cell: type[nn.Module] | None) -> None:
    torch.manual_seed(0)
    model, x = Loop(cell).eval(), torch.randn(128, 3, 2) @ torch.randn(2, 4)
    structure = analyze(model, x[:1])
    half = {unit.name: unit.width // 2 for unit in structure.units}
    plain = structure.shrink(Policy(space_id="", widths=half)).eval()
    small = recover(model, half, [x])
    with torch.no_grad():
        assert (small(x) - model(x)).norm() < 0.5 * (plain(x) - model(x)).norm()
