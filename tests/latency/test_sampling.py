import numpy as np
import pytest

from autoprune.latency.geometries import possible_geometries, priced_operators
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.sampling import covering_widths, random_widths


@pytest.fixture
def world(net, structure_of, space_of):
    structure, space = structure_of(net), space_of(net)
    names = tuple(unit.name for unit in structure.units)
    priced = priced_operators(structure.operators)
    geometries = possible_geometries(priced, space, names)
    return space, names, GeometryIndex(priced, geometries), len(geometries)


def test_random_policies_belong_to_the_space(world):
    space, names, _, _ = world
    widths = random_widths(space, names, 200, np.random.default_rng(0))
    assert widths.shape == (200, len(names))
    for column, name in zip(widths.T, names, strict=True):
        assert set(column) <= set(space.levels[name])


def test_every_entry_is_covered_and_the_extremes_take_part(world):
    space, names, index, entries = world
    widths = covering_widths(space, names, index, 160, np.random.default_rng(0))
    assert len(widths) == 160
    assert set(index.numbers(widths).ravel()) == set(range(entries))
    rows = {tuple(row) for row in widths.tolist()}
    assert {tuple(space.largest().widths.values()), tuple(space.smallest().widths.values())} <= rows


def test_covering_is_better_than_chance(world):
    space, names, index, entries = world

    def rarest(widths):
        return np.bincount(index.numbers(widths).ravel(), minlength=entries).min()

    chosen = covering_widths(space, names, index, 100, np.random.default_rng(1))
    assert rarest(chosen) >= rarest(random_widths(space, names, 100, np.random.default_rng(1)))


def test_the_same_seed_samples_the_same_policies(world):
    space, names, index, _ = world
    first, second = (covering_widths(space, names, index, 40, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
