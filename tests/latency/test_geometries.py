from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoprune.latency import geometries as geometries_module
from autoprune.latency.charges import priced_operators, without
from autoprune.latency.geometries import possible_geometries
from autoprune.latency.table import LatencyTable
from autoprune.profiling.profile import profile
from autoprune.structure import analyze
from autoprune.structure.gates import ALWAYS
from autoprune.task.models import MobileNetTiny, resnet20
from tests.machines import QUICK


def _dense_keys(structure):
    widths = np.array([[unit.width for unit in structure.units]])
    return [str(key) for p in priced_operators(structure.operators) for key in p.geometries(widths)]


def test_a_residual_net_is_fused_like_the_runtime_does(structure_of):
    assert _dense_keys(structure_of("residual")) == [
        "conv2d+relu 1->8 8x8 k3x3",
        "conv2d+relu 8->8 4x4 k3x3 s2x2",
        "conv2d 8->16 4x4 k3x3",
        "conv2d+add+relu 8->16 4x4 k1x1 s2x2",
        "conv2d+add+relu 16->16 4x4 k3x3",
        "adaptive_avg_pool2d 16->16 1x1",
        "linear 16->5",
    ]


def test_depthwise_groups_follow_the_width(structure_of):
    structure = structure_of("depthwise")
    depthwise = next(p for p in priced_operators(structure.operators) if p.parameters[0].startswith("depth."))
    full = [unit.width for unit in structure.units]
    widths = np.array([full, [w // 2 for w in full]])
    assert depthwise.sizes(widths).tolist() == [[8, 8, 8], [4, 4, 4]]
    assert depthwise.fused == "hardtanh"


def test_reshapes_and_dropout_cost_nothing(structure_of):
    assert _dense_keys(structure_of("flat")) == [
        "conv2d+relu 1->8 8x8 k3x3",
        "max_pool2d 8->8 4x4 k2x2 s2x2",
        "linear+relu 128->12",
        "linear 12->5",
    ]


def test_possible_geometries_are_all_that_any_policy_produces(net, structure_of, removing_space_of):
    structure, space = structure_of(net), removing_space_of(net)
    names = [unit.name for unit in structure.units]
    priced = priced_operators(structure.operators)
    possible = possible_geometries(priced, space, names)
    assert max(Counter(possible).values()) == 1
    assert possible == possible_geometries(priced, space, names)
    rng = np.random.default_rng(0)
    widths = np.stack([rng.choice(space.levels[name], size=3000) for name in names], axis=1)
    seen = {key for p in priced for key in p.geometries(widths)}
    assert seen == set(possible)


def test_too_many_combinations_are_sampled(structure_of, space_of, monkeypatch):
    monkeypatch.setattr(geometries_module, "_MOST_COMBINATIONS", 20)
    structure, space = structure_of("residual"), space_of("residual")
    names = [unit.name for unit in structure.units]
    priced = priced_operators(structure.operators)
    sampled = possible_geometries(priced, space, names, seed=1)
    assert sampled == possible_geometries(priced, space, names, seed=1)
    monkeypatch.undo()
    everything = set(possible_geometries(priced, space, names))
    assert set(sampled) < everything
    assert len(sampled) > len(everything) / 4


def test_keys_hold_no_layer_names(net, structure_of, space_of):
    structure = structure_of(net)
    names = [unit.name for unit in structure.units]
    text = " ".join(map(str, possible_geometries(priced_operators(structure.operators), space_of(net), names)))
    assert not any(name in text for name in [*names, "stem", "conv2d_1"])


@pytest.mark.parametrize("name", ["residual", "blocks", "resnet20", "mobilenet-tiny"])
def test_charges_of_removed_branches_are_those_of_the_shrunk_model(name, structure_of):
    """Also when several branches are removed, though the charges are made from one at a time."""
    built_in = {"resnet20": lambda: resnet20(1, 8, 5), "mobilenet-tiny": lambda: MobileNetTiny(1, 8, 5)}
    structure = (
        structure_of(name) if name not in built_in else analyze(built_in[name]().eval(), (torch.randn(1, 1, 8, 8),))
    )
    rng = np.random.default_rng(0)
    full = np.array([unit.width for unit in structure.units])
    removable = np.array([unit.removable for unit in structure.units])
    priced = priced_operators(structure.operators)
    for share in (0.0, 0.3, 0.5, 1.0):
        gone = removable & (rng.random(len(full)) < share)
        widths = np.where(gone, 0, full)[None]
        left = without(structure.operators, set(np.flatnonzero(gone).tolist()))
        wanted = [
            key for p in priced_operators([replace(op, gate=ALWAYS) for op in left]) for key in p.geometries(widths)
        ]
        assert Counter(key for p in priced for key in p.geometries(widths)) == Counter(wanted)


# --- other operators

OTHERS = {
    "attention": {"scaled_dot_product_attention", "layer_norm", "linear"},
    "upsampling": {"conv_transpose2d+relu", "conv2d+relu"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_net_of_other_operators_is_profiled(name, structure_of, space_of, target, tmp_path):
    structure, space = structure_of(name), space_of(name)
    assert len(space.searched) > 1
    table = profile(structure, space, target, max_seconds=0.0, protocol=QUICK)
    assert not any("exported from scratch" in note for note in table.notes)
    assert {str(entry).split()[0] for entry in table.entries} >= OTHERS[name]
    assert table.remainder_ms >= 0
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    predictor = table.predictor(structure)
    assert (predictor.predict([space.smallest(), space.largest()]) > 0).all()
