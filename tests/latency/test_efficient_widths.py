import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.latency.efficient_widths import staircases, useful_among, useful_treatments
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import Costs, GeometryIndex, LatencyPredictor
from autoprune.records import SearchSpace
from autoprune.structure import analyze
from autoprune.treatments import DENSE, INT8, Treatment
from tests.machines import stairs

WIDTHS = np.arange(1, 65)


def certain(costs):
    return np.zeros((*np.shape(costs), 4))


def stair_costs(step, widths=WIDTHS, contexts=(1.0, 0.5)):
    return np.array([[0.01 + 0.02 * share * math.ceil(w / step) for w in widths] for share in contexts])


@pytest.mark.parametrize("step", [16, 8, 5, 1])
def test_exactly_the_stairs_are_useful(step):
    costs = stair_costs(step)
    wanted = {*range(step, 65, step), 64}
    assert useful_among(WIDTHS, costs, certain(costs)) == tuple(sorted(wanted))


def test_a_width_that_is_slower_than_a_larger_one_is_useless():
    widths = np.array([8, 15, 16, 31, 32])
    costs = np.array([[1.0, 3.0, 2.0, 5.0, 2.5]])
    assert useful_among(widths, costs, certain(costs)) == (8, 16, 32)


def test_one_context_in_which_a_width_is_faster_keeps_it():
    costs = np.array([[1.0, 1.0], [1.0, 1.2]])
    assert useful_among(np.array([7, 8]), costs, certain(costs)) == (7, 8)
    assert useful_among(np.array([7, 8]), costs[:1], certain(costs[:1])) == (8,)


def test_half_a_percent_is_nothing():
    def useful(more):
        costs = np.array([[1.0, 1.0 + more]])
        return useful_among(np.array([7, 8]), costs, certain(costs))

    assert useful(0.0049) == (8,)
    assert useful(0.0051) == (7, 8)


def test_small_steps_add_up_before_they_count():
    """Every width is 0.3 % dearer than the one before: each is beaten by its neighbour, but not by the largest."""
    costs = (1.003 ** np.arange(10))[None]
    assert useful_among(np.arange(1, 11), costs, certain(costs)) == (10,)


def test_small_steps_within_the_noise_add_up():
    """Nobody could tell a width from its neighbour, but a quarter of the width takes a third of the time."""
    costs = np.linspace(1, 3, 25)[None]
    spreads = np.random.default_rng(0).normal(0, 0.15, (*costs.shape, 256))
    useful = useful_among(np.arange(48, 193, 6), costs, spreads)
    gaps = np.diff(costs[0][(np.array(useful) - 48) // 6])
    assert useful[0] < 72
    assert gaps.min() > 0.15


def test_a_difference_below_its_own_deviation_is_noise():
    costs = np.array([[1.0, 1.03]])
    together = np.zeros((1, 2, 4))
    together[0, :, 0] = 0.5  # both are unsure, but in the same way: the difference is certain
    assert useful_among(np.array([7, 8]), costs, together) == (7, 8)
    apart = np.zeros((1, 2, 4))
    apart[0, 1] = 0.04
    assert useful_among(np.array([7, 8]), costs, apart) == (8,)
    apart[0, 1] = 0.02
    assert useful_among(np.array([7, 8]), costs, apart) == (7, 8)


def test_noisy_stairs_are_still_stairs():
    rng = np.random.default_rng(0)
    sd = 0.002
    truth = stair_costs(16)
    costs = truth + rng.normal(0, sd, truth.shape)
    spreads = rng.normal(0, sd, (*truth.shape, 32))
    useful = useful_among(WIDTHS, costs, spreads)
    assert {16, 32, 48, 64} <= {*useful} | {15, 31, 47}
    assert len(useful) < 12
    assert len(useful) < len(useful_among(WIDTHS, costs, certain(costs)))


def test_what_is_unknown_is_neither_useful_nor_beats_anything():
    nan = np.nan
    costs = np.array([[1.0, nan, 2.0, nan], [1.0, nan, 2.0, nan]])
    assert useful_among(np.array([1, 2, 3, 4]), costs, certain(costs)) == (1, 3)
    partly = np.array([[1.0, 1.0], [1.0, nan]])
    assert useful_among(np.array([7, 8]), partly, certain(partly)) == (8,)
    partly = np.array([[1.0, nan], [1.0, 1.0]])
    assert useful_among(np.array([7, 8]), partly, certain(partly)) == (8,)


costs_of = st.lists(st.floats(0.01, 10), min_size=1, max_size=12)


@given(costs_of)
def test_the_largest_width_is_useful_and_the_useful_ones_are_dearer_and_dearer(values):
    costs, widths = np.array([values]), np.arange(1, len(values) + 1)
    useful = useful_among(widths, costs, certain(costs))
    assert useful[-1] == widths[-1]
    chosen = costs[0][np.array(useful) - 1]
    assert (chosen[1:] > chosen[:-1]).all()
    for i, width in enumerate(widths):
        beaten = any(costs[0, j] <= 1.005 * costs[0, i] for j in range(i + 1, len(widths)))
        assert (width in useful) == (not beaten or math.isclose(costs[0, i + 1 :].min(), 1.005 * costs[0, i]))


# --- on a net


def predictor_of(structure, space, cost, sd=0.0):
    priced = PricedOperators.of(structure).varying
    geometries = possible_geometries(priced, space, tuple(space.levels))
    rng = np.random.default_rng(0)
    costs = Costs(entries_ms=np.array([cost(g) for g in geometries]), spread_ms=rng.normal(0, sd, (8, len(geometries))))
    predictor = LatencyPredictor(GeometryIndex(priced, geometries), space.levels, costs, (0.1, np.zeros(8)))
    return predictor, priced


def all_widths(structure):
    return SearchSpace(id="s", levels={u.name: tuple(range(2, u.width + 1)) for u in structure.units})


@pytest.mark.parametrize("step", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_the_stairs_of_every_unit_are_those_of_the_machine(step, name, structure_of):
    structure = structure_of(name)
    space = all_widths(structure)
    predictor, priced = predictor_of(structure, space, stairs(step))
    all_stairs = staircases(predictor, space, priced)
    assert [stair.unit for stair in all_stairs] == list(space.levels)
    for stair in all_stairs:
        width = space.levels[stair.unit][-1]
        assert stair.widths == space.levels[stair.unit]
        assert stair.useful == tuple(sorted({*range(max(step, 2), width + 1, step), width}))
        assert (np.diff(stair.latency_ms) >= -1e-12).all()
        assert set(stair.sd_ms) == {0}


def test_a_flatten_makes_ramps_of_stairs(structure_of):
    """Every channel before it is 16 features after it, which fill whole registers: each width has its own cost."""
    structure = structure_of("flat")
    space = all_widths(structure)
    predictor, priced = predictor_of(structure, space, stairs(4))
    features, hidden = staircases(predictor, space, priced)
    assert features.useful == space.levels["features.0"]
    assert hidden.useful == (4, 8, 12)


def test_a_staircase_is_the_cost_of_the_unit_with_full_partners(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    predictor, priced = predictor_of(structure, space, stairs(4), sd=0.01)
    for number, stair in enumerate(staircases(predictor, space, priced)):
        rows = np.array([[levels[-1] for levels in space.levels.values()]] * len(stair.widths))
        rows[:, number] = stair.widths
        ms, draws = predictor.unit_costs(number, rows)
        np.testing.assert_allclose(stair.latency_ms, ms)
        np.testing.assert_allclose(stair.sd_ms, np.sqrt(np.mean(draws**2, axis=1)), rtol=1e-5)


def test_a_unit_with_one_width_has_no_staircase(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    first = next(iter(space.levels))
    space = SearchSpace(id="s", levels={**space.levels, first: (8,)})
    predictor, priced = predictor_of(structure, space, stairs(4))
    assert [stair.unit for stair in staircases(predictor, space, priced)] == list(space.levels)[1:]


def test_known_widths_without_entries_are_left_out(structure_of, space_of):
    structure, narrow, wide = structure_of("flat"), space_of("flat", 4), space_of("flat", 2)
    priced = PricedOperators.of(structure).varying
    geometries = possible_geometries(priced, narrow, tuple(narrow.levels))
    costs = Costs(entries_ms=np.array([stairs(1)(g) for g in geometries]), spread_ms=np.zeros((8, len(geometries))))
    predictor = LatencyPredictor(GeometryIndex(priced, geometries), wide.levels, costs, (0.0, np.zeros(8)))
    for stair in staircases(predictor, narrow, priced):
        assert stair.widths == stair.useful == narrow.levels[stair.unit]


def test_width_0_is_always_useful(structure_of, removing_space_of):
    """Also where nobody could measure what it saves: the model is smaller."""
    widths, costs = np.array([0, 2, 4]), np.array([[1.0, 1.0, 1.0]])
    assert useful_among(widths, costs, certain(costs)) == (0, 4)
    structure, space = structure_of("blocks"), removing_space_of("blocks")
    predictor, priced = predictor_of(structure, space, stairs(4))
    for stair, unit in zip(staircases(predictor, space, priced), structure.units, strict=True):
        assert (stair.useful[0] == stair.widths[0] == 0) == unit.removable
        assert not unit.removable or stair.latency_ms[0] < stair.latency_ms[1]


@pytest.mark.parametrize(("cost", "kept"), [(0.4, {INT8.code, 0}), (300.0, {0})])
def test_treatments_that_cost_more_than_dense_everywhere_are_dropped(structure_of, treated_space_of, cost, kept):
    structure, space = structure_of("residual"), treated_space_of("residual")
    priced = PricedOperators.of(structure, space.layer_names).varying
    geometries = possible_geometries(priced, space, tuple(space.levels))
    ms = np.array([(cost if g.treatment else 1.0) * stairs(4)(g) for g in geometries])
    costs = Costs(entries_ms=ms, spread_ms=np.zeros((4, len(ms))))
    index = GeometryIndex(priced, geometries)
    predictor = LatencyPredictor(index, space.codes, costs, (0.0, np.zeros(4)), space.layer_names)
    useful = useful_treatments(predictor, space)
    assert list(useful) == list(space.layer_names)
    assert set().union(*useful.values()) == kept


@pytest.mark.parametrize(
    ("cost", "kept"),
    [
        (lambda g: 1.0, ["fp32"]),
        (lambda g: g.c_in * g.c_out, ["rank:8", "rank:16", "fp32"]),
        (lambda g: -(-min(g.c_in, g.c_out) // 16), ["rank:16", "fp32"]),
    ],
    ids=["operators", "products", "steps"],
)
def test_ranks_that_a_higher_one_or_the_whole_layer_beats_are_dropped(cost, kept):
    structure = analyze(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(2, 64))
    layer, ranks = structure.layers[0], (Treatment(rank=8), Treatment(rank=16))
    space = SearchSpace(id="", levels={structure.units[0].name: (64,), layer.name: (*ranks, DENSE)})
    priced = PricedOperators.of(structure, space.layer_names).varying
    geometries = possible_geometries(priced, space, tuple(space.levels))
    ms = np.array([cost(g) for g in geometries], dtype=float)
    costs = Costs(entries_ms=ms, spread_ms=np.zeros((4, len(ms))))
    index = GeometryIndex(priced, geometries)
    predictor = LatencyPredictor(index, space.codes, costs, (0.0, np.zeros(4)), space.layer_names)
    assert [str(Treatment.of_code(code)) for code in useful_treatments(predictor, space)[layer.name]] == kept
