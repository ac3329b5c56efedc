from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.errors import TaskError, UsageError
from autoprune.pruning import SCORES, Calibration, score_units
from autoprune.structure import analyze
from tests.nets import make_net

NET, INPUTS = make_net("residual")
STRUCTURE = analyze(NET, INPUTS)


def calibration(seed: int = 0) -> Calibration:
    generator = torch.Generator().manual_seed(3)
    batches = [
        ((torch.randn(8, 2, 8, 8, generator=generator),), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(2)
    ]
    return Calibration(batches=batches, loss=lambda out, target: F.cross_entropy(out, target), seed=seed)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_finite_positive_and_repeatable(name: str) -> None:
    first, again = score_units(STRUCTURE, name, calibration()), score_units(STRUCTURE, name, calibration())
    for unit in STRUCTURE.units:
        values = first[unit.name]
        assert values.shape == (unit.width,)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert np.array_equal(values, again[unit.name])
        assert len(np.unique(values)) > 1


def test_norms_by_hand() -> None:
    weights = dict(NET.named_parameters())
    coupled = weights["c2.weight"].abs().sum((1, 2, 3)) + weights["c3.weight"].abs().sum((0, 2, 3))
    np.testing.assert_allclose(score_units(STRUCTURE, "l1")["c2"], coupled.detach().numpy(), rtol=1e-5)
    squares = weights["c2.weight"].square().sum((1, 2, 3)) + weights["c3.weight"].square().sum((0, 2, 3))
    np.testing.assert_allclose(score_units(STRUCTURE, "l2")["c2"], squares.sqrt().detach().numpy(), rtol=1e-5)


def test_bn_scale_by_hand_and_its_fallback() -> None:
    scale = NET.get_parameter("b2.weight").detach().numpy()
    np.testing.assert_allclose(score_units(STRUCTURE, "bn_scale")["c2"], scale, rtol=1e-6)
    plain, inputs = make_net("depthwise")
    structure = analyze(plain, inputs)
    for name, values in score_units(structure, "bn_scale").items():
        np.testing.assert_array_equal(values, score_units(structure, "l2")[name])


def test_a_channel_that_does_nothing_scores_lowest_by_taylor_and_activation() -> None:
    net, inputs = make_net("residual")
    with torch.no_grad():
        net.get_parameter("c2.weight")[4] = 0
        net.get_parameter("c2.bias")[4] = 0
        net.get_parameter("b2.bias")[4] = 0
        net.get_buffer("b2.running_mean")[4] = 0
        net.get_parameter("c3.weight")[:, 4] = 0
    structure = analyze(net, inputs)
    for name in ("taylor", "activation", "l1"):
        values = score_units(structure, name, calibration())["c2"]
        assert values[4] == pytest.approx(0, abs=1e-6)
        assert (values > 1e-6).sum() >= 3


def test_fpgm_prefers_filters_far_from_the_others() -> None:
    net, inputs = make_net("residual")
    with torch.no_grad():
        net.get_parameter("c2.weight")[:] = 0.1
        net.get_parameter("c2.weight")[2] = 5.0
    assert int(np.argmax(score_units(analyze(net, inputs), "fpgm")["c2"])) == 2


def test_random_follows_the_seed() -> None:
    one, two = (score_units(STRUCTURE, "random", calibration(seed))["c1"] for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_scores_leave_the_model_alone() -> None:
    before = {n: p.detach().clone() for n, p in NET.named_parameters()}
    score_units(STRUCTURE, "taylor", calibration())
    assert not NET.training
    for name, parameter in NET.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="unknown score 'l3'"):
        score_units(STRUCTURE, "l3")
    with pytest.raises(UsageError, match="batches and a loss"):
        score_units(STRUCTURE, "taylor")


def test_weights_that_are_not_finite() -> None:
    net, inputs = make_net("chain")
    nn.init.constant_(net.get_parameter("c1.weight"), float("nan"))
    with pytest.raises(TaskError, match="not finite"):
        score_units(analyze(net, inputs), "l1")


def test_fpgm_knows_the_filters_of_transposed_convolutions_and_embeddings() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        up[2].weight[:] = 0.1
        up[2].weight[:, 2] = 5.0
    structure = analyze(up.eval(), (torch.zeros(1, 1, 4, 4),))
    scores = score_units(structure, "fpgm")
    assert np.argmax(scores["2"]) == 2
    filters = up[0].weight.detach().flatten(1)
    np.testing.assert_allclose(scores["0"], torch.cdist(filters, filters).sum(1).numpy(), rtol=1e-5)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)).eval()
    (values,) = score_units(analyze(words, (torch.zeros(1, 3, dtype=torch.long),)), "fpgm").values()
    filters = words[0].weight.detach().T
    np.testing.assert_allclose(values, torch.cdist(filters, filters).sum(1).numpy(), rtol=1e-5)


def test_fpgm_takes_a_depthwise_transposed_convolution_by_its_channels() -> None:
    torch.manual_seed(0)
    first, middle = nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=4)
    structure = analyze(nn.Sequential(first, middle, nn.Conv2d(4, 2, 1)).eval(), (torch.zeros(1, 1, 4, 4),))
    wanted = sum(torch.cdist(f, f).sum(1) for f in (m.weight.detach().flatten(1) for m in (first, middle)))
    (values,) = score_units(structure, "fpgm").values()
    np.testing.assert_allclose(values, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_a_plain_tensor_along_hidden_channels_is_no_obstacle(name: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
            self.gain = torch.linspace(0.5, 1.5, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.relu(self.first(x)) * self.gain)

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    data = Calibration(batches=[((x,), torch.zeros(8, dtype=torch.long))], loss=F.cross_entropy)
    (values,) = score_units(analyze(Scaled().eval(), (x[:1],)), name, data).values()
    assert values.shape == (6,)


def test_taylor_keeps_the_mode_of_every_module() -> None:
    net = make_net("residual")[0].train()
    net.get_submodule("b2").eval()
    before = {name: module.training for name, module in net.named_modules()}
    score_units(analyze(net, INPUTS), "taylor", calibration())
    assert {name: module.training for name, module in net.named_modules()} == before


def test_taylor_needs_a_parameter_that_is_not_frozen() -> None:
    net = make_net("residual")[0].requires_grad_(False)
    with pytest.raises(UsageError, match=r"all of this model's are frozen: call requires_grad_\(True\)"):
        score_units(analyze(net, INPUTS), "taylor", calibration())
