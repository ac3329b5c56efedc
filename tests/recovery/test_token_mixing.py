"""Least squares of linear layers whose positions are channels: removed positions have no counterpart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.records import Policy
from autoprune.recovery.consumers import find_consumers
from autoprune.recovery.least_squares import Reconstruction
from autoprune.structure import analyze

EXAMPLES = 64


class Mixer(nn.Module):
    """A token-mixing layer: its rows are the channels of the embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, channels, 1)
        self.first, self.second = nn.Linear(9, 12), nn.Linear(12, 9)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.second(torch.relu(self.first(x)))
        return self.head(x.mean(2))


class PerHead(nn.Module):
    """A layer that all heads share: they have a dimension to themselves, or (`folded`) are among the examples.

    With `steps`, examples are sequences, and these come before the batch.
    """

    def __init__(self, *, folded: bool = False, steps: bool = False) -> None:
        super().__init__()
        self.split = nn.Linear(8, 64)
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(64, 3)
        self.folded, self.steps = folded, steps

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.split(x)).unflatten(-1, (8, 8))
        if self.folded:
            x = x.view(x.shape[0] * 8, 8)
        if self.steps:
            x = x.transpose(0, 1)
        x = x + self.second(torch.relu(self.first(x)))
        return self.head(x.mean(0).flatten(1) if self.steps else x.view(-1, 64))


def repaired(model: nn.Module, x: Tensor, unit: int, width: int) -> nn.Module:
    structure = analyze(model, (x[:1],))
    widths = structure.full_widths | {structure.units[unit].name: width}
    policy = Policy(space_id="", widths=widths)
    shrunk = structure.shrink(policy).eval()
    Reconstruction(structure=structure, inputs=(x,)).apply(shrunk, structure.masks(policy))
    return shrunk


@pytest.mark.parametrize("channels", [4, 40])  # fewer and more rows than are looked at
def test_a_layer_that_mixes_tokens_of_unchanged_channels_stays_as_it_is(channels: int) -> None:
    torch.manual_seed(0)
    model, x = Mixer(channels).eval(), torch.randn(EXAMPLES, 2, 9)
    after = repaired(model, x, 0, channels - 1).state_dict()
    torch.testing.assert_close(after["second.weight"], model.second.weight.detach(), rtol=0, atol=1e-5)
    assert not torch.allclose(after["head.weight"], model.head.weight[:, :-1], atol=1e-3)


def test_a_layer_that_mixes_tokens_makes_up_for_its_own_inputs() -> None:
    """Both the rows and the columns of the second layer are cut; half of the columns repeat the others."""
    torch.manual_seed(0)
    model, x = Mixer(40).eval(), torch.randn(EXAMPLES, 2, 9)
    with torch.no_grad():
        model.first.weight[6:], model.first.bias[6:] = model.first.weight[:6].clone(), model.first.bias[:6].clone()
        model.embed.weight[20:], model.embed.bias[20:] = model.embed.weight[:20].clone(), model.embed.bias[:20].clone()
    structure = analyze(model, (x[:1],))
    policy = Policy(space_id="", widths={"embed": 20, "first": 6})
    shrunk = structure.shrink(policy).eval()
    Reconstruction(structure=structure, inputs=(x,)).apply(shrunk, structure.masks(policy))
    with torch.no_grad():
        wanted = model(x)
        assert (shrunk(x) - wanted).square().mean() < 1e-4 * wanted.var()


def test_heads_that_share_a_layer_can_go() -> None:
    torch.manual_seed(0)
    model, x = PerHead().eval(), torch.randn(EXAMPLES, 8)
    after = repaired(model, x, 0, 6).state_dict()
    torch.testing.assert_close(after["second.weight"], model.second.weight.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["folded", "steps"])
def test_layers_with_channels_among_their_examples_are_not_reconstructed(kind: str) -> None:
    torch.manual_seed(0)
    model, x = PerHead(**{kind: True}).eval(), torch.randn(EXAMPLES, *([5] if kind == "steps" else []), 8)
    structure = analyze(model, (x[:1],))
    pruned = ("eval", "linear_1", 2 if kind == "steps" else 0)
    assert pruned in {site for site, channels in structure.channels.items() if channels.of_unit}
    assert [consumer.weight for consumer in find_consumers(structure)] == ["head.weight"]
    heads, *others = range(len(structure.units))
    assert Reconstruction(structure=structure, inputs=(x,)).covered == {heads}
    for unit in (heads, *others):
        assert torch.isfinite(repaired(model, x, unit, 6)(x)).all()
