import pickle

import numpy as np
import pytest

from autoprune.errors import MissingEntryError, PolicyError
from autoprune.latency.geometries import possible_geometries, priced_operators
from autoprune.latency.predictor import GeometryIndex, LatencyPredictor
from autoprune.records import Policy


@pytest.fixture
def parts(net, structure_of, space_of):
    structure, space = structure_of(net), space_of(net)
    names = [unit.name for unit in structure.units]
    priced = priced_operators(structure.operators)
    rng = np.random.default_rng(0)
    entries = {geometry: float(rng.uniform(0.1, 1)) for geometry in possible_geometries(priced, space, names)}
    policies = [
        space.policy({name: int(rng.choice(levels)) for name, levels in space.levels.items()}) for _ in range(20)
    ]
    return names, priced, entries, policies


def test_a_prediction_is_the_sum_of_its_entries(parts):
    names, priced, entries, policies = parts
    found = LatencyPredictor(names, priced, entries, 0.25).predict(policies)
    for policy, latency in zip(policies, found, strict=True):
        widths = np.array([[policy.widths[name] for name in names]])
        wanted = 0.25 + sum(entries[p.geometry(p.sizes(widths)[0])] for p in priced)
        assert latency == pytest.approx(wanted, rel=1e-12)


def test_widths_and_policies_predict_the_same(parts):
    names, priced, entries, policies = parts
    predictor = LatencyPredictor(names, priced, entries, 0.0)
    widths = np.array([[policy.widths[name] for name in names] for policy in policies])
    np.testing.assert_array_equal(predictor.predict(widths), predictor.predict(policies))
    assert predictor.predict([]).shape == (0,)


def test_a_missing_entry_names_its_geometry_and_what_to_do(parts):
    names, priced, entries, policies = parts
    widths = np.array([[policies[0].widths[name] for name in names]])
    gone = priced[0].geometry(priced[0].sizes(widths)[0])
    rest = {geometry: cost for geometry, cost in entries.items() if geometry != gone}
    with pytest.raises(MissingEntryError, match="autoprune profile") as caught:
        LatencyPredictor(names, priced, rest, 0.0).predict([policies[0]])
    assert f"`{gone}`" in str(caught.value)


def test_a_table_without_any_fitting_entry_misses_everything(parts):
    names, priced, _, policies = parts
    with pytest.raises(MissingEntryError):
        LatencyPredictor(names, priced, {}, 0.0).predict(policies)


def test_a_policy_of_another_structure_is_refused(parts):
    names, priced, entries, _ = parts
    with pytest.raises(PolicyError, match="no width for unit"):
        LatencyPredictor(names, priced, entries, 0.0).predict([Policy(space_id="x", widths={"other": 3})])


def test_a_predictor_travels_to_other_processes(parts):
    names, priced, entries, policies = parts
    predictor = LatencyPredictor(names, priced, entries, 0.1)
    copy = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(copy.predict(policies), predictor.predict(policies))


def test_the_index_finds_every_geometry_at_its_position(parts):
    names, priced, entries, policies = parts
    geometries = tuple(entries)
    widths = np.array([[policy.widths[name] for name in names] for policy in policies])
    numbers = GeometryIndex(priced, geometries).numbers(widths)
    for row, found in zip(widths, numbers, strict=True):
        assert [geometries[i] for i in found] == [p.geometry(p.sizes(row[None])[0]) for p in priced]
