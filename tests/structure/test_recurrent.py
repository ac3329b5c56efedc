from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import StructureError
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from autoprune.structure.proof import TOLERANCE, largest_difference
from tests.nets import zero_removed
from tests.structure.recurrent_nets import FEATURES, HIDDEN, STEPS, make_recurrent

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NETS = {
    "plain": ("LSTM", {}),
    "stacked": ("LSTM", {"layers": 3}),
    "zeros given": ("LSTM", {"layers": 2, "state": "zeros", "batch_first": False}),
    "state learned": ("LSTM", {"layers": 2, "bidirectional": True, "state": "learned"}),
    "final state": ("LSTM", {"layers": 2, "reads": "final", "bias": False}),
    "gru": ("GRU", {"layers": 2, "bidirectional": True, "batch_first": False}),
    "gru learned": ("GRU", {"state": "learned"}),
    "rnn": ("RNN", {"layers": 2, "bidirectional": True}),
    "rnn final": ("RNN", {"layers": 2, "state": "zeros", "reads": "final"}),
}
"""Kinds and features of nets."""


def halved(structure: Structure) -> tuple[Policy, dict[str, np.ndarray]]:
    """Policy and channels of about half of every unit, chosen at random."""
    rng = np.random.default_rng(0)
    keep = {u.name: np.sort(rng.choice(u.width, u.width // 2 - n % 2, False)) for n, u in enumerate(structure.units)}
    return Policy(space_id="", widths={name: len(kept) for name, kept in keep.items()}), keep


@pytest.mark.parametrize(("kind", "features"), NETS.values(), ids=NETS)
def test_a_shrunk_net_equals_the_net_without_these_hidden_units(kind: str, features: dict) -> None:
    net, inputs = make_recurrent(kind, **features)
    structure = analyze(net, inputs)
    assert not structure.unsupported
    tied = features.get("state") == "learned"
    assert len(structure.units) == (1 if tied else features.get("layers", 1))
    assert {unit.kind for unit in structure.units} == {"hidden"}
    policy, keep = halved(structure)
    shrunk = structure.shrink(policy, keep)  # proven, in training mode too

    zeroed, _ = make_recurrent(kind, **features)
    zero_removed(zeroed, structure.kept(policy, keep))
    assert all(weight.any() for weight in zeroed.state_dict().values())
    with torch.no_grad():
        torch.testing.assert_close(shrunk(*inputs), zeroed(*inputs), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(structure.shrink(structure.dense_policy())(*inputs), net(*inputs))


@pytest.mark.parametrize("kind", GATES)
def test_every_gate_keeps_the_same_hidden_units(kind: str) -> None:
    structure = analyze(*make_recurrent(kind, layers=2, bidirectional=True))
    policy, keep = halved(structure)
    kept = structure.kept(policy, keep)
    blocks = HIDDEN * np.arange(GATES[kind])[:, None]
    for layer, name in enumerate(("net.l0", "net.l1")):
        rows = (blocks + keep[name]).ravel().tolist()
        for end in (f"l{layer}", f"l{layer}_reverse"):
            for parameter in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                indices = kept[f"net.{parameter}_{end}"][0]
                assert indices is not None
                assert indices.tolist() == rows
            recurrent = kept[f"net.weight_hh_{end}"][1]
            assert recurrent is not None
            assert recurrent.tolist() == keep[name].tolist()


def test_each_layer_has_its_own_width_unless_a_state_ties_layers() -> None:
    free = analyze(*make_recurrent("LSTM", layers=2))
    assert free.full_widths == {"net.l0": HIDDEN, "net.l1": HIDDEN}
    tied = analyze(*make_recurrent("LSTM", layers=2, state="learned"))
    assert tied.full_widths == {"net.l0": HIDDEN}


def test_a_shrunk_net_trains_with_the_dropout_between_its_layers() -> None:
    structure = analyze(*make_recurrent("GRU", layers=2))
    shrunk = structure.shrink(*halved(structure)).train()
    x = torch.randn(5, STEPS, FEATURES)
    first, second = shrunk(x), shrunk(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad is not None for p in shrunk.parameters())
    torch.testing.assert_close(shrunk.eval()(x), shrunk(x))


def test_the_proof_notices_a_gate_that_is_cut_elsewhere() -> None:
    structure = analyze(*make_recurrent("LSTM"))
    masks = structure.masks(Policy(space_id="", widths={"net.l0": 2}))
    site = ("parameter", "net.weight_hh_l0", 0)
    bent = masks | {site: np.roll(masks[site], 1)}
    absent: dict[bool, set[str]] = {False: set(), True: set()}
    dense = structure.captures, structure.tensors
    differences = [
        largest_difference(*dense, structure.cut(cut), cut, structure.canonical, structure.example_inputs, absent)
        for cut in (masks, bent)
    ]
    assert differences[0] <= TOLERANCE < differences[1]


def test_a_given_state_and_cells_with_projections_keep_the_width_and_say_why() -> None:
    class Given(nn.Module):
        def __init__(self, **options: int) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, 5)
            self.net = nn.LSTM(5, HIDDEN, batch_first=True, **options)
            self.second, self.head = nn.Linear(options.get("proj_size", HIDDEN), 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
            both = None if state is None else (state.transpose(0, 1).contiguous(),) * 2
            x = self.net(torch.relu(self.first(x)), both)[0]
            return self.head(torch.relu(self.second(x[:, -1])))

    x, state = torch.randn(2, STEPS, FEATURES), torch.zeros(2, 1, HIDDEN)
    for inputs, options, units, reason in (
        ((x, state), {}, {"first", "second"}, "initial state"),
        ((x,), {"proj_size": 4}, {"first", "net.l0", "second"}, "proj_size"),
    ):
        structure = analyze(Given(**options), inputs)
        assert set(structure.full_widths) == units
        assert any(reason in fixed.reason for fixed in structure.fixed if fixed.parameter.startswith("net."))
        structure.shrink(*halved(structure))


def test_macs_and_memory_follow_the_widths() -> None:
    structure = analyze(*make_recurrent("GRU", layers=2, bidirectional=True))
    widths = np.array([[HIDDEN, HIDDEN], [4, 2]])
    first, second = widths.T
    gates = STEPS * 3 * 2
    expected = gates * (first * (FEATURES + first) + second * (2 * first + second)) + 2 * 2 * second
    assert structure.macs(widths).tolist() == expected.tolist()
    half = structure.shrink(Policy(space_id="", widths={"net.l0": 4, "net.l1": 2}))
    assert structure.params(widths)[1] == sum(p.numel() for p in half.parameters())
    # The second layer: its input, its output, and its final states.
    assert structure.peak_activation_bytes(widths)[1] >= 4 * (STEPS * 2 * (4 + 2) + 2 * 2)


def test_a_model_whose_output_is_the_state_has_nothing_to_prune() -> None:
    class Encoder(nn.GRU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[1].transpose(0, 1)

    with pytest.raises(StructureError, match="nothing in this model can be pruned"):
        analyze(Encoder(FEATURES, HIDDEN), (torch.randn(2, STEPS, FEATURES),))
