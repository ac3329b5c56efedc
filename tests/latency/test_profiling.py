"""A whole profile of a tiny net with a short protocol: what must hold whatever the clock says."""

import numpy as np
import pytest

from autoprune.latency.geometries import possible_geometries, priced_operators
from autoprune.latency.profiling import profile
from autoprune.latency.table import LatencyTable
from autoprune.latency.timing import Protocol

QUICK = Protocol(repeats=3, sample_ms=0.05, warmup_runs=1, retries=0)


@pytest.fixture(scope="module")
def profiled():
    return {}


@pytest.fixture
def table(profiled, structure_of, space_of, target):
    if not profiled:
        stages = []
        found = profile(
            structure_of("residual"),
            space_of("residual"),
            target,
            seed=3,
            on_progress=lambda stage, done, total: stages.append((stage, done, total)),
            max_seconds=0.0,
            protocol=QUICK,
        )
        profiled.update(table=found, stages=stages)
    return profiled["table"]


def test_the_table_answers_for_the_whole_space(table, structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    names = [unit.name for unit in structure.units]
    assert set(table.entries_ms) == set(possible_geometries(priced_operators(structure.operators), space, names))
    rng = np.random.default_rng(0)
    widths = np.stack([rng.choice(space.levels[name], size=500) for name in names], axis=1)
    assert (table.predictor(structure).predict(widths) > 0).all()


def test_the_table_says_where_it_comes_from(table, structure_of, space_of, target):
    assert table.target == target.fingerprint()
    assert table.space_id == space_of("residual").id
    assert table.structure == structure_of("residual").digest()
    assert table.seed == 3
    assert table.dense_ms > 0


def test_held_out_policies_are_kept_and_counted(table, structure_of):
    held_out = [sample for sample in table.samples if sample.held_out]
    assert len(held_out) == table.held_out.policies == 40
    assert len(table.samples) == 80
    policies = np.array([list(sample.widths.values()) for sample in held_out])
    predicted = table.predictor(structure_of("residual")).predict(policies)
    np.testing.assert_allclose(predicted, [sample.predicted_ms for sample in held_out])
    errors = [abs(s.predicted_ms / s.measured_ms - 1) * 100 for s in held_out]
    assert np.mean(errors) == pytest.approx(table.held_out.mape_percent)


def test_progress_reaches_the_end_of_both_stages(table, profiled):
    assert ("operators", 40, 40) in profiled["stages"]
    assert ("timing", 92, 92) in profiled["stages"]


def test_a_profiled_table_survives_its_file(table, tmp_path):
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
