"""Every published family: its units are as expected, and any cut is exact in evaluation and in training."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from autoprune.records import Policy
from autoprune.structure import Structure, analyze
from tests.structure.family_nets import FAMILIES


@functools.cache
def analysed(name: str) -> Structure:
    torch.manual_seed(0)
    build, shapes, _ = FAMILIES[name]
    tokens = name in ("bert", "gpt", "llama")
    inputs = [torch.randint(0, 30, (2, *s)) if tokens and k == 0 else torch.rand(2, *s) for k, s in enumerate(shapes)]
    return analyze(build().eval(), inputs)


def halved(structure: Structure, seed: int) -> tuple[Policy, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    keep = {u.name: np.sort(rng.choice(u.width, max(1, u.width // 2), replace=False)) for u in structure.units}
    return Policy(space_id="", widths={name: len(kept) for name, kept in keep.items()}), keep


@pytest.mark.parametrize("name", FAMILIES)
def test_units_are_as_expected(name: str) -> None:
    units = {unit.name: (unit.kind, unit.width) for unit in analysed(name).units}
    expected = FAMILIES[name][2]
    assert {unit: units.get(unit) for unit in expected} == expected
    assert not analysed(name).unsupported


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_every_unit_is_exact_and_counted(name: str) -> None:
    structure = analysed(name)
    for seed in range(2):
        policy, keep = halved(structure, seed)
        shrunk = structure.shrink(policy, keep)
        widths = structure.widths([policy])
        assert structure.params(widths)[0] == sum(p.numel() for p in shrunk.parameters())
        assert structure.params(widths)[0] < 0.6 * structure.params(structure.widths([structure.dense_policy()]))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_unit_alone_is_exact(name: str) -> None:
    structure = analysed(name)
    for unit in structure.units:
        structure.shrink(Policy(space_id="", widths=structure.full_widths | {unit.name: 1}))


@pytest.mark.parametrize("name", ["vit, softmax", "swin", "mixer", "bert", "gpt"])
def test_macs_count_products_and_windows(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    structure = analysed(name)
    for policy in (structure.dense_policy(), halved(structure, 0)[0]):
        shrunk = structure.shrink(policy, prove=False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shrunk(*(x[:1] for x in structure.example_inputs))
        assert structure.macs(structure.widths([policy]))[0] == counter.get_total_flops() // 2


def test_attention_has_a_geometry_that_follows_heads_and_their_size() -> None:
    structure = analysed("vit")
    attention = next(op for op in structure.operators if op.op == "scaled_dot_product_attention")
    widths = structure.widths([Policy(space_id="", widths=structure.full_widths | {"blocks.0.qkv": 2})])
    sizes = [int(dim(widths)[0]) for dim in (attention.groups, attention.c_in, attention.c_out)]
    assert (sizes, attention.out_columns, attention.kernel) == ([2, 4, 4], 17, (17,))
    assert attention.macs(widths)[0] == 2 * 17 * 17 * (4 + 4)
