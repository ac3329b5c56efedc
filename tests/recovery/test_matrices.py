"""Layers that read along dimension 0 of their weight: products with a matrix, and transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.recovery.consumers import find_consumers
from autoprune.recovery.recover import recover
from autoprune.recovery.windows import input_windows, output_positions
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
    ],
)
def test_windows_and_matrix_of_a_transposed_convolution_give_its_outputs(layer: nn.Module, shape: tuple) -> None:
    model = nn.Sequential(getattr(nn, f"Conv{len(shape)}d")(2, 4, 1), nn.ReLU(), layer).eval()
    structure = analyze(model, torch.randn(2, 2, *shape))
    (consumer,) = [c for c in find_consumers(structure) if c.weight == "2.weight"]
    node = next(n for n in structure.captures[False].graph.nodes if n.name == consumer.node)
    x = torch.randn(2, 4, *shape)
    windows = input_windows(node, (x, layer.weight, layer.bias, *node.args[3:])).flatten(3)
    wanted = output_positions(node, layer(x))
    with torch.no_grad():
        torch.testing.assert_close(F.linear(windows, consumer.matrix(layer.weight), layer.bias), wanted)
        before = layer.weight.clone()
        consumer.add(layer.weight, consumer.matrix(before))
        torch.testing.assert_close(layer.weight, 2 * before)


def test_a_transposed_convolution_makes_up_for_removed_channels() -> None:
    """Half of the channels repeat the other half, so that a perfect repair exists."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, stride=2)).eval()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4].clone(), model[0].bias[:4].clone()
    x = torch.randn(64, 2, 6, 6)
    small = recover(model, {"0": 4}, [x])
    with torch.no_grad():
        assert (small(x) - model(x)).norm() < 0.05 * model(x).norm()
