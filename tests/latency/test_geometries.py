from collections import Counter

import numpy as np

from autoprune.latency.geometries import possible_geometries, priced_operators


def _dense_keys(structure):
    widths = np.array([[unit.width for unit in structure.units]])
    return [str(p.geometry(p.sizes(widths)[0])) for p in priced_operators(structure.operators)]


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


def test_possible_geometries_are_all_that_any_policy_produces(net, structure_of, space_of):
    structure, space = structure_of(net), space_of(net)
    names = [unit.name for unit in structure.units]
    priced = priced_operators(structure.operators)
    possible = possible_geometries(priced, space, names)
    assert max(Counter(possible).values()) == 1
    rng = np.random.default_rng(0)
    widths = np.stack([rng.choice(space.levels[name], size=3000) for name in names], axis=1)
    seen = {p.geometry(row) for p in priced for row in np.unique(p.sizes(widths), axis=0)}
    assert seen == set(possible)


def test_keys_hold_no_layer_names(net, structure_of, space_of):
    structure = structure_of(net)
    names = [unit.name for unit in structure.units]
    text = " ".join(map(str, possible_geometries(priced_operators(structure.operators), space_of(net), names)))
    assert not any(name in text for name in [*names, "stem", "conv2d_1"])
