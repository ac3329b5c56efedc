"""Removable residual branches: which ones there are, what goes with them, and the rest computes the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from autoprune.errors import PolicyError, ProofError
from autoprune.records import Policy
from autoprune.structure import Structure
from autoprune.structure.gates import ALWAYS, NEVER, Gate, all_of
from tests.structure.branch_nets import BUILT_IN, NETS, analysed
from tests.structure.test_memory import counted as counted_bytes
from tests.structure.test_structure import counted_macs


def policy_of(structure: Structure, **widths: int) -> Policy:
    return Policy(space_id="", widths=structure.full_widths | widths)


def without(structure: Structure, *names: str) -> Policy:
    return policy_of(structure, **dict.fromkeys(names, 0))


@st.composite
def cuts(draw: st.DrawFn, structure: Structure) -> tuple[Policy, dict[str, np.ndarray]]:
    """Policies of any widths; each removable unit has width 0 in half of the draws."""
    keep = {}
    for unit in structure.units:
        gone = unit.removable and draw(st.booleans())
        kept = set() if gone else draw(st.sets(st.integers(0, unit.width - 1), min_size=1))
        keep[unit.name] = np.array(sorted(kept))
    return Policy(space_id="", widths={n: len(k) for n, k in keep.items()}), keep


@pytest.mark.parametrize("name", NETS)
def test_units_inside_a_residual_branch_are_removable(name: str) -> None:
    assert {u.name for u in analysed(name).units if u.removable} == NETS[name][2]


def test_blocks_of_the_built_in_models_are_removable() -> None:
    for name, blocks in (("resnet8", range(3)), ("resnet20", range(9))):
        assert {u.name for u in analysed(name).units if u.removable} == {f"blocks.{i}.conv1" for i in blocks}
    assert {u.name for u in analysed("mobilenet-tiny").units if u.removable} == {
        f"blocks.{i}.expand.0" for i in (0, 2, 4, 5)
    }


@pytest.mark.parametrize("name", ["chain", "dense", "grouped", "depthwise", "gated", "viewed"])
def test_nets_without_residuals_have_nothing_to_remove(name: str) -> None:
    assert not any(u.removable for u in analysed(name).units)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet20")) for name in [*NETS, *BUILT_IN, "residual"]],
)
@settings(max_examples=10)
@given(data=st.data())
def test_every_cut_is_proven_and_its_sizes_are_exact(name: str, data: st.DataObject) -> None:
    structure = analysed(name)
    policy, keep = data.draw(cuts(structure))
    shrunk = structure.shrink(policy, keep)  # compares with zeros at the additions, in both modes
    widths = structure.widths([policy])
    tensors = dict(shrunk.named_parameters()) | dict(shrunk.named_buffers())
    assert structure.params(widths)[0] == sum(p.numel() for p in shrunk.parameters())
    assert structure.bytes(widths)[0] == sum(t.numel() * 4 for t in tensors.values() if t.is_floating_point())
    assert structure.macs(widths)[0] == counted_macs(shrunk, structure.example_inputs)
    assert structure.peak_activation_bytes(widths)[0] == counted_bytes(structure, policy)
    kept = structure.kept(policy, keep)
    assert set(kept) == set(shrunk.state_dict())
    for parameter, dims in kept.items():
        wanted = [
            size if k is None else len(k) for k, size in zip(dims, structure.tensors[parameter].shape, strict=True)
        ]
        assert list(tensors[parameter].shape) == wanted
        assert tensors[parameter].numel() > 0


@pytest.mark.parametrize("name", ["resnet20", "pre_activation", "bottleneck"])
def test_sizes_of_many_policies_at_once(name: str) -> None:
    structure = analysed(name)
    rng = np.random.default_rng(0)
    columns = [rng.integers(0 if u.removable else 1, u.width + 1, 30) for u in structure.units]
    removed = rng.random((30, len(columns))) < [0.4 * u.removable for u in structure.units]
    widths = np.where(removed, 0, np.stack(columns, axis=1))
    for count in (structure.params, structure.bytes, structure.macs, structure.peak_activation_bytes):
        assert count(widths).tolist() == [int(count(row[None])[0]) for row in widths]


def test_a_removed_block_leaves_its_shortcut() -> None:
    structure = analysed("resnet8")
    shrunk = structure.shrink(without(structure, "blocks.0.conv1", "blocks.1.conv1"))
    names = {name.rpartition(".")[0] for name in shrunk.state_dict()}
    assert names == {
        "stem.0", "stem.1", "blocks.1.shortcut.0", "blocks.1.shortcut.1", "fc",
        "blocks.2.conv1", "blocks.2.bn1", "blocks.2.conv2", "blocks.2.bn2",
        "blocks.2.shortcut.0", "blocks.2.shortcut.1",
    }  # fmt: skip


def test_all_blocks_of_resnet20_gone_is_a_net_of_shortcuts() -> None:
    """By hand: the same weights, the stem, two projections, and what lies between them."""
    net, structure = BUILT_IN["resnet20"], analysed("resnet20")
    blocks = net.get_submodule("blocks")
    policy = without(structure, *(f"blocks.{i}.conv1" for i in range(9)))
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        y = net.get_submodule("stem")(x)
        for block in blocks.children():
            y = F.relu(block.get_submodule("shortcut")(y))
        wanted = net.get_submodule("fc")(y.mean((2, 3)))
        torch.testing.assert_close(structure.shrink(policy)(x), wanted)


def test_one_inner_unit_at_zero_makes_the_other_meaningless() -> None:
    structure = analysed("bottleneck")
    policies = [policy_of(structure, a=0, b=5), policy_of(structure, a=0, b=2), policy_of(structure, a=4, b=0)]
    models = [structure.shrink(policy) for policy in policies]
    assert all(list(model.state_dict()) == ["stem.weight", "stem.bias", "head.weight", "head.bias"] for model in models)
    assert len(set(structure.params(structure.widths(policies)).tolist())) == 1


def test_a_norm_of_two_branches_stays_until_both_are_gone() -> None:
    structure = analysed("pre_activation")
    for gone, shared in (({"a"}, True), ({"b"}, True), ({"a", "b"}, False)):
        state = structure.shrink(without(structure, *gone)).state_dict()
        assert ("norm.weight" in state) == ("norm.num_batches_tracked" in state) == shared


def test_an_inner_branch_goes_alone_or_with_the_outer_one() -> None:
    structure = analysed("nested")
    names = [
        {n.partition(".")[0] for n in structure.shrink(without(structure, *gone)).state_dict()} for gone in ("b", "a")
    ]
    assert names == [{"stem", "a", "d", "head"}, {"stem", "head"}]


@pytest.mark.parametrize("name", ["in_place", "stochastic_depth", "resnet8"])
def test_shrunk_models_train(name: str) -> None:
    structure = analysed(name)
    removable = [u.name for u in structure.units if u.removable]
    for count in range(len(removable) + 1):
        for gone in itertools.combinations(removable, count):
            shrunk = structure.shrink(without(structure, *gone)).train()
            shrunk(*structure.example_inputs).sum().backward()
            assert all(p.grad is not None for p in shrunk.parameters())


def test_random_numbers_of_a_removed_branch_are_not_drawn() -> None:
    structure = analysed("stochastic_depth")
    shrunk = structure.shrink(without(structure, "a", "c")).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shrunk(*structure.example_inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_proof_refuses_a_branch_that_still_adds_something(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = analysed("residual")

    class Crooked(type(structure.branches)):
        def absent(self, mode: str, removed: object) -> set[str]:
            return set()

    crooked = Crooked(**{k: getattr(structure.branches, k) for k in ("units", "runs", "present", "tensors")})
    monkeypatch.setitem(structure.__dict__, "branches", crooked)
    with pytest.raises(ProofError, match="broken by c2"):
        structure.shrink(policy_of(structure, c1=4, c2=0))


def test_width_zero_of_a_unit_that_is_not_removable_is_refused() -> None:
    structure = analysed("residual")
    message = "the width of 'c1' is 1 to 6; got 0, which would remove more than a residual branch"
    with pytest.raises(PolicyError, match=message):
        structure.shrink(policy_of(structure, c1=0))
    with pytest.raises(PolicyError, match="the width of 'c2' is 0 to 6; got 7"):
        structure.shrink(policy_of(structure, c2=7))


def test_kept_indices_of_a_removed_unit_are_none() -> None:
    structure = analysed("residual")
    with pytest.raises(PolicyError, match="keeps 0 distinct channels"):
        structure.shrink(without(structure, "c2"), {"c2": np.array([1])})
    structure.shrink(without(structure, "c2"), {"c2": np.array([])})


@given(st.lists(st.sets(st.integers(0, 3)), max_size=3), st.lists(st.sets(st.integers(0, 3)), max_size=3))
def test_gates_are_the_logic_that_they_stand_for(first: list[set[int]], second: list[set[int]]) -> None:
    widths = np.array(list(itertools.product((0, 1), repeat=4)))
    a, b = (Gate(frozenset(map(frozenset, sets))) for sets in (first, second))
    assert ((a & b)(widths) == (a(widths) & b(widths))).all()
    assert ((a | b)(widths) == (a(widths) | b(widths))).all()
    for row, is_open in zip(widths, a(widths), strict=True):
        assert a.open_without(set(np.flatnonzero(row == 0).tolist())) == is_open
    assert ALWAYS(widths).all()
    assert not NEVER(widths).any()
    assert all_of([]) == ALWAYS
