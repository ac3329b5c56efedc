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
