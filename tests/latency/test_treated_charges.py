"""Charges of models with int8 layers: the same conversions as the placement has in the cut model, no others."""

import pickle

import numpy as np
import pytest

from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.sampling import random_rows
from autoprune.structure.layer_decisions import policy_of
from autoprune.treatments import INT8

CONVERSIONS = ("quantize", "dequantize")


def _present(priced, row):
    """Operators and fused ones of all charges of one row, in int8 or not."""
    return [key for op in priced.all for key in op.geometries(row[None])]


def _conversions_of_cut(structure, policy):
    """How many conversions of each direction the placement of the cut model has."""
    cut = structure.cut(structure.masks(policy), structure.removed(policy)).eval()
    placement = structure.placement_in(cut.evaluation_graph().graph)
    layers = {step.layer for step in placement.steps.values() if step.kind == "layer"}
    int8 = {name: np.array([name in policy.treatments]) for name in layers}
    possible = placement.boundaries(layers)
    taking_place = [b.direction for b in possible if placement.meets_fp32(b.tensor, placement.sides_of(b), int8)[0]]
    return [taking_place.count(direction) for direction in CONVERSIONS]


@pytest.fixture
def world(net, structure_of, treated_space_of):
    structure, space = structure_of(net), treated_space_of(net)
    if not space.layer_names:
        pytest.skip("no layer of this net can be in int8")
    return structure, space, PricedOperators.of(structure, space.layer_names)


def test_conversions_are_those_of_the_cut_model(world):
    structure, space, priced = world
    columns = tuple(space.levels)
    for row in random_rows(space, columns, 12, np.random.default_rng(0)):
        ops = [key.op for key in _present(priced, row)]
        policy = policy_of(columns, row, space.layer_names)
        assert [ops.count(direction) for direction in CONVERSIONS] == _conversions_of_cut(structure, policy), policy


def test_models_in_fp32_are_charged_as_without_treatments(world):
    structure, space, priced = world
    units = len(structure.units)
    rows = random_rows(space, tuple(space.levels), 12, np.random.default_rng(1))
    rows[:, units:] = 0
    for row in rows:
        assert sorted(map(str, _present(priced, row))) == sorted(
            map(str, _present(PricedOperators.of(structure), row[:units]))
        )


def test_every_layer_is_charged_once_in_its_treatment(world):
    structure, space, priced = world
    for row in random_rows(space, tuple(space.levels), 12, np.random.default_rng(2)):
        for number, layer in enumerate(space.layer_names, start=len(structure.units)):
            charges = [op for op in priced.all if layer in op.parameters and op.present(row[None])[0]]
            heads = [op for op in charges if op.node in next(x.nodes for x in structure.layers if x.name == layer)]
            assert [op.treatment.of(row[None])[0] for op in heads] == [row[number]] * len(heads)
            assert len({op.node for op in heads}) == len(heads)


def test_possible_geometries_are_those_of_all_mixed_models(world):
    _, space, priced = world
    columns = tuple(space.levels)
    possible = set(possible_geometries(priced.varying, space, columns))
    rows = random_rows(space, columns, 40, np.random.default_rng(3))
    assert {key for op in priced.varying for key in op.geometries(rows)} <= possible


def test_an_addition_behind_an_int8_convolution_is_a_charge_of_its_own(structure_of):
    structure = structure_of("residual")
    layers = tuple(layer.name for layer in structure.layers)
    priced = PricedOperators.of(structure, layers)
    row = structure.rows([structure.dense_policy()], layers)[0]
    assert "add" not in [key.op for key in _present(priced, row)]
    row[len(structure.units) :] = INT8.code
    added = [key for key in _present(priced, row) if key.op == "add"]
    assert {(key.fused, key.treatment) for key in added} <= {("", "int8"), ("relu", "")}
    assert added
    assert not [key for key in _present(priced, row) if "add" in key.fused]


def test_charges_travel_to_other_processes(world):
    _, space, priced = world
    rows = random_rows(space, tuple(space.levels), 5, np.random.default_rng(4))
    copies = pickle.loads(pickle.dumps(priced)).varying
    for operator, copy in zip(priced.varying, copies, strict=True):
        np.testing.assert_array_equal(copy.present(rows), operator.present(rows))
