import numpy as np
import pytest
import torch
from torch import fx, nn

from autoprune.quantization.grid import LARGEST_WEIGHT, rounded, rounded_blocks, weight_scales
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.twin import make_twin
from autoprune.recovery.optimal_rounding import MomentRounding, round_in_blocks
from autoprune.structure import analyze
from autoprune.treatments import Treatment

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (128, 6, 12)),
    "convolution": (lambda: nn.Conv2d(3, 8, 3, padding=1), (32, 3, 8, 8)),
    "groups": (lambda: nn.Conv2d(8, 8, 3, groups=2, padding=1, bias=False), (32, 8, 8, 8)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 5, groups=6), (32, 6, 30)),
}


def rounded_by(layer, inputs, scales):
    """Steps of a layer's weight by the moments of inputs, with the arguments that its node has in a captured model."""
    args = (inputs, layer.weight.detach(), layer.bias)
    target = torch.ops.aten.linear.default
    if not isinstance(layer, nn.Linear):
        dims = layer.weight.dim() - 2
        target = getattr(torch.ops.aten, f"conv{dims}d").default
        args = (*args, [1] * dims, list(layer.padding), [1] * dims, layer.groups)
    node = fx.Graph().create_node("call_function", target, name="layer")
    rounding = MomentRounding()
    rounding.observe(node, args)
    return rounding.rounded("layer", layer.weight.detach().numpy(), scales, centred=layer.bias is not None)


def output_error(layer, weight, inputs):
    """Mean squared change of the outputs, without the change of their mean where the layer has a bias."""
    with torch.no_grad():
        before = layer(inputs)
        after = torch.func.functional_call(layer, {"weight": torch.from_numpy(weight)}, (inputs,))
    change = (after - before).movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    return float((change - change.mean(1, keepdim=True) * (layer.bias is not None)).square().mean())


@pytest.mark.parametrize("name", LAYERS)
def test_rounding_by_moments_changes_outputs_less_than_the_nearest_steps(name):
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    layer = make()
    inputs = torch.randn(shape).cumsum(1).cumsum(-1) + 3  # neighbours are alike, which errors can make use of
    weight = layer.weight.detach().numpy()
    scales = 8 * weight_scales(weight, None, 1.0)  # so coarse that rounding matters
    steps = rounded_by(layer, inputs, scales)
    assert steps.shape == weight.shape
    assert steps.dtype == np.int8
    size = scales.reshape(-1, *[1] * (weight.ndim - 1))
    errors = [output_error(layer, (of * size).astype(np.float32), inputs) for of in (steps, rounded(weight, scales))]
    assert errors[0] < 0.7 * errors[1]
    assert np.abs(steps).max() <= LARGEST_WEIGHT


def test_inputs_that_say_nothing_leave_the_nearest_steps():
    layer = nn.Linear(4, 3)
    weight = layer.weight.detach().numpy()
    scales = weight_scales(weight, None, 1.0)
    np.testing.assert_array_equal(rounded_by(layer, torch.zeros(16, 4), scales), rounded(weight, scales))
    unseen = MomentRounding().rounded("layer", weight, scales, centred=True)
    np.testing.assert_array_equal(unseen, rounded(weight, scales))


class Tokens(nn.Module):
    """Linear layers over tokens; the weight of the last one has another reader, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.out = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(torch.relu(self.first(x))))
        return self.out(x) + self.out.weight.mean()


@pytest.mark.parametrize("varies_by", [1e-5, 3e-6, 1e-6, 1e-7])
def test_inputs_that_hardly_vary_can_be_rounded_by(varies_by):
    torch.manual_seed(0)
    layer = nn.Linear(96, 10)
    inputs = (torch.rand(96) + 0.5) * (1 + varies_by * torch.randn(256, 96))
    weight = layer.weight.detach().numpy()
    steps = rounded_by(layer, inputs, weight_scales(weight, None, 1.0))
    assert np.abs(steps).max() <= LARGEST_WEIGHT


def test_blocks_are_rounded_by_moments_and_deployed_as_they_are():
    torch.manual_seed(0)
    structure = analyze(Tokens().eval(), (torch.zeros(1, 6, 40),))
    model = structure.shrink(structure.dense_policy()).eval()
    x = torch.randn(64, 6, 40).cumsum(-1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        fp32 = model(x)
        local = {"wide.weight": Treatment(precision="w4")}
        nearest = make_twin(model, structure.placement, Quantization(ranges={}, weights={}, local=local))(x)
        round_in_blocks(model, structure.placement, {"wide.weight": 4, "out.weight": 4}, (x,))
        moments = make_twin(model, structure.placement, Quantization(ranges={}, weights={}, local=local))(x)
    assert (moments - fp32).std() < 0.5 * (nearest - fp32).std()
    weight = model.state_dict()["wide.weight"]
    assert not torch.equal(weight, before["wide.weight"])
    np.testing.assert_allclose(rounded_blocks(weight.numpy(), 4).values, weight, atol=1e-6)
    assert torch.equal(model.state_dict()["out.weight"], before["out.weight"])
