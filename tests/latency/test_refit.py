"""Candidates that were measured join the evidence of a table."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.latency.evidence import Evidence, build_table, refit_table
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.table import CANDIDATE, FIT, HELD_OUT
from tests.machines import (
    ORT,
    AdditiveMachine,
    prior_of,
    rows_of,
    timed_once,
)


def test_candidates_move_the_predictions_towards_them(table, structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    candidates = rows_of(space, 4, seed=20)
    before = table.predictor(structure).predict(candidates)
    measured = before * 1.05
    refitted = refit_table(table, structure, candidates, measured / table.dense_ms)
    after = refitted.predictor(structure).predict(candidates)
    assert (after > before).all()
    assert np.abs(after / measured - 1).mean() < 0.6 * 0.05
    assert refitted.counts == table.counts | {CANDIDATE: 4}
    assert (table.refits, refitted.refits) == (0, 1)
    assert [sample.widths for sample in refitted.samples[-4:]] == [
        dict(zip(space.unit_names, row, strict=True)) for row in candidates.tolist()
    ]
    np.testing.assert_allclose([sample.measured_ms for sample in refitted.samples[-4:]], measured)
    assert table.counts.get(CANDIDATE) is None


def test_a_candidate_weighs_more_than_a_sample(structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    machine, prior = AdditiveMachine(structure), prior_of(structure, space)
    fitted, held, candidates = rows_of(space, 60, 0), rows_of(space, 20, 1), rows_of(space, 4, 20)
    before = Evidence.none(3).plus(fitted, machine.ratios(fitted), FIT).plus(held, machine.ratios(held), HELD_OUT)
    measured = machine.ratios(candidates) * 1.05
    errors = []
    for role in (CANDIDATE, FIT):
        evidence = before.plus(candidates, measured, role)
        table = build_table(
            structure, PricedOperators.of(structure), space, ORT, evidence, prior, timed_once(machine, noise=0.004)
        )
        predicted = table.predictor(structure).predict(candidates) / machine.dense_ms
        errors.append(np.abs(predicted / measured - 1).mean())
    assert errors[0] < 0.8 * errors[1]


def test_a_refit_with_what_was_predicted_changes_little(table, structure_of, space_of):
    structure, space = structure_of("residual"), space_of("residual")
    candidates, new = rows_of(space, 4, seed=20), rows_of(space, 100, seed=21)
    before = table.predictor(structure)
    refitted = refit_table(table, structure, candidates, before.predict(candidates) / table.dense_ms)
    np.testing.assert_allclose(refitted.predictor(structure).predict(new), before.predict(new), rtol=0.005)


def test_a_refit_keeps_what_was_measured(table, structure_of, space_of):
    structure = structure_of("residual")
    rows = rows_of(space_of("residual"), 2, seed=20)
    refitted = refit_table(table, structure, rows, np.array([0.5, 0.6]))
    kept = ("target", "space", "structure", "seed", "dense_ms", "fixed", "known", "noise", "drift_percent", "notes")
    for field in kept:
        assert getattr(refitted, field) == getattr(table, field), field
    assert refitted.seconds == table.seconds
    assert refitted.repeated_blocks == table.repeated_blocks
    np.testing.assert_allclose(refitted.again_ms, table.again_ms)
    assert {g: e.prior_ms for g, e in refitted.entries.items()} == {g: e.prior_ms for g, e in table.entries.items()}
    assert [s.measured_ms for s in refitted.samples[:160]] == pytest.approx([s.measured_ms for s in table.samples])
    assert refitted.held_out.policies == table.held_out.policies


def test_a_refit_may_be_refitted(table, structure_of, space_of):
    structure = structure_of("residual")
    rows = rows_of(space_of("residual"), 2, seed=20)
    once = refit_table(table, structure, rows, np.array([0.5, 0.6]))
    twice = refit_table(once, structure, rows, np.array([0.5, 0.6]))
    assert twice.counts[CANDIDATE] == 4
    assert twice.refits == 2
    at_once = refit_table(table, structure, np.concatenate([rows, rows]), np.array([0.5, 0.6, 0.5, 0.6]))
    assert {g: e.latency_ms for g, e in twice.entries.items()} == pytest.approx(
        {g: e.latency_ms for g, e in at_once.entries.items()}
    )
    assert twice.noise == at_once.noise


def test_useful_widths_stay_when_a_table_is_fitted_again(table, structure_of, space_of):
    narrow = {name: widths[-1:] for name, widths in table.useful.items()}
    candidates = rows_of(space_of("residual"), 4, seed=20)
    before = replace(table, useful=narrow)
    ratios = before.predictor(structure_of("residual")).predict(candidates) / before.dense_ms
    assert refit_table(before, structure_of("residual"), candidates, ratios).useful == narrow
