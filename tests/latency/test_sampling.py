import numpy as np
import pytest
import torch
from torch import nn

from autoprune.latency.evidence import occurrences
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import ABSENT, GeometryIndex
from autoprune.latency.sampling import (
    covering_rows,
    every_other,
    partners_of,
    random_rows,
    scan_contexts,
    scanned_rows,
    uniform_ladder,
)
from autoprune.records import SearchSpace
from autoprune.structure import analyze


@pytest.fixture
def world(net, structure_of, space_of):
    structure, space = structure_of(net), space_of(net)
    names = tuple(unit.name for unit in structure.units)
    priced = PricedOperators.of(structure).varying
    geometries = possible_geometries(priced, space, names)
    return space, names, priced, GeometryIndex(priced, geometries), len(geometries)


def belong(widths, space, names):
    return all(set(column) <= set(space.levels[name]) for column, name in zip(widths.T, names, strict=True))


def test_random_policies_belong_to_the_space(world):
    space, names, *_ = world
    widths = random_rows(space, names, 200, np.random.default_rng(0))
    assert widths.shape == (200, len(names))
    assert widths.dtype == np.int64
    assert belong(widths, space, names)
    for column, name in zip(widths.T, names, strict=True):
        assert set(column) == set(space.levels[name])


def test_half_of_the_random_policies_keep_similar_shares_of_all_units():
    space = SearchSpace(id="s", levels={f"u{i}": tuple(range(1, 65)) for i in range(12)})
    widths = random_rows(space, space.unit_names, 2000, np.random.default_rng(0))
    spread = np.std(np.log(widths), axis=1)
    similar = spread < 0.6
    assert 0.35 < similar.mean() < 0.65
    totals = widths.mean(axis=1)
    assert totals[similar].std() > 3 * totals[~similar].std()


def test_every_entry_is_covered_and_all_about_equally_often(world):
    space, names, _, index, entries = world
    seen = np.zeros(entries)
    widths = covering_rows(space, names, index, 160, seen, np.random.default_rng(0))
    assert widths.shape == (160, len(names))
    assert belong(widths, space, names)
    assert set(index.numbers(widths).ravel()) - {ABSENT} == set(range(entries))
    assert (seen == 0).all()


def test_covering_is_better_than_chance(world):
    space, names, _, index, entries = world

    def rarest(widths):
        return occurrences(index.numbers(widths), entries).sum(axis=0).min()

    chosen = covering_rows(space, names, index, 100, np.zeros(entries), np.random.default_rng(1))
    assert rarest(chosen) > rarest(random_rows(space, names, 100, np.random.default_rng(1)))


def test_what_was_seen_before_is_not_sought_again(world):
    """Entries of small widths of the first unit have been seen often: policies with its large widths are chosen."""
    space, names, _, index, entries = world
    seen = np.zeros(entries)
    common = random_rows(space, names, 3000, np.random.default_rng(2))
    median = np.median(space.levels[names[0]])
    seen += occurrences(index.numbers(common[common[:, 0] <= median]), entries).sum(axis=0)
    widths = covering_rows(space, names, index, 10, seen, np.random.default_rng(3))
    assert (widths[:, 0] > median).mean() > 0.7


def test_entries_that_the_table_will_not_have_attract_nobody(world):
    """The first policy is, of all in its pool, the one with most of the entries that the table will have."""
    space, names, priced, _, _ = world
    smallest = np.array([[levels[0] for levels in space.levels.values()]])
    known = tuple(dict.fromkeys(key for op in priced for key in op.geometries(smallest)))
    index = GeometryIndex(priced, known)

    def held(rows):
        return (index.numbers(rows) >= 0).sum(axis=1)

    for seed in range(5):
        chosen = covering_rows(space, names, index, 1, np.zeros(len(known)), np.random.default_rng(seed))
        assert held(chosen)[0] == held(random_rows(space, names, 20, np.random.default_rng(seed))).max()


def test_the_same_seed_samples_the_same_policies(world):
    space, names, _, index, entries = world
    first, second = (
        covering_rows(space, names, index, 40, np.zeros(entries), np.random.default_rng(3)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_the_ladder_goes_from_the_smallest_to_the_largest_policy(world):
    space, names, *_ = world
    rows = uniform_ladder(space)
    assert belong(rows, space, names)
    np.testing.assert_array_equal(rows[0], [space.levels[name][0] for name in names])
    np.testing.assert_array_equal(rows[-1], [space.levels[name][-1] for name in names])
    assert (np.diff(rows, axis=0) >= 0).all()
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)


def test_partners_share_an_operator(structure_of):
    structure = structure_of("residual")
    names = [unit.name for unit in structure.units]
    priced = PricedOperators.of(structure).varying
    stem, inner = names.index("stem.0"), names.index("inner.0")
    (stream,) = {0, 1, 2} - {stem, inner}
    assert partners_of(stem, priced) == {inner, stream}
    assert partners_of(inner, priced) == {stem, stream}
    flat = structure_of("flat")
    assert partners_of(0, PricedOperators.of(flat).varying) == {1}


def test_partners_are_full_then_half_and_all_others_small(structure_of, space_of):
    structure, space = structure_of("depthwise"), space_of("depthwise")
    names = tuple(unit.name for unit in structure.units)
    priced = PricedOperators.of(structure).varying
    for unit in range(len(names)):
        full, half = scan_contexts(unit, space, priced)
        for other in {*range(len(names))} - {unit}:
            levels = space.levels[names[other]]
            partner = other in partners_of(unit, priced)
            assert full[other] == (levels[-1] if partner else levels[0])
            assert half[other] == (levels[len(levels) // 2 - 1] if partner else levels[0])
    assert any(partners_of(u, priced) != {*range(len(names))} - {u} for u in range(len(names)))


def test_every_width_of_every_unit_is_scanned_in_both_contexts(world):
    """Or else its geometries occur in another scan, so that nothing new would be learnt."""
    space, names, priced, _, _ = world
    rows = scanned_rows(space, priced, space.levels)
    assert belong(rows, space, names)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    scanned = {tuple(row) for row in rows.tolist()}
    known = {key for op in priced for key in op.geometries(rows)}
    for unit, name in enumerate(names):
        for context in scan_contexts(unit, space, priced):
            for width in space.levels[name]:
                row = context.copy()
                row[unit] = width
                if tuple(row.tolist()) not in scanned:
                    keys = {key for op in priced if unit in op.units for key in op.geometries(row[None])}
                    assert keys <= known


def test_blocks_of_one_stage_share_their_scans():

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    def rows_of(blocks):
        net = nn.Sequential(*[Block() for _ in range(blocks)], nn.Conv2d(4, 2, 1))
        structure = analyze(net.eval(), (torch.randn(1, 4, 6, 6),))
        inner = [unit.name for unit in structure.units if unit.width == 8]
        assert len(inner) == blocks
        levels = {u.name: tuple(range(1, 9)) if u.name in inner else (u.width,) for u in structure.units}
        space = SearchSpace(id="s", levels=levels)
        return scanned_rows(space, PricedOperators.of(structure).varying, levels)

    assert len(rows_of(3)) == len(rows_of(1)) >= 8


def test_only_given_widths_are_scanned_and_units_with_one_width_are_not(world):
    space, names, priced, _, _ = world
    few = {name: (levels[0], levels[-1]) for name, levels in space.levels.items()} | {names[0]: (4,)}
    rows = scanned_rows(space, priced, few)
    assert set(rows[:, 1]) <= {*few[names[1]], *(c[1] for c in scan_contexts(0, space, priced)), 4, 6, 8}
    none = {name: (levels[-1],) for name, levels in space.levels.items()}
    assert scanned_rows(space, priced, none).shape == (0, len(names))


@pytest.fixture
def removing(structure_of, removing_space_of):
    structure, space = structure_of("blocks"), removing_space_of("blocks")
    return space, space.unit_names, PricedOperators.of(structure).varying, [u.removable for u in structure.units]


def test_random_policies_remove_an_eighth_of_what_they_may(removing):
    space, names, priced, removable = removing
    widths = random_rows(space, names, 4000, np.random.default_rng(0))
    shares = (widths == 0).mean(axis=0)
    np.testing.assert_allclose(shares, np.array(removable) / 8, atol=0.02)
    assert belong(widths, space, names)
    geometries = possible_geometries(priced, space, names)
    index = GeometryIndex(priced, geometries)
    covering = covering_rows(space, names, index, 60, np.zeros(len(geometries)), np.random.default_rng(0))
    assert set(index.numbers(covering).ravel()) - {ABSENT} == set(range(len(geometries)))


def test_the_ladder_and_the_surroundings_of_a_scan_remove_nothing(removing):
    space, names, priced, _ = removing
    assert (uniform_ladder(space) > 0).all()
    assert all((scan_contexts(unit, space, priced) > 0).all() for unit in range(len(names)))


def test_scans_end_at_width_0(removing):
    """Once for every kind of block: two equal ones share their scans."""
    space, names, priced, removable = removing
    rows = scanned_rows(space, priced, space.levels)
    removed = [names[column] for column in np.argwhere(rows == 0)[:, 1]]
    assert set(removed) == {"first.0", "third.0"}
    assert (rows[:, [not r for r in removable]] > 0).all()


def test_thinning_keeps_both_ends():
    assert every_other((0, 2, 4, 6, 8)) == (0, 4, 8)
    assert every_other((0, 2, 4, 6)) == (0, 2, 6)
    assert every_other((1, 2, 3, 4)) == (2, 4)
