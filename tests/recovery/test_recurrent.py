"""Least squares of recurrent layers: what a redundant layer can lose without any loss, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.records import Policy
from autoprune.recovery.least_squares import Reconstruction
from autoprune.recovery.moments import collect_moments
from autoprune.recovery.recurrent import find_directions
from autoprune.recovery.surgeon import surgeon_order
from autoprune.structure import analyze
from tests.structure.recurrent_nets import FEATURES, HIDDEN, STEPS, make_recurrent


def duplicated(kind: str, **features: object) -> nn.Module:
    """A net of one layer whose second half of hidden units repeats the first: it can go without any loss."""
    net, _ = make_recurrent(kind, **features)
    half = HIDDEN // 2
    with torch.no_grad():
        for name, weight in net.net.named_parameters():
            blocks = weight.view(-1, HIDDEN, *weight.shape[1:])
            blocks[:, half:] = blocks[:, :half]
            if "weight_hh" in name:
                weight[:, half:] = weight[:, :half]
    return net


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("LSTM", {}),
        ("GRU", {"bidirectional": True, "batch_first": False}),
        ("RNN", {"state": "learned", "bias": False}),
    ],
)
def test_units_that_repeat_others_are_made_up_for(kind: str, features: dict) -> None:
    net = duplicated(kind, **features)
    if features.get("state") == "learned":
        with torch.no_grad():
            for tensor in (net.start.weight, net.start.bias):
                tensor[HIDDEN // 2 :] = tensor[: HIDDEN // 2]
    x = torch.randn(64, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    structure = analyze(net, (x[:1],))
    reconstruction = Reconstruction(structure=structure, inputs=(x,))
    assert reconstruction.covered == {0}
    policy = Policy(space_id="", widths={structure.units[0].name: HIDDEN // 2})
    shrunk = structure.shrink(policy).eval()
    with torch.no_grad():
        wanted, before = net(x), shrunk(x)
        reconstruction.apply(shrunk, structure.masks(policy))
        after = shrunk(x)
    scale = wanted.var()
    assert (after - wanted).square().mean() < 1e-3 * scale
    assert (after - wanted).square().mean() < 0.05 * (before - wanted).square().mean()


def test_the_surgeon_takes_one_of_two_equal_hidden_units_first() -> None:
    net = duplicated("LSTM")
    x = torch.randn(64, STEPS, FEATURES, generator=torch.Generator().manual_seed(1))
    structure = analyze(net, (x[:1],))
    (order,) = surgeon_order(structure, collect_moments(structure, [(x,)]), {"net.l0": range(HIDDEN)}).values()
    assert {channel % (HIDDEN // 2) for channel in order[: HIDDEN // 2]} == set(range(HIDDEN // 2))


def test_layers_with_shared_weights_are_left_as_they_are() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = nn.GRU(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.net(x)[0][:, -1] + self.net(-x)[0][:, -1])

    structure = analyze(Twice().eval(), (torch.randn(2, STEPS, FEATURES),))
    assert len(structure.units) == 1
    assert not find_directions(structure)
    assert not Reconstruction(structure=structure, inputs=(torch.randn(4, STEPS, FEATURES),)).covered
