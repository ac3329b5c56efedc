"""Depthwise layers, one filter for each channel, in int8: scales of whole tensors would ruin them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.quantization.calibration import calibrated
from autoprune.quantization.twin import make_twin
from autoprune.structure import analyze
from autoprune.task.data import load_digits


class Separable(nn.Module):
    """Two blocks that expand, filter each channel alone, and project."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.Sequential(*self._block(8, 24, 12), *self._block(12, 32, 16))
        self.head = nn.Linear(16, 10)

    def _block(self, wide_in: int, wide: int, out: int) -> list[nn.Module]:
        expand = [nn.Conv2d(wide_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        filters = [nn.Conv2d(wide, wide, 3, 2, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        return [*expand, *filters, nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    """A net that knows most digits, whose depthwise filters differ in size by a factor of 10."""
    splits = load_digits()
    x, y = (torch.stack([torch.as_tensor(each[i]) for each in splits.train]) for i in (0, 1))
    torch.manual_seed(0)
    net = Separable()
    steps = torch.randint(len(x), (100, 64))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    for norm, project in ((4, 6), (12, 14)):
        weight, bias = (net.get_parameter(f"blocks.{norm}.{name}") for name in ("weight", "bias"))
        factors = torch.logspace(-0.5, 0.5, len(weight))
        with torch.no_grad():
            weight.mul_(factors)
            bias.mul_(factors)
            net.get_parameter(f"blocks.{project}.weight").div_(factors[None, :, None, None])
    return net.eval(), x, y


def test_a_depthwise_net_in_int8_loses_half_a_point_at_most_without_training(trained):
    net, x, y = trained
    structure = analyze(net, (x[:2],))
    layers = [layer.name for layer in structure.layers]
    assert len(layers) == 8
    model = structure.shrink(structure.dense_policy()).eval()
    twin = make_twin(model, structure.placement, calibrated(model, structure.placement, layers, (x[:128],)))
    with torch.no_grad():
        right = {name: float((form(x).argmax(1) == y).float().mean()) for name, form in (("fp32", net), ("int8", twin))}
    assert right["fp32"] > 0.8
    assert right["int8"] >= right["fp32"] - 0.005
