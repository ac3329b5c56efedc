from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.errors import PolicyError, ProofError, StructureError
from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from autoprune.structure import structure as structure_module
from autoprune.structure.rules import RULES
from tests.nets import NETS, make_net, zero_removed


@functools.cache
def analysed(name: str) -> Structure:
    net, inputs = make_net(name)
    return analyze(net, inputs)


@st.composite
def cuts(draw: st.DrawFn, name: str) -> tuple[Policy, dict[str, np.ndarray]]:
    keep = {}
    for unit in analysed(name).units:
        kept = draw(st.sets(st.integers(0, unit.width - 1), min_size=1))
        keep[unit.name] = np.array(sorted(kept))
    return Policy(space_id="", widths={n: len(k) for n, k in keep.items()}), keep


def outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*inputs))


def zeroed(name: str, structure: Structure, policy: Policy, keep: dict[str, np.ndarray]) -> nn.Module:
    """The user's own module with every removed index of every parameter set to zero."""
    net, _ = make_net(name)
    zero_removed(net, structure.kept(policy, keep))
    return net


@pytest.mark.parametrize("name", NETS)
def test_full_width_leaves_outputs_equal(name: str) -> None:
    structure = analysed(name)
    same = structure.shrink(structure.dense_policy())
    for a, b in zip(
        outputs(structure.model, structure.example_inputs), outputs(same, structure.example_inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert list(same.state_dict()) == list(structure.model.state_dict())


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12)
@given(data=st.data())
def test_shrunk_equals_the_dense_model_with_removed_channels_zeroed(name: str, data: st.DataObject) -> None:
    structure = analysed(name)
    policy, keep = data.draw(cuts(name))
    shrunk = structure.shrink(policy, keep)
    expected = outputs(zeroed(name, structure, policy, keep), structure.example_inputs)
    got = outputs(shrunk, structure.example_inputs)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12)
@given(data=st.data())
def test_sizes_are_exact(name: str, data: st.DataObject) -> None:
    structure = analysed(name)
    policy, keep = data.draw(cuts(name))
    shrunk = structure.shrink(policy, keep, prove=False)
    widths = structure.widths([policy])
    tensors = dict(shrunk.named_parameters()) | dict(shrunk.named_buffers())
    assert structure.params(widths)[0] == sum(p.numel() for p in shrunk.parameters())
    assert structure.bytes(widths)[0] == sum(t.numel() * 4 for t in tensors.values() if t.is_floating_point())
    assert structure.macs(widths)[0] == counted_macs(shrunk, structure.example_inputs)


def counted_macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*(x[:1] for x in inputs))
    return counter.get_total_flops() // 2


def test_vectorised_sizes_agree_with_single_policies() -> None:
    structure = analysed("grouped")
    rng = np.random.default_rng(0)
    widths = np.stack([rng.integers(1, u.width + 1, 20) for u in structure.units], axis=1)
    for count in (structure.params, structure.macs, structure.bytes):
        assert count(widths).tolist() == [int(count(row[None])[0]) for row in widths]


def test_the_residual_stream_is_one_unit() -> None:
    units = {u.name: u for u in analysed("residual").units}
    assert set(units) == {"c1", "c2"}
    touched = {(m.parameter, m.dim) for m in units["c1"].members}
    assert {("c1.weight", 0), ("b1.weight", 0), ("c2.weight", 1), ("c3.weight", 0), ("fc.weight", 1)} <= touched
    assert ("c2.weight", 0) not in touched


def test_grouped_convolutions_offer_groups_and_channels_inside_them() -> None:
    units = analysed("grouped").units
    assert sorted(u.width for u in units) == [2, 3, 4]
    groups = next(u for u in units if u.width == 4)
    assert ("g.weight", 0) in {(m.parameter, m.dim) for m in groups.members}


def test_a_channel_multiplier_removes_all_its_outputs() -> None:
    structure = analysed("depthwise")
    widest = next(u for u in structure.units if u.width == 6)
    shrunk = structure.shrink(Policy(space_id="", widths=structure.full_widths | {widest.name: 2}))
    assert shrunk.get_parameter("d.weight").shape == (4, 1, 3, 3)


def test_slices_split_a_convolution_into_two_units() -> None:
    widths = {u.name: u.width for u in analysed("gated").units}
    assert widths == {"a": 6, "b": 3, "b#2": 5}


def test_tied_parameters_stay_tied() -> None:
    structure = analysed("viewed")
    assert {u.name for u in structure.units} == {"a", "fc"}
    shrunk = structure.shrink(Policy(space_id="", widths={"a": 2, "fc": 3}))
    assert shrunk.get_parameter("shared.weight").shape == (3, 3)


def test_outputs_and_inputs_are_fixed_with_reasons() -> None:
    fixed = {(f.parameter, f.dim): f.reason for f in analysed("chain").fixed}
    assert "output" in fixed["fc.weight", 0]
    assert "input" in fixed["c1.weight", 1]


def test_the_dense_model_is_untouched_and_the_shrunk_one_trains() -> None:
    net, inputs = make_net("chain")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    shrunk = analyze(net, inputs).shrink(Policy(space_id="", widths={"c1": 3, "c2": 5}))
    shrunk.train()
    torch.optim.SGD(shrunk.parameters(), lr=0.1)
    shrunk(*inputs).sum().backward()
    assert shrunk.get_parameter("c1.weight").grad is not None
    assert int(shrunk.get_buffer("b1.num_batches_tracked")) == 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_training_and_evaluation_graphs_differ_where_dropout_does() -> None:
    net, inputs = make_net("dense")
    shrunk = analyze(net, inputs).shrink(Policy(space_id="", widths={"a": 2, "b": 3, "c": 4})).eval()
    torch.manual_seed(0)
    assert torch.equal(shrunk(*inputs), shrunk(*inputs))
    shrunk.train()
    assert not torch.equal(shrunk(*inputs), shrunk(*inputs))


def test_an_operator_without_a_rule_fixes_its_inputs_and_is_listed() -> None:
    class Renormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.renorm(self.b(torch.relu(self.a(x))), 2, 0, 5.0))

    structure = analyze(Renormed(), (torch.randn(2, 4),))
    assert [u.name for u in structure.units] == ["a"]
    assert list(structure.unsupported) == ["aten.renorm.default"]
    assert any(f.parameter == "b.weight" and "renorm" in f.reason for f in structure.fixed)


def test_branching_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if x.sum() > 0 else x

    with pytest.raises(StructureError, match="cannot be traced"):
        analyze(Branching(), (torch.randn(2, 4),))


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(StructureError, match="nothing in this model can be pruned"):
        analyze(nn.Linear(4, 2), (torch.randn(2, 4),))


def test_unused_parameters_are_no_units() -> None:
    net, inputs = make_net("chain")
    net.spare = nn.Linear(5, 7)  # pyright: ignore[reportAttributeAccessIssue]
    assert {u.name for u in analyze(net, inputs).units} == {"c1", "c2"}


def test_the_proof_refuses_a_wrong_model_and_names_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = analysed("residual")
    honest = structure_module.slice_tensors

    def crooked(tensors: dict, masks: dict, canonical: dict, dead: set, lookups: dict) -> dict:
        cut = honest(tensors, masks, canonical, dead, lookups)
        if cut["c2.weight"].shape[0] < 6:
            cut["c3.weight"] = nn.Parameter(cut["c3.weight"].flip(1))
        return cut

    def as_state(tensor: torch.Tensor, name: str, masks: dict) -> tuple[torch.Tensor, torch.Tensor]:
        zeroed_tensor, sliced = honest_cut(tensor, name, masks)
        flip = name == "c3.weight" and ("parameter", "c2.weight", 0) in masks and sliced.shape[1] < 6
        return zeroed_tensor, sliced.flip(1) if flip else sliced

    from autoprune.structure import proof

    honest_cut = proof._cut_both_ways
    monkeypatch.setattr(structure_module, "slice_tensors", crooked)
    monkeypatch.setattr(proof, "_cut_both_ways", as_state)
    with pytest.raises(ProofError, match="broken by c2"):
        structure.shrink(Policy(space_id="", widths={"c1": 4, "c2": 3}))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"c1": 3}, "one width for each"),
        ({"c1": 3, "other": 3}, "no width for unit"),
        ({"c1": 0, "c2": 3}, "1 to 6"),
        ({"c1": 7, "c2": 3}, "1 to 6"),
    ],
)
def test_policies_that_do_not_fit_are_refused(widths: dict[str, int], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        analysed("residual").shrink(Policy(space_id="", widths=widths))


def test_kept_indices_that_do_not_fit_are_refused() -> None:
    policy = Policy(space_id="", widths={"c1": 2, "c2": 3})
    with pytest.raises(PolicyError, match="distinct channels"):
        analysed("residual").shrink(policy, {"c1": np.array([1, 1])})


def test_every_rule_belongs_to_a_real_operator() -> None:
    assert all(callable(target) for target in RULES)


def test_a_model_that_cannot_be_traced_says_why_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if x.sum() > 0:
                x = x * 2
            return self.second(x)

    with pytest.raises(StructureError, match=r"cannot be traced .*data-dependent.*test_structure.py, line \d+: `if x"):
        analyze(Branching(), (torch.randn(2, 4),))
    assert capfd.readouterr() == ("", "")


def test_a_dataclass_of_outputs_stays_one() -> None:
    @dataclass
    class Logits:
        logits: torch.Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> Logits:
            return Logits(self.second(self.first(x)))

    x = torch.randn(2, 4)
    structure = analyze(Net(), (x,))
    assert isinstance(structure.shrink(structure.dense_policy())(x), Logits)
