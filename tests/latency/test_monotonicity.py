from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoprune.latencies import Geometry
from autoprune.latency.monotonicity import disjoint, monotone, ordered_chains

CONV = Geometry(op="conv2d", c_in=0, c_out=0, out_rows=4, out_columns=4, kernel=(3, 3))


def chains_of(geometries):
    return {tuple(geometries[i] for i in chain) for chain in ordered_chains(geometries)}


def widths_of(geometries, key):
    return {tuple(getattr(g, key) for g in chain) for chain in chains_of(geometries)}


@pytest.mark.parametrize("key", ["c_in", "c_out"])
def test_only_widths_of_one_alignment_are_ordered(key):
    geometries = [replace(CONV, **{"c_in": 3, "c_out": 5} | {key: width}) for width in range(1, 65)]
    assert widths_of(geometries, key) == {
        tuple(range(1, 65, 2)),
        tuple(range(2, 65, 4)),
        tuple(range(4, 65, 8)),
        tuple(range(8, 65, 16)),
        tuple(range(16, 65, 16)),  # every multiple of the longest register
    }


def test_both_widths_give_chains_but_never_together():
    geometries = [replace(CONV, c_in=i, c_out=o) for i in (4, 12) for o in (4, 12)]
    pairs = {tuple((g.c_in, g.c_out) for g in chain) for chain in chains_of(geometries)}
    assert pairs == {((4, 4), (12, 4)), ((4, 12), (12, 12)), ((4, 4), (4, 12)), ((12, 4), (12, 12))}


@pytest.mark.parametrize(
    "other",
    [{"op": "linear"}, {"out_rows": 8}, {"kernel": (1, 1)}, {"stride": (2, 2)}, {"fused": "relu"}, {"groups": 2}],
)
def test_different_operators_are_not_ordered(other):
    geometries = [replace(CONV, c_in=4, c_out=8), replace(CONV, c_in=4, c_out=24, **other)]
    assert ordered_chains(geometries) == []


def test_depthwise_and_elementwise_operators_have_one_width():
    depthwise = [replace(CONV, c_in=c, c_out=c, groups=c) for c in (4, 12, 20)]
    assert widths_of(depthwise, "groups") == {(4, 12, 20)}
    pool = [replace(CONV, op="add", kernel=(), c_in=c, c_out=c) for c in (4, 12, 20)]
    assert widths_of(pool, "c_out") == {(4, 12, 20)}


def test_depthwise_does_not_mix_with_an_ordinary_convolution():
    geometries = [replace(CONV, c_in=4, c_out=4, groups=4), replace(CONV, c_in=12, c_out=12)]
    assert ordered_chains(geometries) == []


def test_a_removed_unit_is_in_no_chain():
    assert ordered_chains([replace(CONV, c_in=0, c_out=4), replace(CONV, c_in=0, c_out=0)]) == []


def test_linear_layers_with_equal_widths_belong_to_one_chain_only():
    """Element-wise operators have no kernel, like linear layers: these must still be ordered in each width."""
    linear = [Geometry(op="linear", c_in=i, c_out=o) for i, o in ((4, 4), (4, 12), (12, 4), (12, 12))]
    for chain in ordered_chains(linear):
        sizes = [(linear[i].c_in, linear[i].c_out) for i in chain]
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(sizes))


# --- disjoint


def test_families_keep_all_chains_and_none_of_them_cross():
    cells = np.arange(12).reshape(3, 4)
    chains = [*cells, *cells.T, np.array([12, 13])]
    families = disjoint(chains)
    assert len(families) == 2
    assert sorted(chain.tolist() for family in families for chain in family) == sorted(c.tolist() for c in chains)
    for family in families:
        members = np.concatenate(family)
        assert len(np.unique(members)) == len(members)
    assert disjoint([]) == []


# --- monotone

CHAINS = [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), np.array([8, 9])]
values = arrays(float, 10, elements=st.floats(0.01, 100))
precisions = arrays(float, 10, elements=st.floats(0.01, 100))


def falls(values, chains):
    return max(float((values[c[:-1]] - values[c[1:]]).max()) for c in chains)


@given(values, precisions)
def test_no_chain_falls_afterwards_and_once_is_enough(values, precision):
    before = values.copy()
    moved = monotone(values, precision, CHAINS)
    np.testing.assert_array_equal(values, before)
    assert falls(moved, CHAINS) <= 1e-9
    np.testing.assert_allclose(monotone(moved, precision, CHAINS), moved, rtol=1e-9)


@given(values, precisions)
def test_ordered_values_are_left_alone(values, precision):
    ordered = values.copy()
    for chain in CHAINS:
        ordered[chain] = np.sort(ordered[chain])
    np.testing.assert_array_equal(monotone(ordered, precision, CHAINS), ordered)
    np.testing.assert_array_equal(monotone(values, precision, []), values)


@given(values, precisions, st.data())
def test_no_ordered_values_are_nearer(values, precision, data):
    moved = monotone(values, precision, CHAINS)
    other = data.draw(arrays(float, 10, elements=st.floats(0.01, 100)))
    for chain in CHAINS:
        other[chain] = np.sort(other[chain])

    def distance(candidate):
        return float(np.sum(precision * (candidate - values) ** 2))

    assert distance(moved) <= distance(other) * (1 + 1e-9) + 1e-9


def test_what_is_precise_moves_less():
    moved = monotone(np.array([3.0, 1.0]), np.array([3.0, 1.0]), [np.array([0, 1])])
    np.testing.assert_allclose(moved, [2.5, 2.5])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_crossing_chains_hold_nearly(seed):
    """Rows and columns of a grid, as the two widths of a convolution make them."""
    rng = np.random.default_rng(seed)
    grid = np.arange(30).reshape(5, 6)
    chains = [*grid, *grid.T]
    truth = np.add.outer(np.arange(5.0), np.arange(6.0)).ravel() + 1
    moved = monotone(truth + rng.normal(0, 1, 30), np.ones(30), chains)
    assert falls(moved, chains) < 0.02
