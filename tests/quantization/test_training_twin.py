import pytest
import torch
from torch import fx, nn

from autoprune.quantization.arithmetic import Arithmetic
from autoprune.quantization.calibration import calibrated
from autoprune.quantization.training_twin import round_filters, training_twin
from autoprune.quantization.twin import make_twin
from autoprune.structure import analyze
from autoprune.treatments import Treatment


class Mixed(nn.Module):
    """A convolution with a batch norm, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.wide(self.stem(x).mean((2, 3))))
        return self.head(torch.relu(self.narrow(x)))


@pytest.fixture
def treated_model():
    """A model, its placement, int8 layers, layers that are treated alone, and inputs."""
    torch.manual_seed(0)
    structure = analyze(Mixed().eval(), (torch.zeros(1, 1, 6, 6),))
    model = structure.shrink(structure.dense_policy()).eval()
    local = {"wide.weight": Treatment(precision="w4"), "narrow.weight": Treatment(precision="int8-dynamic")}
    x = torch.randn(64, 1, 6, 6) * torch.linspace(0.5, 3, 64)[:, None, None, None]
    return model, structure.placement, ["stem.0.weight", "head.weight"], local, x


def test_it_computes_nearly_what_the_deployed_twin_does_and_trains_the_weights_of_the_model(treated_model):
    model, placement, int8, local, x = treated_model
    deployed = make_twin(model, placement, calibrated(model, placement, int8, (x,), local))
    twin = training_twin(model, placement, int8, local)
    assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        fp32, outputs, trained = (form(x) for form in (model, deployed, twin))
    apart, lost = ((each - outputs).std(0).norm() for each in (trained, fp32))  # biases are corrected afterwards
    assert apart < 0.5 * lost
    mean = model.get_buffer("stem.1.running_mean").clone()
    optimizer = torch.optim.Adam(twin.parameters(), 0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = twin.train()(x).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(mean, model.get_buffer("stem.1.running_mean"))  # statistics of batches, as in fp32


def test_layers_in_fp32_leave_the_model_as_it_is(treated_model):
    model, placement, *_, x = treated_model
    assert torch.equal(training_twin(model, placement, [], {})(x), model(x))


def test_weights_of_int8_layers_have_as_many_steps_as_the_device_can_sum(treated_model):
    model, placement, int8, local, x = treated_model
    twin = training_twin(model, placement, int8, local, Arithmetic(largest_weight=3)).eval()
    seen = []

    class Weights(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.target is round_filters:
                seen.append(value.detach())
            return value

    Weights(twin.evaluation_graph()).run(x)
    assert len(seen) == len(int8)
    for weight in seen:
        steps = weight.flatten(1) / weight.flatten(1).abs().amax(1, keepdim=True) * 3
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-5)
        assert len(steps.round().unique()) == 7
