"""Least squares with fewer rows than columns stays near the dense weights, in the type of the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import autoprune
from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.structure import analyze
from tests.structure.recurrent_nets import FEATURES, HIDDEN, STEPS, make_recurrent


def without_last(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model without the last channel of its first unit, repaired on `x`."""
    structure = analyze(model, (x[:1],))
    unit = structure.units[0]
    policy = Policy(space_id="", widths=structure.full_widths | {unit.name: unit.width - 1})
    shrunk = structure.shrink(policy).eval()
    Reconstruction(structure=structure, inputs=(x,)).apply(shrunk, structure.masks(policy))
    return shrunk


def test_a_channel_that_did_nothing_leaves_the_other_weights_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        model[2].weight[:, -1] = 0
    after = without_last(model, torch.randn(8, 4)).state_dict()
    torch.testing.assert_close(after["2.weight"], model[2].weight[:, :-1].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(after["2.bias"], model[2].bias.detach(), rtol=0, atol=1e-5)


def test_few_examples_lose_little_on_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 3)).eval()
    with torch.no_grad():
        model[2].weight[:, 96:] *= 0.1
    x, fresh = torch.randn(16, 32), torch.randn(256, 32)
    plain = autoprune.prune(model, (x[:1],), keep=0.75, multiple_of=1)
    fitted = autoprune.recover(model, {"0": 96}, [x])
    with torch.no_grad():
        wanted = model(fresh)
        loss = [float((m(fresh) - wanted).square().mean()) for m in (plain, fitted)]
    assert loss[1] < 1.2 * loss[0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_stay_near_their_dense_weights(kind: str) -> None:
    net, _ = make_recurrent(kind)
    with torch.no_grad():
        for name, weight in net.net.named_parameters():
            if "weight_hh" in name:
                weight[:, -1] = 0
    x = torch.randn(1, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    after, before = without_last(net, x).state_dict(), net.state_dict()
    gates = len(before["net.weight_hh_l0"]) // HIDDEN
    kept = [g * HIDDEN + i for g in range(gates) for i in range(HIDDEN - 1)]
    torch.testing.assert_close(after["net.weight_ih_l0"], before["net.weight_ih_l0"][kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(after["net.weight_hh_l0"], before["net.weight_hh_l0"][kept, :-1], rtol=0, atol=1e-5)
    sums = [state["net.bias_ih_l0"] + state["net.bias_hh_l0"] for state in (after, before)]
    torch.testing.assert_close(sums[0], sums[1][kept], rtol=0, atol=1e-5)


def test_a_bias_that_others_share_is_not_fitted_again() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other = nn.Linear(4, 16), nn.Linear(16, 3)
            self.aside = nn.Linear(4, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            aside = nn.functional.linear(x, self.aside.weight, self.other.bias)
            return self.other(torch.relu(self.first(x))) + aside

    torch.manual_seed(0)
    model = Shared().eval()
    with torch.no_grad():
        model.other.weight[:, -1] = 0
        model.other.bias += 5
    after = without_last(model, torch.randn(64, 4)).state_dict()
    torch.testing.assert_close(after["other.weight"], model.other.weight[:, :-1].detach(), rtol=0, atol=1e-5)


def test_a_model_in_float64_is_repaired_in_float64() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8, dtype=torch.float64)
    for model in (
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).double().eval(),
        nn.Sequential(nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False)).double().eval(),
    ):
        small = autoprune.recover(model, {"0": 16}, [x])
        assert all(p.dtype is torch.float64 for p in small.parameters())
        assert torch.isfinite(small(x)).all()
    net, _ = make_recurrent("GRU")
    steps = torch.randn(16, STEPS, FEATURES, dtype=torch.float64)
    assert without_last(net.double(), steps)(steps).dtype is torch.float64
