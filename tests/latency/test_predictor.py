import pickle

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import MissingEntryError, PolicyError
from autoprune.latency import predictor as predictor_module
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import ABSENT, MISSING, Costs, GeometryIndex, LatencyPredictor
from autoprune.records import Policy, SearchSpace
from autoprune.structure import analyze

DRAWS = 16


class World:
    """A predictor of one net from random entries, and everything to check it by hand."""

    def __init__(self, structure, space):
        rng = np.random.default_rng(0)
        self.space, self.names = space, list(space.levels)
        self.priced = PricedOperators.of(structure).varying
        self.geometries = possible_geometries(self.priced, space, self.names)
        self.entries_ms = rng.uniform(0.1, 1, size=len(self.geometries))
        self.spread_ms = rng.normal(0, 0.05, size=(DRAWS, len(self.geometries)))
        self.remainder = 0.25, rng.normal(0, 0.01, size=DRAWS)
        self.widths = np.stack([rng.choice(levels, size=40) for levels in space.levels.values()], axis=1)

    def policies(self):
        return [Policy(space_id="s", widths=dict(zip(self.names, row, strict=True))) for row in self.widths.tolist()]

    def predictor(self, keep=lambda geometry: True, known=None):
        kept = [number for number, geometry in enumerate(self.geometries) if keep(geometry)]
        costs = Costs(entries_ms=self.entries_ms[kept], spread_ms=self.spread_ms[:, kept])
        index = GeometryIndex(self.priced, [self.geometries[number] for number in kept])
        return LatencyPredictor(index, known or self.space.levels, costs, self.remainder)

    def numbers(self, row, unit=None):
        return [
            self.geometries.index(geometry)
            for op in self.priced
            if unit is None or unit in op.units
            for geometry in op.geometries(row[None])
        ]


@pytest.fixture(params=["narrowing", "removing"])
def world(request, net, structure_of, space_of, removing_space_of):
    return World(structure_of(net), (space_of if request.param == "narrowing" else removing_space_of)(net))


def test_a_prediction_is_the_sum_of_its_entries(world):
    predicted_ms = world.predictor().predict(world.widths)
    wanted = [0.25 + world.entries_ms[world.numbers(row)].sum() for row in world.widths]
    np.testing.assert_allclose(predicted_ms, wanted, rtol=1e-12)
    assert predicted_ms.dtype == np.float64


def test_the_deviation_is_that_of_the_sums_of_the_draws(world):
    prediction = world.predictor().predict_with_sd(world.widths)
    np.testing.assert_array_equal(prediction.latency_ms, world.predictor().predict(world.widths))
    for row, sd in zip(world.widths, prediction.sd_ms, strict=True):
        draws = world.remainder[1] + world.spread_ms[:, world.numbers(row)].sum(axis=1)
        assert sd == pytest.approx(np.sqrt(np.mean(draws**2)), rel=1e-5)


def test_an_entry_that_occurs_twice_counts_twice():
    """Two equal blocks: their deviations add up, they do not average out."""

    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    structure = analyze(net.eval(), (torch.randn(1, 1, 3, 3),))
    space = SearchSpace(id="s", levels={u.name: (4,) for u in structure.units})
    world = World(structure, space)
    numbers = world.numbers(world.widths[0])
    assert len(set(numbers)) == len(numbers) - 1
    prediction = world.predictor().predict_with_sd(world.widths[:1])
    assert prediction.latency_ms[0] == pytest.approx(0.25 + world.entries_ms[numbers].sum())
    draws = world.remainder[1] + world.spread_ms[:, numbers].sum(axis=1)
    assert prediction.sd_ms[0] == pytest.approx(np.sqrt(np.mean(draws**2)), rel=1e-5)


def test_widths_and_policies_predict_the_same(world):
    predictor, policies = world.predictor(), world.policies()
    np.testing.assert_array_equal(predictor.predict(world.widths), predictor.predict(policies))
    np.testing.assert_array_equal(
        predictor.predict_with_sd(world.widths).sd_ms, predictor.predict_with_sd(policies).sd_ms
    )
    assert predictor.predict([]).shape == (0,)
    assert predictor.predict_with_sd([]).sd_ms.shape == (0,)


def test_the_order_of_the_widths_of_a_policy_does_not_matter(world):
    policy = world.policies()[0]
    turned = Policy(space_id="s", widths=dict(reversed(policy.widths.items())))
    assert world.predictor().predict([policy]) == world.predictor().predict([turned])


def test_a_missing_entry_names_its_geometry_and_what_to_do(world):
    first = world.priced[0]
    gone = first.geometry(first.sizes(world.widths[:1])[0])
    predictor = world.predictor(keep=lambda geometry: geometry != gone)
    with pytest.raises(MissingEntryError, match="autoprune profile") as caught:
        predictor.predict(world.widths[:1])
    assert f"`{gone}`" in str(caught.value)
    without = np.array([gone not in [world.geometries[i] for i in world.numbers(row)] for row in world.widths])
    assert without.any()
    assert (predictor.predict(world.widths[without]) > 0).all()


def test_a_table_without_any_entry_misses_everything(world):
    with pytest.raises(MissingEntryError):
        world.predictor(keep=lambda geometry: False).predict(world.widths)


@pytest.mark.parametrize("width", [-1, 0, 1, 3, 1000, 2**40])
def test_an_unknown_width_names_its_unit_and_the_known_ones(width, world):
    row = world.widths[:1].copy()
    row[0, -1] = width
    with pytest.raises(MissingEntryError, match=f"does not know width {width} of unit") as caught:
        world.predictor().predict(row)
    name = world.names[-1]
    assert f"{name!r}; it knows {', '.join(map(str, world.space.levels[name]))}." in str(caught.value)


def test_known_widths_are_told_in_order(world):
    shuffled = {name: tuple(reversed(levels)) for name, levels in world.space.levels.items()}
    predictor = world.predictor(known=shuffled)
    assert predictor.known_widths == dict(world.space.levels)
    np.testing.assert_array_equal(predictor.predict(world.widths), world.predictor().predict(world.widths))
    assert predictor.remainder_ms == 0.25


def test_a_policy_of_another_structure_is_refused(world):
    with pytest.raises(PolicyError, match="no width for unit"):
        world.predictor().predict([Policy(space_id="x", widths={"other": 3})])


@pytest.mark.parametrize("most", [0, 10, 20])
def test_too_many_combinations_are_looked_up_one_by_one_with_equal_results(most, world, monkeypatch):
    usual = world.predictor()
    monkeypatch.setattr(predictor_module, "_MOST_COMBINATIONS", most)
    other = world.predictor()
    assert len(other.terms) < len(usual.terms) or most > 16
    np.testing.assert_allclose(other.predict(world.widths), usual.predict(world.widths), rtol=1e-12)
    first, second = (p.predict_with_sd(world.widths).sd_ms for p in (other, usual))
    np.testing.assert_allclose(first, second, rtol=1e-4)
    for unit in range(len(world.names)):
        for a, b in zip(other.unit_costs(unit, world.widths), usual.unit_costs(unit, world.widths), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    gone = world.geometries[world.numbers(world.widths[0])[0]]
    with pytest.raises(MissingEntryError, match="no entry"):
        world.predictor(keep=lambda geometry: geometry != gone).predict(world.widths[:1])


def test_the_costs_of_a_unit_are_those_of_its_operators(world):
    for unit in range(len(world.names)):
        costs, draws = world.predictor().unit_costs(unit, world.widths)
        assert draws.shape == (len(world.widths), DRAWS)
        for row, cost, draw in zip(world.widths, costs, draws, strict=True):
            numbers = world.numbers(row, unit)
            assert cost == pytest.approx(world.entries_ms[numbers].sum())
            np.testing.assert_allclose(draw, world.spread_ms[:, numbers].sum(axis=1), rtol=1e-4, atol=1e-6)


def test_the_costs_of_a_unit_are_unknown_where_an_entry_is_missing(world):
    first = world.priced[0]
    gone = first.geometry(first.sizes(world.widths[:1])[0])
    costs, _ = world.predictor(keep=lambda geometry: geometry != gone).unit_costs(first.units[0], world.widths)
    holds = [gone in [world.geometries[i] for i in world.numbers(row)] for row in world.widths]
    np.testing.assert_array_equal(np.isnan(costs), holds)


def test_a_predictor_travels_to_other_processes(world):
    predictor = world.predictor()
    copy = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(copy.predict(world.widths), predictor.predict(world.widths))
    np.testing.assert_array_equal(
        copy.predict_with_sd(world.widths).sd_ms, predictor.predict_with_sd(world.widths).sd_ms
    )


def test_the_index_finds_every_geometry_at_its_position(world):
    index = GeometryIndex(world.priced, world.geometries)
    numbers = index.numbers(world.widths)
    assert [row[row != ABSENT].tolist() for row in numbers] == [world.numbers(row) for row in world.widths]
    for operator, priced in enumerate(world.priced):
        np.testing.assert_array_equal(index.numbers_of(operator, world.widths), numbers[:, operator])
        np.testing.assert_array_equal(numbers[:, operator] != ABSENT, priced.present(world.widths))
        if numbers[0, operator] != ABSENT:
            assert index.geometry(operator, world.widths[0]) == world.geometries[numbers[0, operator]]
    assert index.operators == world.priced


def test_the_index_knows_what_it_does_not_have(world):
    every_other = world.geometries[::2]
    numbers = GeometryIndex(world.priced, every_other).numbers(world.widths)
    wanted = [[MISSING if i % 2 else i // 2 for i in world.numbers(row)] for row in world.widths]
    assert [row[row != ABSENT].tolist() for row in numbers] == wanted
    assert (numbers == MISSING).any()
    assert GeometryIndex((), ()).numbers(world.widths).shape == (len(world.widths), 0)


def test_a_removed_branch_costs_what_is_left_of_it(structure_of, removing_space_of):
    """Nothing of the branch; an activation of its own, or another label of the shortcut that now carries it."""
    world = World(structure_of("blocks"), removing_space_of("blocks"))
    predictor, full = world.predictor(), np.array([unit[-1] for unit in world.space.levels.values()])
    keys = [[world.geometries[i] for i in world.numbers(row)] for row in without(world, full, *world.names[1:4])]
    texts = [[str(key) for key in of_row] for of_row in keys]
    both, plain = "conv2d+add+relu 4->6 8x8 k3x3", "conv2d+relu 6->4 8x8 k3x3"
    assert [(text.count(both), text.count(plain)) for text in texts] == [(2, 2), (1, 1), (0, 0), (0, 0)]
    assert "conv2d+add+relu 6->8 4x4 k1x1 s2x2" in texts[2]
    assert texts[3] == [
        "conv2d+relu 1->6 8x8 k3x3", "adaptive_avg_pool2d 8->8 1x1", "linear 8->5", "conv2d+relu 6->8 4x4 k1x1 s2x2",
    ]  # fmt: skip
    rows = without(world, full, *world.names[1:4])
    wanted = [0.25 + world.entries_ms[world.numbers(row)].sum() for row in rows]
    np.testing.assert_allclose(predictor.predict(rows), wanted, rtol=1e-12)


def test_an_activation_that_a_removed_branch_carried_is_charged_alone():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)
            self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.stem(x), 2)
            return self.head(torch.relu(x + self.b(torch.relu(self.a(x)))))

    structure = analyze(Pooled().eval(), (torch.randn(1, 1, 4, 4),))
    levels = {u.name: tuple(range(0 if u.removable else 1, u.width + 1)) for u in structure.units}
    world = World(structure, SearchSpace(id="s", levels=levels))
    keys = [[str(world.geometries[i]) for i in world.numbers(np.array(row))] for row in ([4, 2], [4, 0])]
    assert keys[0][2:4] == ["conv2d+relu 4->2 2x2 k1x1", "conv2d+add+relu 2->4 2x2 k1x1"]
    assert keys[1] == ["conv2d 1->4 4x4 k1x1", "max_pool2d 4->4 2x2 k2x2 s2x2", "conv2d 4->2 2x2 k1x1", "relu 4->4 2x2"]


def test_the_width_of_a_unit_does_not_matter_once_its_branch_is_gone():
    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)
            self.a, self.b, self.c = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.c(torch.relu(self.b(torch.relu(self.a(x))))))

    structure = analyze(Bottleneck().eval(), (torch.randn(1, 1, 3, 3),))
    assert [(u.name, u.removable) for u in structure.units] == [("stem", False), ("a", True), ("b", True)]
    levels = {u.name: tuple(range(0 if u.removable else 1, u.width + 1)) for u in structure.units}
    world = World(structure, SearchSpace(id="s", levels=levels))
    rows = np.array([[4, 0, 3], [4, 0, 1], [4, 2, 0], [4, 0, 0]])
    prediction = world.predictor().predict_with_sd(rows)
    assert len(set(prediction.latency_ms)) == len(set(prediction.sd_ms)) == 1
    assert len(world.numbers(rows[0])) == 2
    assert (prediction.latency_ms < world.predictor().predict(np.array([[4, 1, 1]]))).all()
    costs, draws = world.predictor().unit_costs(1, rows)
    assert costs.tolist() == [0, 0, 0, 0]
    assert not draws.any()


def without(world, full, *names):
    """Rows without the first of some units, without the first two, and so on; the full one first."""
    rows = np.tile(full, (len(names) + 1, 1))
    for count, name in enumerate(names, start=1):
        rows[count:, world.names.index(name)] = 0
    return rows
