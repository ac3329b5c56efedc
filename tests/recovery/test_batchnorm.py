import copy

import pytest
import torch
from torch import fx, nn

from autoprune.recovery.batchnorm import recalibrate, take_statistics
from autoprune.task.batches import sample_rows, take
from autoprune.training.sample_passes import SamplePasses
from tests.task.toys import toy_model, toy_task

TASK = toy_task()


class FunctionalNet(nn.Module):
    """A graph whose batch norm is an operator fed by buffers, as in traced models; the momentum is a constant in it."""

    def __init__(self, momentum):
        super().__init__()
        self.norm = nn.Module()
        self.norm.register_buffer("running_mean", torch.full((1,), 5.0))
        self.norm.register_buffer("running_var", torch.full((1,), 9.0))
        self.graphs = {training: self._graph(training, momentum) for training in (True, False)}

    def _graph(self, training, momentum):
        graph = fx.Graph()
        x = graph.placeholder("x")
        mean, var = graph.get_attr("norm.running_mean"), graph.get_attr("norm.running_var")
        arguments = (x, None, None, mean, var, training, momentum, 1e-5, False)
        graph.output(graph.call_function(torch.ops.aten.batch_norm.default, arguments))
        return fx.GraphModule(self, graph)

    def forward(self, x):
        return self.graphs[self.training](x)


def expected_statistics(rows, batch_size):
    """Mean over batches of mean and unbiased variance of the input itself."""
    images = take(TASK.train_set, rows)[0].split(batch_size)
    return sum(x.mean() for x in images) / len(images), sum(x.var() for x in images) / len(images)


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.9, 1.0])
def test_a_traced_graph_gets_the_statistics_of_its_input(momentum):
    net = FunctionalNet(momentum)
    recalibrate(net, TASK, examples=96, batch_size=96)
    mean, var = expected_statistics(torch.arange(96), 96)
    torch.testing.assert_close(net.norm.running_mean[0], mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(net.norm.running_var[0], var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_a_module_gets_the_cumulative_average(momentum):
    torch.manual_seed(0)
    model = toy_model()
    reference = copy.deepcopy(model)
    model[1].momentum = momentum
    recalibrate(model, TASK, examples=64, batch_size=16, seed=4)
    reference[1].momentum = None
    rows = sample_rows(96, 64, seed=4)
    rows = rows[torch.randperm(64, generator=torch.Generator().manual_seed(4))]
    with torch.no_grad():
        for part in rows.split(16):
            reference.train()(take(TASK.train_set, part)[0])
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(model[1], name), getattr(reference[1], name), rtol=1e-4, atol=1e-5)


def test_parameters_mode_and_random_state_are_left_alone():
    model = nn.Sequential(toy_model(), nn.Dropout(0.5))
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    recalibrate(model, TASK, examples=32, batch_size=16)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.training


def test_dropout_before_the_norm_does_not_disturb_the_momentum():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
    recalibrate(model, TASK, examples=96, batch_size=96)
    mean, _ = expected_statistics(torch.arange(96), 96)
    assert float(model[1].running_mean) == pytest.approx(float(mean), rel=0.1)


def test_frozen_statistics_stay():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(Frozen(1))
    recalibrate(model, TASK, examples=32, batch_size=16)
    assert model[0].running_mean.item() == 0
    assert model[0].running_var.item() == 1


def test_a_wrecked_model_recovers():
    torch.manual_seed(0)
    model = toy_model()
    recalibrate(model, TASK, examples=96)
    good = model[1].running_var.clone()
    model[1].running_var.fill_(torch.nan)
    model[1].running_mean.fill_(1e9)
    recalibrate(model, TASK, examples=96)
    assert torch.equal(model[1].running_var, good)


def test_without_batch_norm_nothing_happens_and_nothing_is_counted():
    passes, model = SamplePasses(), nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    recalibrate(model, TASK, passes=passes)
    assert passes.total == 0


def test_passes_are_counted_with_the_probe():
    passes = SamplePasses()
    recalibrate(toy_model(), TASK, examples=50, batch_size=16, passes=passes, relative_cost=0.5)
    assert passes.total == pytest.approx((48 + 4) / 3 * 0.5)


class PartlyFrozen(nn.Module):
    """Norms of which the first `frozen` keep their statistics in training mode."""

    def __init__(self, frozen):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.frozen = frozen

    def train(self, mode=True):
        super().train(mode)
        for norm in self.norms[: self.frozen]:
            norm.eval()
        return self

    def forward(self, x):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        return x


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_live_norms_behind_frozen_ones_get_the_statistics_of_their_input(frozen):
    torch.manual_seed(0)
    model = PartlyFrozen(frozen)
    for norm in model.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    reference = copy.deepcopy(model)
    for norm in reference.norms:
        norm.momentum = 1.0
    with torch.no_grad():
        reference.train()(take(TASK.train_set, torch.arange(96))[0])
    passes = SamplePasses()
    recalibrate(model, TASK, examples=96, batch_size=96, passes=passes)
    for norm, wanted in zip(model.norms, reference.norms, strict=True):
        torch.testing.assert_close(norm.running_mean, wanted.running_mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, wanted.running_var, rtol=1e-3, atol=1e-4)
    assert passes.total == pytest.approx((96 + 6) / 3)  # finding the frozen ones takes one pass more


@pytest.mark.parametrize("shape", [(64, 3), (32, 3, 7), (16, 3, 5, 4), (8, 3, 2, 3, 4)])
def test_statistics_are_those_of_a_batch_norm_in_training(shape):
    x = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3, momentum=1.0)
    norm.train()(x)
    mean, variance = torch.empty(3), torch.empty(3)
    take_statistics(x, mean, variance)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(variance, norm.running_var)
