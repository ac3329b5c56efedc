"""Which layers a pruned model shares with the dense one, and which channels."""

from __future__ import annotations

import torch

from autoprune.evaluation.layer_pairs import paired_layers
from autoprune.pruning import Cut
from autoprune.records import Policy
from autoprune.structure import analyze, trained_form
from autoprune.task.models import resnet8


def test_layers_of_a_cut_net_are_compared_in_the_channels_that_are_left() -> None:
    torch.manual_seed(0)
    net, x = resnet8(1, 12, 10).eval(), torch.randn(2, 1, 12, 12)
    structure = analyze(net, (x[:1],))
    widths = {unit.name: unit.width // 2 for unit in structure.units}
    order = {unit.name: list(range(unit.width))[::-1] for unit in structure.units}
    cut = Cut.of(structure, order, Policy(space_id="", widths=widths))
    shrunk = cut.shrink()
    form = trained_form(structure, shrunk).eval()
    pairs = paired_layers(structure, cut, net, form)
    assert pairs is not None
    assert "fc" not in pairs.channels  # it writes the output of the model
    assert {"stem.0", "blocks.0.conv1", "blocks.2.conv2"} <= pairs.channels.keys()
    with torch.no_grad(), pairs.recorded(form) as mine, pairs.recorded(net) as dense:
        form(x), net(x)
    wanted = pairs.of_kept(dense)
    assert {name: output.shape for name, output in mine.items()} == {n: o.shape for n, o in wanted.items()}
    torch.testing.assert_close(mine["stem.0"], wanted["stem.0"])  # its inputs are those of the dense model


def test_a_model_that_is_trained_as_a_graph_shares_no_layers() -> None:
    net, x = resnet8(1, 12, 10).eval(), torch.randn(1, 1, 12, 12)
    structure = analyze(net, (x,))
    cut = Cut.of(structure, {unit.name: list(range(unit.width)) for unit in structure.units}, structure.dense_policy())
    assert paired_layers(structure, cut, net, cut.shrink()) is None
